"""The configuration of this process: read once, looked at again before each task, and what became of it is recorded."""

from __future__ import annotations

import os
import socket
import time

import structlog
from pydantic import ValidationError

from workers import configuration, settings
from workers.catalogue import Catalogue
from workers.errors import ConfigError, UnderstudyError
from workers.settings.current import Current, Refused, Taken

log = structlog.get_logger()

#: seconds between two entries that a worker is still there
SEEN_EVERY = 600.0

_current: Current | None = None
#: what the catalogue has not been told yet
_untold: Taken | Refused | None = None
_seen_at = 0.0


def current() -> Current:
    global _current
    if _current is None:
        _current = Current(settings.load_with_origins())
    return _current


def forget() -> None:
    """As if this process had read nothing yet."""
    global _current, _untold
    _current = _untold = None


def begin(site: str | None, catalogue: Catalogue) -> None:
    """In a worker, before its pool: its children work by what is recorded here, and notice what is newer."""
    mine = current()
    mine.site = site
    _tell(catalogue, Taken(mine.loaded, ""))


def refresh(catalogue: Catalogue) -> bool:
    """Look at the files: whether another configuration is in force now than before. Said once per change."""
    global _untold, _seen_at
    mine = current()
    before = mine.settings
    change = mine.look()
    _untold = change or _untold
    try:
        if _untold is not None:
            _tell(catalogue, _untold)
            _untold = None
        elif time.monotonic() - _seen_at > SEEN_EVERY:
            catalogue.configuration_seen(worker(), str(mine.path.absolute()))
            _seen_at = time.monotonic()
    except UnderstudyError as err:
        log.warning(f"the catalogue could not be told which configuration is in force: {err}")
    return mine.settings is not before


def worker() -> str:
    return f"{current().site or 'control'}@{socket.gethostname()}"


def _tell(catalogue: Catalogue, change: Taken | Refused) -> None:
    path = str(current().path.absolute())
    if isinstance(change, Taken):
        loaded = change.loaded
        told = configuration.without_secrets(loaded.data)
        catalogue.configuration_taken(worker(), path, digest=loaded.digest, data=told, waits=change.waits)
        log.info(f"the configuration {path} is in force", digest=loaded.digest[:12], pid=os.getpid())
        if change.waits:
            log.warning(f"{path}: {change.waits}")
        return
    if catalogue.configuration_refused(worker(), path, mark=change.mark, sentence=change.sentence):
        log.error(f"the new configuration {path} is refused, the old one stays in force: {change.sentence}")
    _catch_up(catalogue, path)


def _catch_up(catalogue: Catalogue, path: str) -> None:
    """A child that took the place of a lost one knows what was in force when the worker started. Its siblings may have
    taken a newer one since, which cannot be read from the files any more.
    """
    mine = current()
    for known in catalogue.configurations():
        if (known.worker, known.path) != (worker(), path) or known.digest == mine.loaded.digest:
            continue
        try:
            found = configuration.restored(known, mine.settings)
        except (ConfigError, ValidationError) as err:
            log.warning(f"what is in force at {worker()} could not be taken from the catalogue: {err}")
            return
        mine.take(mine.loaded._replace(settings=found, data=known.data, digest=known.digest))
