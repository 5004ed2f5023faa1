"""The lab: a whole realm on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tasks import show
from tasks.cli.application import Folder, Json, app

lab = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A whole realm on this machine, to try things out.")
app.add_typer(lab, name="lab")


@lab.command("up")
def lab_up(
    folder: Folder = Path(".lab"),
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=64, help="Processes per site.")] = 2,
    json: Json = False,
) -> None:
    """Start it, or repair it: Redis, two simulated vCenters, workers, Beat, Flower.

    Example: understudy lab up --dir .lab
    """
    from tasks import lab as laboratory

    _lab(laboratory.up(folder, concurrency=concurrency), json)


@lab.command("status")
def lab_status(folder: Folder = Path(".lab"), json: Json = False) -> None:
    """What of it runs, and where. Fails when a part does not run.

    Example: understudy lab status
    """
    from tasks import lab as laboratory

    state = laboratory.status(folder)
    _lab(state, json)
    if not state.running:
        raise typer.Exit(1)


@lab.command("down")
def lab_down(
    folder: Folder = Path(".lab"),
    erase: Annotated[bool, typer.Option("--erase", help="Remove the folder with all data, too.")] = False,
) -> None:
    """Stop it, also after a crash. Its data stay.

    Example: understudy lab down --erase
    """
    from tasks import lab as laboratory

    laboratory.down(folder, erase=erase)


@lab.command("demo")
def lab_demo() -> None:
    """Back up and replicate a VM between two simulated vCenters, told step by step.

    Example: understudy lab demo
    """
    from tasks.lab import demo

    raise typer.Exit(demo.run())


def _lab(state: Any, json: bool) -> None:
    if json:
        return show.as_json(state.model_dump(mode="json", exclude={"redis"}))  # it has Redis' password
    show.say(f"configuration  {state.config}\nflower         {state.flower}")
    for vcenter in state.vcenters.values():
        show.say(
            f"vCenter {vcenter.site:6} https://{vcenter.address}  {vcenter.user}, password in {vcenter.password_file}"
        )
    show.say(f"datastores     {state.datastores}")
    rows = show.table("service", "state", "log")
    for service in state.services:
        rows.add_row(service.name, "not running" if service.pid is None else f"pid {service.pid}", str(service.log))
    show.console().print(rows)
