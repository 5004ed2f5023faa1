"""Back a VM up: from a snapshot of it (the point) to its chain of restore points in a store (the target)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager

import structlog

from workers import approval, faults, helper, members, plan, prune, template_point
from workers.errors import (
    ChangeTrackingUnusable,
    Conflict,
    FencedOut,
    Refused,
    SnapshotLost,
    TaskStillRunning,
    Transient,
    UnderstudyError,
)
from workers.extents import EMPTY, Extents
from workers.links import toll, turn
from workers.models import BackupMode, Disk, PointDisk, RestorePoint, RunKind, RunReport, RunState, Slice
from workers.point import Reader
from workers.run import Here, Live, NotYet, OutOfTime, Shared, execute, storage_in_words
from workers.settings import Group
from workers.snapshot_point import SnapshotPoint, remove_snapshots
from workers.store import Store, StoreWriter
from workers.store.layout import SEGMENT
from workers.sync import bring_over, sync
from workers.vsphere import changes
from workers.vsphere.session import Session, connect

log = structlog.get_logger()

#: finished segments are made durable and checkpointed this often: what a killed worker repeats at most
FLUSH_EVERY = 20.0

#: times that a backup begins anew because its snapshot was taken away
AGAIN = 3


def target_of(store: str, vm: str) -> str:
    """What a backup run fences: the VM's chain in one store."""
    return f"chain:{store}:{vm}"


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a backup run."""
    return execute(here, run_id, RunKind.BACKUP, _backup)


def _backup(live: Live) -> RunReport:
    settings = live.here.settings
    _, store_name, uuid = live.run.target.split(":", 2)
    store = Store.at(settings.store(store_name))
    newest = store.newest(uuid)
    _take_turns(live, uuid)
    if live.recall("snapshot") is None:  # who has one must come to its end
        turn(live, store_name)
    session = connect(live.run.site, settings.site(live.run.site))
    if newest is not None and newest.run == live.run.id:  # stopped between the manifest and the catalogue
        store.abandon(live.run.id)  # perhaps also before its farewell to the store, for which prune would wait
        report = _committed(live, store_name, session, newest)
        _retire(live, store, store_name, uuid)
        return report
    parent = newest.id if newest is not None else ""
    if live.planned and live.recall("parent") != parent:
        live.forget_slices()
        live.note("the checkpoints of this run are given up: the store's newest restore point is another one now")
    live.remember(parent=parent)
    while True:
        point = template_point.take(live, session, uuid, quiesce=all(group.quiesce for group in _groups(live)))
        if newest is not None and (reason := point.unchanged_since(newest)) is not None:
            store.abandon(live.run.id)  # an earlier message may have registered it
            live.note(reason)
            return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
        try:
            with (
                store.writer(live.run.id, toll(live, store_name)) as writer,
                _given_up(live, store, session, uuid),
                closing(point),
            ):
                report = sync(point, Chain(live, store, store_name, writer, point, newest), live)
            break
        except SnapshotLost as err:
            _start_again(live, err)
        except Conflict:
            live.forget_slices()  # they build on something that is another by now
            raise
    _retire(live, store, store_name, uuid)
    return report


def help_out(here: Here, run_id: str) -> RunReport:
    """Work on free slices of a backup that another worker began."""
    return helper.help_out(here, run_id, RunKind.BACKUP, _help, run)


def _help(live: helper.Helper) -> None:
    _, store_name, uuid = live.run.target.split(":", 2)
    store = Store.at(live.here.settings.store(store_name))
    newest = store.newest(uuid)
    if live.recall("parent") != (newest.id if newest is not None else ""):
        raise helper.NotAsLeft
    turn(live, store_name)
    session = connect(live.run.site, live.here.settings.site(live.run.site))
    point = template_point.take(live, session, uuid, quiesce=False)  # the one that is there: a helper makes none
    try:
        with store.writer(live.run.id, toll(live, store_name)) as writer, closing(point):
            chain = Chain(live, store, store_name, writer, point, newest)
            bring_over(point, chain, live, chain.take())
    finally:
        if not live.here.catalogue.run(live.run.id).live:
            store.abandon(live.run.id)  # it ended before we registered: prune would wait for us


def _start_again(live: Live, err: SnapshotLost) -> None:
    """Once per disk that has to be compared after all, and a few times more: not for ever."""
    again = int(live.recall("again") or 0) + 1
    if again > AGAIN and live.recall("modes") == live.recall("modes before"):
        raise Refused(
            f"the backup of {live.run.vm} was started again {AGAIN} times and its snapshot was lost each time ({err}); "
            "find out who removes snapshots whose names begin with understudy/, e.g. a clean-up script"
        ) from err
    live.note(f"started again from a new snapshot: {err}")
    live.forget_slices()
    live.remember(**{"snapshot": None, "again": str(again), "modes before": live.recall("modes")})


def _take_turns(live: Live, uuid: str) -> None:
    """A VM has one snapshot of ours at a time: backups of it to several stores go one after the other.

    The older run goes first, so that they never wait for each other.
    """
    for store in live.here.settings.stores:
        for other in live.here.catalogue.runs(target=target_of(store, uuid), limit=1):
            if other.live and (other.created, other.id) < (live.run.created, live.run.id):
                raise NotYet(f"waits for the backup of this VM to the store {store} (run {other.id})")


@contextmanager
def _given_up(live: Live, store: Store, session: Session, uuid: str) -> Iterator[None]:
    """After an error that ends the run, remove its snapshot; the first error stays the one that is raised."""
    try:
        yield
    except (OutOfTime, Shared, Transient, Conflict, FencedOut, SnapshotLost, OSError):
        raise  # the run goes on, or is not ours any more
    except Exception:
        try:
            remove_snapshots(live, session, uuid)
        except UnderstudyError as second:
            log.warning(f"clean-up is left to the reaper: {second}", run=live.run.id, vm=live.run.vm)
        raise


class Chain:
    """A VM's restore points in one store, as the target of a backup."""

    def __init__(
        self,
        live: Live,
        store: Store,
        store_name: str,
        writer: StoreWriter,
        point: SnapshotPoint,
        parent: RestorePoint | None,
    ) -> None:
        self.live = live
        self.store = store
        self.store_name = store_name
        self.writer = writer
        self.point = point
        self.parent = parent
        self._before = {d.disk.id: d for d in parent.disks if not store.suspect(parent, d.disk.id)} if parent else {}
        self._how: dict[str, tuple[BackupMode, str]] = {}
        self._samples: dict[str, Extents] = {}
        self._exact: dict[str, Extents] = {}
        self._pending: list[Slice] = []
        self._flushed = time.monotonic()

    def nothing_new(self) -> str | None:
        return None  # a backup is asked for or due; that nothing changed is known only after change tracking answered

    def take(self) -> Mapping[str, Extents]:
        if not self.point.disks:
            why = "; ".join(self._unprotected()) or "it has none at all; give it one, or take it out of the group"
            raise Refused(f"{self.live.run.vm} has no disk that can be protected: {why}")
        self.point.choose()
        todo = {key: self._todo(disk) for key, disk in self.point.disks.items()}
        modes = " ".join(f"{key}={mode}" for key, (mode, _) in self._how.items())
        if self.live.planned and self.live.recall("modes") != modes:
            self.live.forget_slices()  # planned for a smaller part of a disk than must be read now
        if not self.live.planned:
            read = {
                mode: sum(todo[k].total for k, (m, _) in self._how.items() if m == mode) for mode in ("full", "compare")
            }
            self.live.may_read_all(approval.strictest(_groups(self.live)), first=read["full"], again=read["compare"])
        if self.live.recall("modes") != modes:
            self.live.remember(modes=modes)
        return todo

    def _todo(self, disk: Disk) -> Extents:
        """What of the disk must be read, and why, in words."""
        before = self._before.get(disk.id)
        if self.parent is None or before is None:
            why = "first backup of this VM" if self.parent is None else "the disk is new since the parent point"
            if self.parent is not None and any(part.disk.id == disk.id for part in self.parent.disks):
                why = f"what {self.parent.id} has of it is damaged in the store, so nothing is taken from there"
            self._decide(disk, "full", why)
            return self.point.reader(disk.id).allocated()
        known = self.live.recall(f"compare {disk.id}")
        reason = known or self.live.recall("full") or self.point.untracked or self._distrust(before, disk)
        answer = EMPTY
        if reason is None:
            try:
                assert before.disk.change_id is not None
                answer = changes.changed_areas(
                    self.point.session, self.point.state.identity.moref, self.point.moref, disk, before.disk.change_id
                )
            except ChangeTrackingUnusable as err:
                reason = str(err)
        if reason is not None:
            if reason != known:  # a later message may find nothing unusual any more
                self.live.remember(**{f"compare {disk.id}": reason})
            self._decide(disk, "compare", reason)
            return self.point.reader(disk.id).allocated() | self.store.allocated(before).clip(0, disk.capacity)
        self._samples[disk.id] = plan.sample(
            answer, disk.capacity, self.live.here.settings.tuning.sample, f"{self.live.run.id}/{disk.id}"
        )
        self._exact[disk.id] = plan.exact(answer, disk.capacity)
        self._decide(disk, "delta", f"change tracking since {self.parent.id}")
        return answer | self._samples[disk.id]

    def _distrust(self, before: PointDisk, disk: Disk) -> str | None:
        assert self.parent is not None
        return plan.distrust(
            self.parent,
            before,
            disk,
            self.point.host_build,
            self.point.config.hardware_version,
            self.point.tree,
            self.point.restored,
        )

    def _decide(self, disk: Disk, mode: BackupMode, reason: str) -> None:
        self._how[disk.id] = (mode, reason)
        if not self.live.planned:
            self.live.note(f"{disk.label}: {mode}, {reason}")

    def _unprotected(self) -> list[str]:
        return [f"{d.label} is not protected: {d.unprotected}" for d in self.point.config.disks if d.unprotected]

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        size = self.point.disks[disk].capacity
        for start in range(0, size, SEGMENT):
            end = min(start + SEGMENT, size)
            if todo.clip(start, end):
                yield start, end

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        disk = self.point.disks[part.disk]
        mode, _ = self._how[disk.id]
        segment = self.writer.segment(
            part.start // SEGMENT,
            size=disk.capacity,
            source=source,
            candidates=todo,
            parent=self._before.get(disk.id),
            threads=self.live.threads,
            mode=mode,
            exact=self._exact.get(disk.id, EMPTY),
            begin=part.done,
            made=part.made,
            until=self.live.deadline,
        )
        missed = segment.differing & self._samples.get(disk.id, EMPTY)
        if mode == "delta" and missed:
            self._mistrust(part, missed)
        sums = {"read": segment.read, "written": segment.changed, "stored": segment.stored}
        sums = {key: getattr(part, key) + more for key, more in sums.items()}
        self._pending.append(part.model_copy(update={**sums, "done": segment.done, "made": segment.name}))
        now = time.monotonic()
        if now > self.live.deadline or now - self._flushed > FLUSH_EVERY:
            self.flush()

    def _mistrust(self, part: Slice, missed: Extents) -> None:
        """A sampled block changed though change tracking did not say so: its whole answer is worthless."""
        disk = self.point.disks[part.disk]
        offset = next(iter(missed))[0]
        reason = (
            f"change tracking missed a changed block at byte {offset}, found by the sample; comparing the whole disk"
        )
        self.live.note(f"{disk.label}: {reason}")
        self.live.give_up_plan(part, **{f"compare {disk.id}": reason})
        raise SnapshotLost(reason)

    def flush(self) -> None:
        if self._pending:
            self.writer.flush()
            self.live.checkpoint(*self._pending)
            self._pending.clear()
        self._flushed = time.monotonic()

    def commit(self) -> RunReport:
        self.flush()
        self.point.close()
        self.live.check()
        if (why := self.point.lost()) is not None:
            raise SnapshotLost(why)
        made = self.live.here.catalogue.slices(self.live.run.id)
        seq = self.parent.seq + 1 if self.parent else 1
        self.live.note(*self._unprotected(), *self.point.config.dropped)
        nvram = self.point.nvram()
        restore_point = RestorePoint(
            realm=self.live.here.catalogue.realm,
            id=f"{seq:08d}-{secrets.token_hex(4)}",
            seq=seq,
            parent=self.parent.id if self.parent else None,
            vm=self.point.state.identity,
            run=self.live.run.id,
            fence=self.live.run.fence,
            created=self.live.here.catalogue.now(),
            data_time=self.point.taken,
            consistency=self.point.consistency,
            snapshot=self.point.moref,
            tree=self.point.tree,
            restored=self.point.restored,
            host_build=self.point.host_build,
            config=self.point.config,
            nvram=nvram,
            disks=tuple(
                self._point_disk(disk, [s for s in made if s.disk == disk.id]) for disk in self.point.disks.values()
            ),
            notes=tuple(self.live.here.catalogue.run(self.live.run.id).reasons),
        )
        faults.at("manifest.before")
        self.writer.commit(restore_point)
        faults.at("manifest.after")
        return _committed(self.live, self.store_name, self.point.session, restore_point)

    def _point_disk(self, disk: Disk, made: list[Slice]) -> PointDisk:
        """The parent's segments, with those that this run made in their places."""
        mode, reason = self._how[disk.id]
        count = -(-disk.capacity // SEGMENT)
        before = self._before.get(disk.id)
        names = list(before.segments[:count]) if before else []
        names += [""] * (count - len(names))
        for part in made:
            names[part.start // SEGMENT] = part.made
        return PointDisk(
            disk=disk,
            segments=tuple(names),
            segment_size=SEGMENT,
            mode=mode,
            reason=reason,
            read=sum(p.read for p in made),
            changed=sum(p.written for p in made),
            stored=sum(p.stored for p in made),
        )


def _committed(live: Live, store_name: str, session: Session, point: RestorePoint) -> RunReport:
    """The manifest is in the store: tell the catalogue, and take the snapshot away. Repeatable.

    A snapshot that stays grows on a production VM: so the run does not end well before it is gone.
    """
    live.here.catalogue.record_point(store_name, point)
    try:
        remove_snapshots(live, session, point.vm.instance_uuid)
    except TaskStillRunning:
        raise  # it may take hours, and it may fail at their end: looked at again and again, and no try is counted
    except UnderstudyError as err:
        live.note(f"the restore point {point.id} is made and good, but the VM's snapshot is not removed yet: {err}")
        raise
    mode = "full" if point.parent is None else "incremental"
    report = live.report("succeeded", f"{mode} backup, {point.consistency}", point.id)
    return live.finish(RunState.SUCCEEDED, report)


def _retire(live: Live, store: Store, store_name: str, uuid: str) -> None:
    """Retention. The run itself has ended well."""
    try:
        with storage_in_words():
            rules = prune.rules_of(live.here, store_name, uuid)
            for trouble in prune.retire(live.here, store_name, store, uuid, rules).troubles:
                live.note(trouble)
    except UnderstudyError as err:
        live.note(f"old restore points are kept until the next backup: {err}")


def _groups(live: Live) -> list[Group]:
    """The groups that back this VM up to this store, or did when the run began."""
    _, store_name, uuid = live.run.target.split(":", 2)
    return members.policies_of(live.here, uuid, lambda group: group.store == store_name)
