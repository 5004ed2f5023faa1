"""What a person calls a store or a site: as it is configured, or a sentence with what there is."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from workers.errors import NotFound
from workers.run import Here
from workers.settings import Site, StoreSettings


def store(here: Here, name: str) -> StoreSettings:
    """Raises `NotFound`; `ConfigError` where the catalogue knows it, so that it was configured once."""
    known = here.settings.stores
    if name not in known and not any(name == each.store for each in here.catalogue.newest_points()):
        raise NotFound(unknown("store", name, known))
    return here.settings.store(name)


def site(here: Here, name: str) -> Site:
    """Raises the same."""
    known = here.settings.sites
    if name not in known and not any(name == vm.identity.site for vm in here.catalogue.inventory()):
        raise NotFound(unknown("site", name, known))
    return here.settings.site(name)


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"there is no {kind} {name!r}; configured are: {', '.join(sorted(known)) or 'none'}{meant}"
