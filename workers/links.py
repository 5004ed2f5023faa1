"""The limit of a link, shared by all who use it just now: leases in the catalogue say how many they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from workers import bandwidth
from workers.errors import FencedOut, UnderstudyError
from workers.run import Here, Live, NotYet
from workers.settings import Link

log = structlog.get_logger()

#: seconds between two looks at the catalogue, whatever is carried meanwhile
LOOK = 5.0
#: seconds after its last look that a worker counts as one of those who share
LEASE = 15.0
#: bytes a second that a worker's part should have: below it the batches that its threads have begun when its time is
#: up, some 30 MB, would not end before its task is killed, and nobody would come forward
LEAST = 100_000


class Share:
    """One worker's part of a link: its rate now, divided by how many there are. Who is late does not catch up."""

    def __init__(
        self,
        here: Here,
        name: str,
        link: Link,
        holder: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._here, self._name, self._link, self._holder = here, name, link, holder
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free = clock()
        self._looked: float | None = None
        self._many = 1
        #: bytes a second; None = no limit
        self.rate: float | None = None

    def wait(self, count: int, stopped: Callable[[], bool]) -> None:
        """Return when so many more bytes may have crossed, or nobody wants them any more. All threads in one line."""
        with self._lock:
            left = float(count)
            while left > 0 and not stopped():
                self._look()
                if self.rate is None:
                    return
                part = min(left, self.rate)  # a second's worth: a window may open, others may come
                now = self._clock()
                self._free = max(self._free, now) + part / self.rate
                left -= part
                self._sleep(self._free - now)

    def _look(self) -> None:
        now = self._clock()
        if self._looked is not None and now - self._looked < LOOK:
            return
        self._looked = now
        try:
            self._many = self._here.catalogue.share(f"link {self._name}", self._holder, LEASE)
            at = self._here.catalogue.now()
        except UnderstudyError as err:
            log.warning(
                f"of the link {self._name} the same part is used as before, nobody can say who shares it: {err}"
            )
            at = datetime.now(UTC)  # its windows open and close all the same
        limit = bandwidth.rate(self._link, at)
        self.rate = max(1.0, limit / self._many) if limit is not None else None


class Toll:
    """Called with a number of bytes before they cross: returns when it is their turn."""

    def __init__(self, live: Live, names: Sequence[str]) -> None:
        self._live = live
        links = live.here.settings.links
        self._shares = [Share(live.here, name, links[name], live.owner) for name in names if name in links]
        live.shares = live.shares or bool(self._shares)  # who has ended leaves its part to the others at once

    def __call__(self, count: int) -> None:
        for share in self._shares:
            share.wait(count, lambda: self._live.lost)
        if self._live.lost:
            raise FencedOut(f"the lease of run {self._live.run.id} ran out on this worker; it carries nothing more")


def turn(live: Live, *stores: str) -> None:
    """Raise `NotYet` where so many share a link that one more would leave all with too little. For who begins."""
    for name in _crossed(live, stores):
        limit = bandwidth.rate(live.here.settings.links[name], live.here.catalogue.now())
        if limit is None or limit >= 1000 * LEAST:
            continue
        others = set(live.here.catalogue.places().get(f"link {name}", ())) - {live.owner}
        if len(others) >= max(1, limit // LEAST):
            raise NotYet(
                f"waits for its turn on the link {name}: {len(others)} workers share its {limit} bytes a second"
            )


def _crossed(live: Live, stores: Sequence[str]) -> list[str]:
    return [name for store in stores for name in bandwidth.crossed(live.here.settings, store, live.run.site)]


def toll(live: Live, *stores: str) -> Toll:
    """For bytes between these stores and the workers of the run's site. What is fetched and sent over one link counts
    twice."""
    settings = live.here.settings
    names = _crossed(live, stores)
    for name in dict.fromkeys(names):
        limit = bandwidth.rate(settings.links[name], live.here.catalogue.now())
        live.note(f"over the link {name}, which all share: {f'{limit} bytes a second' if limit else 'no limit'} now")
    return Toll(live, names)
