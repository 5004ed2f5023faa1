"""Getting data back: restores, rollbacks, and a catalogue that was lost."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, Wait, app
from workers.errors import BadInput

Vm = Annotated[str, typer.Argument(metavar="VM", help="Name or instance UUID of a VM.")]


@app.command()
def restore(
    vm: Vm,
    point: Annotated[
        str, typer.Option("--point", help="'newest', an id or its start, or a time: the newest of then or before.")
    ] = "newest",
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="To a new VM of this name.")] = "",
    over_original: Annotated[bool, typer.Option("--over-original", help="Write over the VM itself.")] = False,
    site: Annotated[str, typer.Option("--site", help="Where the new VM goes; default: where the source was.")] = "",
    target: Annotated[str, typer.Option("--target", help="Or to the place of this recovery target.")] = "",
    datastore: Annotated[str, typer.Option("--datastore")] = "",
    compute: Annotated[str, typer.Option("--compute", help="A cluster's or a host's name.")] = "",
    pool: Annotated[str, typer.Option("--pool", help="A resource pool, as a path.")] = "",
    folder: Annotated[str, typer.Option("--folder", help="A VM folder, as a path.")] = "",
    network: Annotated[
        list[str] | None, typer.Option("--network", metavar="A=B", help="Network of the source = network there.")
    ] = None,
    disk: Annotated[list[str] | None, typer.Option("--disk", help="Only this disk (label or id).")] = None,
    power_on: Annotated[bool, typer.Option("--power-on", help="Start it when it is done.")] = False,
    as_vm: Annotated[bool, typer.Option("--as-vm", help="Make a VM of what was a template.")] = False,
    same_identity: Annotated[
        bool, typer.Option("--same-identity", help="With the UUIDs and MACs of the original, which is gone.")
    ] = False,
    no_undo: Annotated[bool, typer.Option("--no-undo", help="Do not back up what is written over.")] = False,
    store: Annotated[str, typer.Option("--store", help="Only from this store.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Needed to write over the original.")] = False,
    wait: Wait = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done.")] = False,
    json: Json = False,
) -> None:
    """Restore a VM from a restore point: to a new VM, or over the original, which must be off.

    What the original holds is kept as a restore point first. A template comes back as a template.

    Example: understudy restore web-01 --point "2026-11-20 08:00" --to web-01-old --wait
    """
    from tasks import ask_recovery
    from workers.restore_order import Wish

    wish = Wish(
        vm=vm,
        point=point,
        store=store,
        to=to,
        over_original=over_original,
        site=site,
        target=target,
        datastore=datastore,
        compute=compute,
        pool=pool,
        folder=folder,
        networks=_networks(network or []),
        disks=tuple(disk or ()),
        power_on=power_on,
        as_vm=as_vm,
        same_identity=same_identity,
        undo=not no_undo,
    )
    if plan:
        return ask_recovery.plan_restore(wish, as_json=json)
    if over_original and not yes:
        raise BadInput(f"this writes over the disks of {vm}: look at it with --plan, then add --yes")
    ask_recovery.restore(wish, wait=wait, as_json=json)


def _networks(pairs: list[str]) -> dict[str, str]:
    if wrong := next((pair for pair in pairs if not all(pair.partition("=")[::2])), None):
        raise BadInput(f"--network {wrong!r}: write the source's network, =, the network there, e.g. 'VM Network=DR'")
    return {source: there for source, _, there in (pair.partition("=") for pair in pairs)}


@app.command()
def rollback(
    vm: Vm,
    to: Annotated[
        str | None, typer.Option("--to", metavar="POINT", help="As in `restore --point`; default: the one before.")
    ] = None,
    to_sync_point: Annotated[
        bool, typer.Option("--to-sync-point", help="Undo a sync that stopped half way: back to what it began from.")
    ] = False,
    target: Annotated[str | None, typer.Option("--target", help="Of which replica, where there are several.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read all of the replica, write what differs.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why --full; kept in the run.")] = "no reason given",
    wait: Wait = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done, and why.")] = False,
    json: Json = False,
) -> None:
    """Bring a VM's replica to an older restore point, or forwards again, by differences; then it stays there.

    The pair is paused until it is resumed, or the next sync would undo this. With --to-sync-point a half-applied
    replica becomes what it was before, without the store where that is out of reach and the old content was kept.

    Example: understudy rollback web-01 --to 00000041 --wait
    """
    from tasks import ask_recovery
    from tasks.cli.work import why_full

    if to_sync_point:
        if to is not None or plan or full:
            raise BadInput(
                "--to-sync-point goes with none of --to, --plan and --full: the replica itself says where it goes"
            )
        return ask_recovery.undo(vm, target, wait=wait, as_json=json)
    why = why_full(full, reason)
    if plan:
        ask_recovery.plan_rollback(vm, to, target, full=why, as_json=json)
    else:
        ask_recovery.rollback(vm, to, target, full=why, wait=wait, as_json=json)


@app.command()
def rebuild(
    from_stores: Annotated[bool, typer.Option("--from-stores", help="Only what the stores say.")] = False,
    from_replicas: Annotated[bool, typer.Option("--from-replicas", help="Only what the replicas say.")] = False,
    realm: Annotated[str, typer.Option("--realm", help="Which installation this was, where several are found.")] = "",
    end_lost_runs: Annotated[
        bool,
        typer.Option("--end-lost-runs", help="No worker of the lost installation runs any more: stores stop waiting."),
    ] = False,
    json: Json = False,
) -> None:
    """Fill a new, empty catalogue from the stores and the replicas, after the old one was lost. May be repeated.

    Run it after `understudy init` and before Beat and the workers are started.

    Example: understudy rebuild
    """
    from tasks.app import here
    from workers import rebuild as rebuilding

    both = from_stores == from_replicas
    made = rebuilding.rebuild(
        here(),
        from_stores=from_stores or both,
        from_replicas=from_replicas or both,
        realm=realm or None,
        end_lost_runs=end_lost_runs,
    )
    if json:
        show.as_json(made)
    else:
        for line in made.lines():
            show.say(line)
    if made.troubles:
        raise typer.Exit(1)
