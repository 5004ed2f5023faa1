"""Asking for work: backups and syncs."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.application import Json, Vms, Wait, app

Why = Annotated[str, typer.Option("--reason", help="Why --full; kept in the run.")]


@app.command()
def backup(
    vms: Vms,
    wait: Wait = False,
    full: Annotated[bool, typer.Option("--full", help="Read all of the source, store what differs.")] = False,
    reason: Why = "no reason given",
    json: Json = False,
) -> None:
    """Back VMs up now, or join the backups that are running.

    With --full change tracking is not asked: every block of the source is read and compared with the newest restore
    point, and what differs is stored.

    Example: understudy backup web-01 db-01 --wait
    """
    from tasks import ask

    ask.backup(vms, wait=wait, full=why_full(full, reason), as_json=json)


@app.command()
def sync(
    vms: Vms,
    wait: Wait = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done, and why.")] = False,
    discard_changes: Annotated[
        bool,
        typer.Option("--discard-changes", help="Drop what others changed on the replicas; compare every block."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read all of the replicas, write what differs.")] = False,
    reason: Why = "no reason given",
    target: Annotated[list[str] | None, typer.Option("--target", help="Only replicas at this target.")] = None,
    json: Json = False,
) -> None:
    """Bring the VMs' replicas up to their newest restore points now, or join the syncs that are running.

    With --full no cursor is trusted: every block of the replicas is read and compared with the restore point, and what
    differs is written.

    Example: understudy sync web-01 --plan
    """
    from tasks import ask

    why, targets = why_full(full, reason), target or []
    if plan:
        ask.plan(vms, discard_changes=discard_changes, full=why, targets=targets, as_json=json)
    else:
        ask.sync(vms, wait=wait, discard_changes=discard_changes, full=why, targets=targets, as_json=json)


def why_full(wanted: bool, reason: str) -> str | None:
    from tasks.cli.pairs import person

    return f"{person()} asked to compare every block ({reason})" if wanted else None
