"""Asking for work: backups and syncs."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.application import Json, Vms, Wait, app


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
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help="Only the replica at this recovery target.")
    ] = None,
    json: Json = False,
) -> None:
    """Bring the VMs' replicas up to their newest restore points now, or join the syncs that are running.

    Example: understudy sync web-01 --plan
    """
    from tasks import ask

    if plan:
        ask.plan(vms, discard_changes=discard_changes, target=target, as_json=json)
    else:
        ask.sync(vms, wait=wait, discard_changes=discard_changes, target=target, as_json=json)
