"""Stores: retention and freeing space now, figures, verification. All of it runs here, where the store is mounted."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, Wait, app

store = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The stores: figures, damage, space.")

Stores = Annotated[list[str] | None, typer.Argument(metavar="[STORE]...", help="Names of stores; none = all.")]


@app.command()
def prune(
    stores: Stores = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be retired.")] = False,
    json: Json = False,
) -> None:
    """Retire the restore points that no rule, replica or pin keeps, and free what only they needed.

    Example: understudy prune --dry-run
    """
    from tasks import stores as tables
    from tasks.app import here
    from workers import prune as retention

    names = tables.chosen(here(), stores)
    retired = [each for name in names for each in retention.store(here(), name, dry_run=dry_run)]
    freed = [] if dry_run else [retention.free(here(), name, compact=False) for name in names]
    if json:
        show.as_json({"dry_run": dry_run, "retired": retired, "freed": freed})
    else:
        tables.retired(retired, dry_run=dry_run)
        tables.freed(freed)
    if any(each.troubles for each in retired):
        raise typer.Exit(1)


@store.command("list")
def store_list(json: Json = False) -> None:
    """The configured stores, and whether they can be read from here.

    Example: understudy store list
    """
    from tasks import stores as tables
    from tasks.app import here

    found = tables.reachable(here())
    show.answer(found, tables.listed, in_json=json)


@store.command("stats")
def store_stats(
    stores: Stores = None,
    by_vm: Annotated[
        bool, typer.Option("--by-vm", help="Also the bytes that only one VM needs; takes longer.")
    ] = False,
    json: Json = False,
) -> None:
    """What is in a store, how well it is packed, and what could be freed. Reads no data, only maps.

    Example: understudy store stats main --by-vm
    """
    from tasks import stores as tables
    from tasks.app import here

    names = tables.chosen(here(), stores)
    found = {name: tables.opened(here(), name).stats(below=tables.below(here(), name), by_vm=by_vm) for name in names}
    if json:
        show.as_json({name: tables.as_plain(each) for name, each in found.items()})
    else:
        for name, each in found.items():
            tables.figures(name, each)


@store.command("verify")
def store_verify(
    stores: Stores = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read and check every blob of every pack.")] = False,
    vm: Annotated[str | None, typer.Option("--vm", help="Only the restore points of this VM.")] = None,
    on_worker: Annotated[
        bool, typer.Option("--on-worker", help="As a run at a worker of a site that backs up there; with --deep.")
    ] = False,
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Check every manifest, map and trailer, and say what is damaged. Fails when anything is.

    What is found is named with its file, its place in it and the restore points that are lost by it. With --deep a pack
    that is damaged is marked, so that the next backups store anew what they need of it.

    Example: understudy store verify main --deep
    """
    from tasks import stores as tables
    from tasks.app import here

    if on_worker:
        from tasks import ask

        return ask.verify_stores(tables.chosen(here(), stores), deep=deep, vm=vm, wait=wait, as_json=json)
    found = {name: tables.verified(here(), name, deep=deep, vm=vm) for name in tables.chosen(here(), stores)}
    if json:
        show.as_json(found)
    else:
        for name, damage in found.items():
            for sentence in damage:
                show.say(f"{name}: {sentence}")
            if not damage:
                show.say(f"{name}: nothing is damaged{'' if deep else ' (blobs were not read; --deep reads them)'}")
    if any(found.values()):
        raise typer.Exit(1)


@store.command("prune")
def store_prune(stores: Stores = None, json: Json = False) -> None:
    """Free what no restore point needs. Nothing is retired; `understudy prune` does both.

    Example: understudy store prune main
    """
    _free(stores, compact=False, json=json)


@store.command("compact")
def store_compact(stores: Stores = None, json: Json = False) -> None:
    """Move what is needed out of packs that are mostly dead, and free them. Safe beside everything.

    Example: understudy store compact main
    """
    _free(stores, compact=True, json=json)


def _free(stores: list[str] | None, *, compact: bool, json: bool) -> None:
    from tasks import stores as tables
    from tasks.app import here
    from workers import prune as retention

    found = [retention.free(here(), name, compact=compact, worth=0) for name in tables.chosen(here(), stores)]
    show.answer(found, tables.freed, in_json=json)


app.add_typer(store, name="store")
