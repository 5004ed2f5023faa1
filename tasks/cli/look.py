"""Looking: how VMs are protected, their restore points, what was run."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, app


@app.command()
def status(
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names of VMs; none = all.")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only in this state, e.g. failed.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="Only of this group.")] = None,
    site: Annotated[list[str] | None, typer.Option("--site", help="Only with source or replica here.")] = None,
    target: Annotated[list[str] | None, typer.Option("--target", help="Only replicas at this target.")] = None,
    name: Annotated[list[str] | None, typer.Option("--name", help="Only names like this: 'web-*'.")] = None,
    older: Annotated[str | None, typer.Option("--older", metavar="AGE", help="Only data older than, e.g. 1h.")] = None,
    problems: Annotated[bool, typer.Option("--problems", help="Only what somebody should look at.")] = False,
    sort: Annotated[str, typer.Option("--sort", help="name, lag (the oldest first) or state (worst first).")] = "name",
    fail_on: Annotated[str | None, typer.Option("--fail-on", help="problems: exit code 1 if any is shown.")] = None,
    json: Json = False,
) -> None:
    """How every VM is protected: one line per replica, or per VM that is only backed up.

    Example: understudy status --group web --problems --fail-on problems
    """
    from tasks import tables
    from tasks.app import looking
    from workers import store_scrub
    from workers.group import unprotected_in_words
    from workers.members import Roll
    from workers.status import Filter, late_stores, ordered, overview, selected, summary

    if fail_on not in (None, "problems"):
        raise typer.BadParameter("it can only be: problems", param_hint="--fail-on")
    wanted = Filter(
        states=tuple(state or ()),
        groups=tuple(group or ()),
        sites=tuple(site or ()),
        targets=tuple(target or ()),
        names=tuple(name or ()),
        older=_seconds(older),
        problems=problems,
    )
    here, notices = looking()
    lines = ordered(selected(here, overview(here, vms or []), wanted), sort)
    roll, whole, damaged = Roll(here), wanted == Filter() and not vms, store_scrub.concerns(here)
    for sentence in (*notices, *damaged, *roll.concerns(here.catalogue.now())):  # beside the JSON, above the table
        show.complain(sentence)
    if json:
        show.as_json([{"state": line.state, "problem": line.problem, **line.model_dump(mode="json")} for line in lines])
    else:
        tables.status(lines, everything=whole)
        if vms:
            tables.compared(lines)
        for sentence in late_stores(lines):
            show.say(sentence)
        show.say(summary(lines))
        if whole and (outside := unprotected_in_words(roll)):
            show.say(outside)
    if fail_on and (damaged or any(line.problem for line in lines)):
        raise typer.Exit(1)


def _seconds(text: str | None) -> float | None:
    from workers.settings import seconds

    try:
        return None if text is None else seconds(text)
    except ValueError as err:
        raise typer.BadParameter(str(err), param_hint="--older") from err


@app.command()
def points(vm: Annotated[str, typer.Argument(help="Name or instance UUID of a VM.")], json: Json = False) -> None:
    """The restore points of a VM, and what keeps them.

    Example: understudy points web-01
    """
    from tasks import tables
    from tasks.app import here
    from workers.restore_points import kept
    from workers.status import half_applied

    found = kept(here(), vm)
    if json:
        show.as_json(found)
    else:
        tables.points(found)
        for sentence in half_applied(here(), vm):
            show.say(sentence)


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
    from workers.restore_points import uuids_of

    found = here().catalogue.runs(vm, limit=limit)
    if vm is not None and not found:
        uuids_of(here(), vm)  # of a name that nobody knows an empty list would say too much
    show.answer(found, tables.runs, in_json=json)


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
