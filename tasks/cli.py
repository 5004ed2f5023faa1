"""The command `understudy`: what a person asks for.

Celery, pyVmomi and the like are imported in the commands that need them, so that --help and a usage error are quick.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks import logs, show
from workers import settings
from workers.errors import ConfigError, UnderstudyError

app = typer.Typer(
    name="understudy",
    help="Keep a warm copy of every VMware VM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A whole realm on this machine, to try things out.")
app.add_typer(lab, name="lab")

#: shown by --debug instead of being written to a file
_debug = False

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the runs until they have ended; fail if one fails.")]
Vms = Annotated[list[str], typer.Argument(metavar="VM...", help="Names of VMs.")]
Folder = Annotated[Path, typer.Option("--dir", help="The lab's folder.")]


@app.callback()
def common(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The configuration.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show where errors come from.")] = False,
) -> None:
    """Keep a warm copy of every VMware VM."""
    global _debug
    _debug = debug
    if config is not None:
        # For this process and the children of its workers: they must all read the same.
        os.environ["UNDERSTUDY_CONFIG"] = str(config.absolute())
    logs.configure(logging.DEBUG if debug else logging.WARNING)


def main(arguments: list[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage, 130 Ctrl-C."""
    try:
        app(args=arguments)
    except UnderstudyError as err:
        _show_traceback()
        show.complain(f"understudy: {err}")
        sys.exit(1)
    except Exception as err:
        show.complain(f"understudy: unexpected {type(err).__name__}: {_first_line(err)}\n{_details()}")
        sys.exit(1)


def _show_traceback() -> None:
    if _debug:
        traceback.print_exc()


def _details() -> str:
    """Where the traceback is: it is for a report, not for whoever only wanted a backup."""
    if _debug:
        traceback.print_exc()
        return "This is a fault of the program; please report it."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="understudy-error-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        return f"This is a fault of the program; please report it with {file.name}"
    except OSError:
        return "This is a fault of the program; `understudy --debug ...` shows where it comes from."


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else "(no message)"


# --- setting up -------------------------------------------------------------------------------------------------------


@app.command()
def init(
    folder: Annotated[Path, typer.Option("--dir", help="Where to write the example configuration.")] = Path("."),
) -> None:
    """Write an example configuration; once there is one, make the catalogue and the stores that it names.

    May be repeated: what is there stays, an older catalogue is brought up to this version.

    Example: understudy init --dir /etc/understudy
    """
    from tasks import init as first_steps

    config = _config_of(folder)
    if not config.exists():
        return show.say(first_steps.write_example(config))
    for line in first_steps.prepare(config):
        show.say(line)


def _config_of(folder: Path) -> Path:
    """The configuration that is meant: a named one, the folder's, or one that is found; else where to write it."""
    named = os.environ.get("UNDERSTUDY_CONFIG")
    if named:
        return Path(named)
    if folder == Path("."):
        try:
            return settings.find().absolute()
        except ConfigError:
            pass  # there is none yet
    return (folder / settings.DEFAULT_PATHS[0].name).absolute()


@app.command()
def check(
    site: Annotated[list[str] | None, typer.Option("--site", help="Only this site (and all that is of none).")] = None,
    json: Json = False,
) -> None:
    """Look at everything that the configuration names, from this machine; read the inventories. Fails if anything does.

    Example: understudy check
    """
    from tasks import diagnose, tables

    found = diagnose.findings(site or [])
    if json:
        show.as_json(found)
    else:
        tables.findings(found)
    if any(finding.result == "failed" for finding in found):
        raise typer.Exit(1)


# --- asking for work --------------------------------------------------------------------------------------------------


@app.command()
def backup(vms: Vms, wait: Wait = False, json: Json = False) -> None:
    """Back VMs up now, or join the backups that are running.

    Example: understudy backup web-01 db-01 --wait
    """
    from tasks import ask

    ask.backup(vms, wait=wait, as_json=json)


@app.command()
def sync(
    vms: Vms,
    wait: Wait = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done, and why.")] = False,
    discard_changes: Annotated[
        bool,
        typer.Option("--discard-changes", help="Drop what others changed on the replicas; compare every block."),
    ] = False,
    json: Json = False,
) -> None:
    """Bring the VMs' replicas up to their newest restore points now, or join the syncs that are running.

    Example: understudy sync web-01 --plan
    """
    from tasks import ask

    if plan:
        ask.plan(vms, discard_changes=discard_changes, as_json=json)
    else:
        ask.sync(vms, wait=wait, discard_changes=discard_changes, as_json=json)


# --- looking ----------------------------------------------------------------------------------------------------------


@app.command()
def status(
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names of VMs; none = all.")] = None,
    json: Json = False,
) -> None:
    """How every VM is protected: one line per replica, or per VM that is only backed up.

    Example: understudy status
    """
    from tasks import tables
    from tasks.app import here
    from workers.status import overview

    lines = overview(here(), vms or [])
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


# --- the processes that stay ------------------------------------------------------------------------------------------


@app.command()
def worker(
    site: Annotated[str | None, typer.Option("--site", help="Do the disk work of this site.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Dispatch and reap, for all sites.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Processes.")] = 2,
    log_json: LogJson = False,
) -> None:
    """Work: on one site's runs, or on the control queue. SIGTERM stops it; what it had begun goes on elsewhere.

    Example: understudy worker --site prod --concurrency 4
    """
    from tasks import serve

    if control == (site is not None):
        raise typer.BadParameter("give either --site NAME or --control", param_hint="--site/--control")
    serve.worker(site=site, concurrency=concurrency, as_json=log_json)


@app.command()
def beat(log_json: LogJson = False) -> None:
    """Send the ticks that set off what is due. A second one elsewhere does no harm.

    Example: understudy beat
    """
    from tasks import serve

    serve.beat(as_json=log_json)


@app.command()
def flower(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5555,
    address: Annotated[str, typer.Option("--address", help="Who reaches it sees all tasks.")] = "127.0.0.1",
) -> None:
    """Show workers and tasks in a browser.

    Example: understudy flower --port 5555
    """
    from tasks import serve

    serve.flower(port=port, address=address)


# --- the lab ----------------------------------------------------------------------------------------------------------


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


if __name__ == "__main__":
    main()
