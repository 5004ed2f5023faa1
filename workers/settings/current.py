"""The configuration in force in a process: a changed one is noticed, a wrong one is refused and the old one stays."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

from workers.errors import ConfigError
from workers.models import Model
from workers.settings.model import Settings
from workers.settings.read import Loaded, Seen, load_with_origins, look

#: Seconds that files must have been left alone before they are judged: whoever writes them may not be done yet, and the
#: first half of a file is often a valid one, in which groups are missing.
QUIET = 2.0

#: What is fixed when a process starts: its connections, Celery's limits, Beat's intervals.
AT_START = ("redis", "catalogue")
TUNING_AT_START = ("slice_time", "vcenter_wait", "dispatch_every", "reap_every", "inventory_every", "prune_every")


class Taken(NamedTuple):
    """A new configuration is in force. `waits`: what of it waits for a restart, as a sentence; or empty."""

    loaded: Loaded
    waits: str


class Refused(NamedTuple):
    """The newer configuration is not taken. `mark` tells one refused state of the files from another."""

    mark: str
    sentence: str


class Current:
    """What a process works by. `site`: the one whose work it does, if it is a worker of one."""

    def __init__(self, loaded: Loaded, *, site: str | None = None) -> None:
        self.loaded = loaded
        self.settings = loaded.settings
        self.site = site
        self.refused: Refused | None = None
        self._judged = loaded.seen
        #: what the files look like since when (time.monotonic): being written, perhaps
        self._fresh: tuple[tuple[Seen, ...], float] | None = None

    @property
    def path(self) -> Path:
        return self.loaded.path

    def look(self) -> Taken | Refused | None:
        """What has changed since the last look: a stat per file where nothing has."""
        seen = look(self.path)
        if seen == self._judged or not self._quiet(seen):
            return None
        try:
            found = load_with_origins(self.path)
        except ConfigError as err:
            return self._refuse(seen, str(err)) if look(self.path) == seen else None
        if not found.seen == look(self.path) == seen:
            return None  # written while it was read
        if self.site is not None and self.site not in found.settings.sites:
            return self._refuse(
                seen,
                f"sites.{self.site} is not in it, and this worker does the work of that site: stop the workers of "
                f"{self.site} first, or add sites.{self.site} again",
            )
        self._judged = seen
        if found.digest == self.loaded.digest and self.refused is None:
            return None  # touched, not changed
        self.refused = None
        return self.take(found)

    def take(self, found: Loaded) -> Taken:
        before, self.loaded = self.settings, found
        self.settings, waits = successor(before, found.settings)
        return Taken(found, waits)

    def _refuse(self, seen: tuple[Seen, ...], sentence: str) -> Refused:
        self._judged = seen
        self.refused = Refused(hashlib.sha256(repr(seen).encode()).hexdigest(), sentence)
        return self.refused

    def _quiet(self, seen: tuple[Seen, ...]) -> bool:
        """Left alone for long enough, by the files' own times or by ours: either may be of another clock."""
        if self._fresh is None or self._fresh[0] != seen:
            self._fresh = (seen, time.monotonic())
        newest = max((each.changed_ns for each in seen), default=None)
        if newest is not None and time.time() - newest / 1e9 >= QUIET:
            return True
        return time.monotonic() - self._fresh[1] >= QUIET


def successor(old: Settings, new: Settings) -> tuple[Settings, str]:
    """What of a new configuration can be in force at once, and a sentence about the rest (empty when there is none)."""
    waiting = []
    changes: dict[str, Any] = {}
    for key in AT_START:
        fields = [f"{key}_given", f"{key}_file", f"{key}_env"]
        kept = {field: getattr(old, field) for field in fields}
        if kept != {field: getattr(new, field) for field in fields}:
            waiting.append(key)
            changes |= kept
    kept = _differing(old.tuning, new.tuning, TUNING_AT_START)
    if kept:
        waiting += [f"tuning.{key}" for key in kept]
        changes["tuning"] = new.tuning.model_copy(update=kept)
    if not waiting:
        return new, ""
    return new.model_copy(update=changes), (
        f"{', '.join(waiting)} changed: that waits until the workers and Beat are started again; until then the old "
        f"{'value is' if len(waiting) == 1 else 'values are'} in force"
    )


def _differing(old: Model, new: Model, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: getattr(old, key) for key in keys if getattr(old, key) != getattr(new, key)}
