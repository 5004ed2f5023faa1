"""The pins of a pair in the stores that it does not follow now: one that was exchanged would be held for ever."""

from __future__ import annotations

from workers.errors import UnderstudyError
from workers.models import Pair
from workers.run import Here, storage_in_words
from workers.store import Store


def unpin_elsewhere(here: Here, pair: Pair, *, kept: str = "") -> None:
    """In every other store that can be reached from here; one that can not be is looked at again by the next commit.

    `kept`: the id of the store that the pair follows, for that may be configured under a second name.
    """
    holder = f"{here.catalogue.realm}:{pair.id}"
    for name, configured in here.settings.stores.items():
        if name == pair.store:
            continue
        try:
            with storage_in_words():
                store = Store.at(configured)
                for point, holders in store.pins(pair.source).items() if store.id != kept else ():
                    if holder in holders:
                        store.unpin(pair.source, point, holder)
        except UnderstudyError:
            continue  # a store need not be mounted at every site
