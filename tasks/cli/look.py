"""Looking: how VMs are protected, their restore points, what was run."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, app


@app.command()
def status(
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names of VMs; none = all.")] = None,
    json: Json = False,
) -> None:
    """How every VM is protected: one line per replica, or per VM that is only backed up.

    Example: understudy status
    """
    from tasks import tables
    from tasks.app import looking
    from workers.members import Roll
    from workers.status import overview

    here, notices = looking()
    lines = overview(here, vms or [])
    for sentence in (*notices, *Roll(here).concerns(here.catalogue.now())):  # beside the JSON, above the table
        show.complain(sentence)
    if json:
        show.as_json([{"state": line.state, **line.model_dump(mode="json")} for line in lines])
    else:
        tables.status(lines)


@app.command()
def points(vm: Annotated[str, typer.Argument(help="Name or instance UUID of a VM.")], json: Json = False) -> None:
    """The restore points of a VM, and what keeps them.

    Example: understudy points web-01
    """
    from tasks import tables
    from tasks.app import here
    from workers.restore_points import kept

    found = kept(here(), vm)
    if json:
        show.as_json(found)
    else:
        tables.points(found)


@app.command()
def runs(
    vm: Annotated[str | None, typer.Argument(help="Name of a VM; none = all.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at most.")] = 20,
    json: Json = False,
) -> None:
    """The latest runs, the newest first.

    Example: understudy runs web-01 --limit 5
    """
    from tasks import tables
    from tasks.app import here

    found = here().catalogue.runs(vm, limit=limit)
    if json:
        show.as_json(found)
    else:
        tables.runs(found)


@app.command("show")
def show_run(run: Annotated[str, typer.Argument(help="A run's id, or its start.")], json: Json = False) -> None:
    """Everything about a run: what it did and why, how far it has come, what failed.

    Example: understudy show 3fa9c0
    """
    from tasks import tables
    from tasks.app import here

    catalogue = here().catalogue
    found = catalogue.find_run(run)
    slices, failures = catalogue.slices(found.id), catalogue.failures(run=found.id)
    if json:
        show.as_json({"run": found, "slices": slices, "failures": failures})
    else:
        tables.run(found, slices, failures)
