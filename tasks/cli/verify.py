"""Distrust: replicas compared with their sync points."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.application import Json, Vms, Wait, app


@app.command()
def verify(
    vms: Vms,
    repair: Annotated[bool, typer.Option("--repair", help="Write what differs again from the store.")] = False,
    wait: Wait = False,
    target: Annotated[list[str] | None, typer.Option("--target", help="Only replicas at this target.")] = None,
    json: Json = False,
) -> None:
    """Compare every byte of the VMs' replicas with the restore points that they hold, by digests.

    What differs although nobody wrote to the replica was lost or changed by its storage: it is named by disk and
    offset, and stays in `understudy status` until it is mended. With --repair just that is written again.

    Example: understudy verify web-01 --repair --wait
    """
    from tasks import ask

    ask.verify(vms, repair=repair, wait=wait, targets=target or [], as_json=json)
