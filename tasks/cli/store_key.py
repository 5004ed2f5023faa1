"""Keys of encrypted stores: make one, exchange one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json
from tasks.cli.store import Stores, store

key = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keys of encrypted stores.")


@key.command("new")
def key_new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the key goes; nothing may be there.")],
    json: Json = False,
) -> None:
    """Write a new key into a file that its owner alone can read. A file that is there is never overwritten.

    Keep a copy of it outside of what the store is for: without its key nothing in a store can be read.

    Example: understudy store key new /etc/understudy/secrets/store-key
    """
    from workers import store_keys

    made = store_keys.new(file)
    if json:
        show.as_json({"file": str(file), "key": made})
    else:
        show.say(f"wrote the key {made} into {file}. Keep a copy of it elsewhere: without it a store cannot be read")


@key.command("list")
def key_list(stores: Stores = None, json: Json = False) -> None:
    """Which keys open each store, by their ids, and which of them is configured here.

    Example: understudy store key list main
    """
    from tasks import stores as tables
    from tasks.app import here
    from workers import store_keys

    found = [store_keys.report(here().settings, name) for name in tables.chosen(here(), stores)]
    show.answer(found, tables.opened_by, in_json=json)


@key.command("rotate")
def key_rotate(
    name: Annotated[str, typer.Argument(metavar="STORE", help="The store's name.")],
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", metavar="FILE", help="Holds the key that opens it as well now.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Only the configured key opens it any more: end the others.")
    ] = False,
    json: Json = False,
) -> None:
    """Go from one key to another: first both open the store; with --finish, only the one that is configured.

    Between the two, configure the new key at every worker. Nothing but the store's own key is sealed anew, whatever the
    store's size, and workers that have it open go on.

    Example: understudy store key rotate main --new-key-file /etc/understudy/secrets/store-key-2
    """
    from tasks import stores as tables
    from tasks.app import here
    from workers import store_keys
    from workers.errors import BadInput

    if finish == (new_key_file is not None):
        raise BadInput("say either --new-key-file FILE, to let another key open the store, or --finish")
    (chosen,) = tables.chosen(here(), [name])
    if new_key_file is not None:
        found = store_keys.add(here().settings, chosen, new_key_file)
    else:
        found = store_keys.finish(here().settings, chosen)
    if json:
        show.as_json(found)
    elif new_key_file is not None:
        show.say(
            f"{name}: opened by {' and '.join(found.keys)} now. Set stores.{name}.key_file to the new key at every "
            f"worker and wherever commands run, then: understudy store key rotate {name} --finish"
        )
    else:
        ended = f"no longer by {', '.join(found.ended)}" if found.ended else "as before"
        show.say(f"{name}: opened by {', '.join(found.keys)} alone, {ended}")


store.add_typer(key, name="key")
