"""Bring a half-applied replica back to the sync point that it held: from the store, or from what was kept on its site.

A sync that stopped leaves a mixture, and its cursor says so. The next sync completes it; this takes it back. From the
store where that is at hand by the configuration, for it also gives back what no undo file can (the size of a disk that
was grown); else from the undo files, for which the replica's vCenter, its datastores and the catalogue are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from workers import faults, nvram, plan, sources, undo_kept
from workers.disks.file import Descriptor, FileWriter, datastore_file
from workers.disks.saving import ReadWriter
from workers.disks.undo_file import UndoFile
from workers.errors import ConfigError, NotFound, Refused, StoreDamaged, UnderstudyError
from workers.extents import Extents
from workers.links import toll
from workers.members import last_groups_of
from workers.models import Cursor, Disk, HardwareChange, Pair, RestorePoint, RunReport, RunState, Slice, VmConfig
from workers.plan import Decision
from workers.point import BATCH, Reader
from workers.replica import read_cursor
from workers.replica_held import BACK_TO, SOURCE, nonce
from workers.replica_target import ReplicaTarget
from workers.run import Here, Live
from workers.store import Store
from workers.stored_point import StoredPoint
from workers.sync import sync
from workers.transfer import differing
from workers.undo_kept import Kept
from workers.vsphere import inventory
from workers.vsphere.building import NewDisk
from workers.vsphere.session import connect

#: instead of a restore point's id, in a run's memory: the sync point that the replica held before a run stopped
SYNC_POINT = "the sync point"

#: in a run's memory, once it was decided how it goes back to the sync point: later messages of the run do the same
WAY = "undone by"


def cursor_of(here: Here, pair: Pair) -> Cursor:
    """What the replica itself says that it holds. Needs its vCenter alone. Raises `NotFound`, `Foreign`."""
    session = connect(pair.site, here.settings.site(pair.site))
    found = inventory.find_uuid(session, pair.replica) if pair.replica is not None else None
    state = inventory.vm_state(session, found.identity.moref) if found is not None else None
    cursor = read_cursor(state)
    if state is None or cursor is None:
        raise NotFound(f"there is no replica of {pair.vm} at {pair.site} that says what it holds; nothing was written")
    plan.check_ours(cursor, state, realm=here.catalogue.realm, pair=pair.id, source=pair.source)
    return cursor


def roll_back(live: Live, pair: Pair, *, first: Callable[[str], Pair] | None = None) -> RunReport:
    """Bring the pair's replica from `applying A -> {...}` back to A; one that is committed stays as it is.

    `first`: what is done once it is certain that this can be, before anything is written; it is given A. Repeatable
    after a crash at any step. Ends the run. Raises `Refused` where A can not be had any more.
    """
    cursor = cursor_of(live.here, pair)
    if cursor.state == "committed":
        target = ReplicaUndone(live, pair)
        if target.committed_by(live.run.id):  # stopped between the cursor and the catalogue
            return target.conclude()
        target.tidy()
        reason = f"the replica holds {cursor.base}, and nothing half-applied; nothing was done"
        live.note(reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
    if cursor.base is None:
        raise Refused(
            f"the first sync of {pair.vm} was never committed, so there is nothing to go back to; nothing was written. "
            f"`understudy sync {pair.vm}` goes on with it"
        )
    if live.recall(WAY) is None:
        live.remember(**{WAY: _way(live, pair, cursor)})
    if first is not None:
        pair = first(cursor.base)
    if live.recall(WAY) == "store":
        live.remember(**{BACK_TO: cursor.base})
        by_store = ReplicaTarget(live, pair)
        return sync(StoredPoint(by_store.store, by_store.goal, toll(live, by_store.source)), by_store, live)
    target = ReplicaUndone(live, pair)
    return sync(target.old, target, live)


def _way(live: Live, pair: Pair, cursor: Cursor) -> Literal["store", "undo"]:
    """By a store where one is at hand, else by what was kept, else by a store that answers all the same."""
    groups = last_groups_of(live.here, pair.source).values()
    names = sources.order(groups, pair.recovery_target, pair.store)
    why_not: dict[str, str] = {}

    def by_store(some: Iterable[str], why: str = "") -> bool:
        for name in some:
            said = why_not.get(name) or _unreadable(live.here, pair, cursor, name, several=len(names) > 1)
            if said is None:
                live.remember(**{SOURCE: name})
                live.note(f"back to {cursor.base} by the store {name}{why}")
                return True
            why_not[name] = said
        return False

    if by_store(name for name in names if live.here.settings.store(name).site in ("", pair.site)):
        return "store"
    try:
        if not cursor.undo:
            raise NotFound("nothing was kept at the replica's site")
        mounts = live.here.settings.site(pair.site).datastores
        kept = undo_kept.load(mounts, cursor.undo)
        size = sum(found.total for found in undo_kept.saved(mounts, kept).values())
    except (NotFound, StoreDamaged, ConfigError) as err:
        if by_store(names, f", for {err}"):
            return "store"
        stores = "; and ".join(f"the store {name} can not give it ({said})" for name, said in why_not.items())
        raise Refused(
            f"the replica of {pair.vm} can not go back to {cursor.base}: {err}; and {stores}. Nothing was written. "
            f"When the store answers again, `understudy sync {pair.vm}` completes the replica"
        ) from err
    live.note(f"back to {cursor.base} by what was kept of it beside the replica's disks: {size} bytes were overwritten")
    return "undo"


def _unreadable(here: Here, pair: Pair, cursor: Cursor, name: str, *, several: bool) -> str | None:
    """Why the store can not give the point that the replica held; None when it can."""
    try:
        store = Store.at(here.settings.store(name))
        if store.id != cursor.store and not several:
            return "it is another store than the one that the replica was synced from"
        if all(point.id != cursor.base for point in store.points(pair.source)):
            return f"it has no restore point {cursor.base} any more"
    except UnderstudyError as err:
        return str(err)
    except OSError as err:
        return f"{err.filename or name}: {err.strerror}"
    return None


class OldContent:
    """What the replica's disks held where they were overwritten, readable."""

    def __init__(self, files: Mapping[str, str], live: Live, pair: Pair) -> None:
        self._files = files
        self._mounts = live.here.settings.site(pair.site).datastores

    def reader(self, disk: str) -> Reader:
        return UndoFile(datastore_file(self._mounts, self._files[disk]))


class ReplicaUndone(ReplicaTarget):
    """A half-applied replica as the target of its own old content. No store is looked at."""

    kept: Kept

    def __init__(self, live: Live, pair: Pair) -> None:
        super().__init__(live, pair)
        files: dict[str, str] = {}
        if (kept := self._kept()) is not None:
            self.kept = kept
            files = {part.source: part.undo for part in kept.disks}
        self.old = OldContent(files, live, pair)

    def tidy(self) -> None:
        """Nothing is half-applied: what a sync kept that ended before its cursor said so goes."""
        with self._locked():
            self._reread()
            self._over()

    def _goals(self, goal: str | None, back_to: str | None) -> tuple[list[RestorePoint], RestorePoint | None]:
        return [], None

    def _judge(self, discard: bool, full: str | None, back_to: str | None) -> Decision:
        self._prove_ours(discard=False)
        return Decision("delta", "what was overwritten since the sync point comes back")

    def take(self) -> Mapping[str, Extents]:
        assert self.state is not None and self.cursor is not None
        if self.live.planned and not self._begun():
            self.live.forget_slices()
            self._note("the checkpoints of this run are given up: the replica is not as they left it")
        self._begin()
        self._say_half_applied()
        with self._locked():
            # Under the lock: a worker of the dead run that still held its range has saved and written by now.
            todo = undo_kept.saved(self.site.datastores, self.kept)
            self._unseal()
            self._own(tuple(self._back()))
            moref = self.state.identity.moref
            nvram.write(self.kept.nvram, self.session, moref, self.site.datastores, self._note)
        return todo

    def _begin(self) -> None:
        """The cursor goes on saying what it says, under our fence."""
        assert self.cursor is not None
        old = self.cursor
        if old.fence > self.live.run.fence or (old.fence == self.live.run.fence and old.run != self.live.run.id):
            self.live.refence(old.fence)
        if not self._begun():
            fresh = {"fence": self.live.run.fence, "run": self.live.run.id, "nonce": nonce()}
            self._write(old.model_copy(update=fresh))
        faults.at("cursor.applying")

    def _back(self) -> Iterator[HardwareChange]:
        """Disks that were added since go; those that were taken off come back, with their files; sizes stay."""
        held = self._disks()
        there = {kept.source for source, disk in held.items() if (kept := self.kept.of(disk)) and kept.source == source}
        for source, disk in held.items():
            if source not in there:
                yield HardwareChange(kind="remove disk", disk=source, label=disk.label, capacity=disk.capacity)
                self._note(f"hardware: remove disk {disk.label}, which {self.kept.base} does not have")
        for part in self.kept.disks:
            if part.source not in there:
                size = Descriptor(self._path(part.disk)).size
                yield HardwareChange(kind="add disk", disk=part.source, label=part.disk.label, capacity=size)
                self._note(f"hardware: add disk {part.disk.label} again, from {part.disk.file}")
            else:
                size = held[part.source].capacity
            if size > part.disk.capacity:
                self._note(
                    f"{part.disk.label} keeps its {size} bytes, {size - part.disk.capacity} more than at "
                    f"{self.kept.base}: a disk can not be made smaller. What is beyond reads as zeroes"
                )

    def _added(self, changes: object) -> tuple[VmConfig, dict[str, NewDisk]]:
        return self.kept.source_config(), {part.source: NewDisk(attach=part.disk.file) for part in self.kept.disks}

    def _opened(self, disk: Disk, part: Slice) -> ReadWriter:
        """Nothing is kept of what is written over now: that is what a later state left."""
        return FileWriter(self._path(disk), holes=disk.thin)

    def _read_back(self, destination: Reader, source: Reader, written: Extents) -> None:
        """What came back is compared with what was kept, whose digests are checked as it is read."""
        faults.at("undo.restored")
        for batch in written.batches(BATCH):
            if wrong := differing(source.read(batch), destination.read(batch)):
                raise StoreDamaged(
                    f"what was written back at {wrong[0].offset} of a disk of {self.pair.replica_name} reads "
                    "otherwise; the replica stays half-applied. Check the datastore, then ask again"
                )

    def commit(self) -> RunReport:
        assert self.cursor is not None
        with self._locked():
            self.live.check()
            self._prove_unchanged()
            faults.at("commit.before")
            gone = {"targets": (), "taking": "", "fresh": (), "compare": "", "undo": ""}
            ours = {"fence": self.live.run.fence, "run": self.live.run.id, "nonce": nonce()}
            self._write(self.cursor.model_copy(update={"state": "committed", **gone, **ours}))
            faults.at("commit.after")
        return self.conclude()

    def _unpin_others(self, kept: str) -> None:
        """The pins of what was half-applied stay until the next sync: the store may be out of reach."""
