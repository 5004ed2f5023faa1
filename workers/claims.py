"""The slices that one execution has claimed: taken one by one, checked before each write, checkpointed, let go."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from workers import faults, quarantine
from workers.carriers import CARRIERS, hosts_lock, one_writer
from workers.catalogue import PLAN
from workers.errors import Conflict, FencedOut, NotFound, Transient, UnderstudyError
from workers.models import Run, Slice
from workers.settings import seconds

if TYPE_CHECKING:
    from workers.run import Here


def over(here: Here, run: str) -> bool:
    """Whether the run is known to have ended. One that this catalogue does not know may be another realm's."""
    try:
        return not here.catalogue.run(run).live
    except NotFound:
        return False


class Claims:
    """Nobody writes a slice that it has not claimed, not even the worker that has the run."""

    def __init__(self, here: Here, run: Run, owner: str) -> None:
        self.here = here
        self.run = run
        self.owner = owner
        self._memory = dict(run.memory)
        self._lost = threading.Event()
        #: (disk, start) of what we have claimed and neither finished nor let go
        self._held: set[tuple[str, int]] = set()
        #: whether it has places on a host, a datastore, a vCenter; and keeps them for the run's next message
        self.placed = self.stays = False
        #: since when it waits for its places, so that who came later lets it go first; None = it does not wait in line
        self.waits_since: datetime | None = run.created
        #: whether it counts as one of those who share a link
        self.shares = False

    @property
    def place_holder(self) -> str:
        """Who has the places: the run, so that its next message finds them."""
        return self.run.id

    def recall(self, key: str) -> str | None:
        return self._memory.get(key)

    def over(self, run: str) -> bool:
        return over(self.here, run)

    @property
    def one_writer(self) -> bool:
        """Whether one worker at a time writes all of the VM, for hosts that write disks give them other content ids."""
        return one_writer(self.run, self.recall(CARRIERS))

    @property
    def planned(self) -> bool:
        return self.recall(PLAN) is not None

    @property
    def lost(self) -> bool:
        """Whether another worker may have gone on with any of it: then what is being done is in vain."""
        return self._lost.is_set()

    def next_slice(self) -> Slice | None:
        """Ours from now on; None when nobody has to begin any."""
        tuning = self.here.settings.tuning
        part = self.here.catalogue.claim_slice(
            self.run.id,
            self.owner,
            seconds(tuning.lease),
            fence=self.run.fence,
            plan=self.recall(PLAN) or "",
            tries=quarantine.tries("disk locked" if hosts_lock(self.recall(CARRIERS)) else "", tuning),
        )
        if part is not None:
            self._held.add((part.disk, part.start))
            faults.at("slice.claimed")
        return part

    def check_slice(self, part: Slice) -> None:
        """Raise `FencedOut` unless we may write this slice. To be asked under the lock of its range."""
        if self._lost.is_set():
            raise FencedOut(
                f"the lease of a slice of run {self.run.id} ran out on this worker; another one may have gone on"
            )
        self.here.catalogue.check_slice(self.run.id, self.owner, self.run.fence, part)

    def checkpoint(self, *parts: Slice) -> None:
        """All below `done` of each part is on stable storage."""
        faults.at("checkpoint.before")
        for part in parts:
            self.here.catalogue.checkpoint(self.run.id, self.run.fence, part, owner=self.owner)
            if part.finished:
                self._held.discard((part.disk, part.start))
        faults.at("checkpoint.after")

    def failed(self, part: Slice, err: Exception) -> None:
        """The slice waits for a later try. What ends the run is left to whoever ends it."""
        if not isinstance(err, Transient | Conflict):
            return
        self._held.discard((part.disk, part.start))
        with suppress(UnderstudyError):  # the first error is the one to be told; the lease ends by itself
            known = {(each.disk, each.start): each.errors for each in self.here.catalogue.slices(self.run.id)}
            errors = known.get((part.disk, part.start), 0) + 1
            pause = quarantine.pause(err.family, self.here.settings.tuning, errors)
            self.here.catalogue.slice_failed(part, self.owner, str(err), pause)

    def let_go(self) -> None:
        """Of all slices that we have not finished. What cannot be said now, the end of their leases says."""
        if self._held:
            self._held.clear()
            with suppress(UnderstudyError):
                self.here.catalogue.release_slices(self.run.id, self.owner)
        if self.shares:
            with suppress(UnderstudyError):
                self.here.catalogue.leave_places(self.owner)
        if self.placed and not self.stays:
            with suppress(UnderstudyError):
                self.here.catalogue.leave_places(self.place_holder)

    def all_finished(self) -> bool:
        return all(part.finished for part in self.here.catalogue.slices(self.run.id))

    def still_held(self) -> bool:
        """Whether nobody took any of our slices. A look only: a writer that is stopped must not hold up the others."""
        if not (held := set(self._held)):
            return True
        ours = {(s.disk, s.start) for s in self.here.catalogue.slices(self.run.id) if s.owner == self.owner}
        return not (held - ours) & self._held  # what was let go meanwhile is not lost
