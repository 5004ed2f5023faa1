"""The pins of a pair in the stores that it does not follow now: one that was exchanged would be held for ever."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from workers.errors import NotFound, UnderstudyError
from workers.models import Pair
from workers.run import Here, storage_in_words
from workers.store import Store


def unpin_elsewhere(
    here: Here, pair: Pair, read: str = "", *, kept: str = "", hold: str = "", also: Collection[str] = ()
) -> None:
    """In every other store that can be reached from here; one that can not be is looked at again by the next commit.

    `read`: the store that the pair was brought up from, and `kept` its id, for that may be configured under two names.
    In those of `also`, which the pair may be brought up from next, `hold` stays pinned where it is there: a difference
    needs it.
    """
    holder = f"{here.catalogue.realm}:{pair.id}"
    for name, configured in here.settings.stores.items():
        if name == (read or pair.store):
            continue
        try:
            with storage_in_words():
                store = Store.at(configured)
                if store.id != kept:
                    _hold(store, pair.source, holder, hold if name in also else "")
        except UnderstudyError:
            continue  # a store need not be mounted at every site


def _hold(store: Store, vm: str, holder: str, point: str) -> None:
    """Of all points this one alone, if it is there."""
    if point:
        with suppress(NotFound):
            store.pin(vm, point, holder)
    for held, holders in store.pins(vm).items():
        if held != point and holder in holders:
            store.unpin(vm, held, holder)
