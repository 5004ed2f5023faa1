"""Restore points in a second store."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.application import Json, Vms, Wait, app


@app.command()
def copy(
    vms: Vms,
    source: Annotated[str, typer.Option("--from", metavar="STORE", help="The store that has the restore points.")],
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="The store that gets them.")],
    point: Annotated[str, typer.Option("--point", help="'newest', an id or its start, or a time.")] = "newest",
    wait: Wait = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done, and why.")] = False,
    json: Json = False,
) -> None:
    """Copy the VMs' restore points to another store, or join the copies that are running.

    Only what is missing there is sent, compressed as it is stored; what was sent before a stop is not sent again. The
    copy is the same restore point: replicas, restores and backups can go on from it.

    Example: understudy copy web-01 --from main --to dr-store --wait
    """
    from tasks import ask_recovery

    if plan:
        ask_recovery.plan_copy(vms, source, to, point, as_json=json)
    else:
        ask_recovery.copy(vms, source, to, point, wait=wait, as_json=json)
