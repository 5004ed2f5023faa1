"""The target of a backup: a VM's chain of restore points in one store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

from workers import approval, faults, members, plan
from workers.errors import ChangeTrackingUnusable, Refused, SnapshotLost, TaskStillRunning, UnderstudyError
from workers.extents import EMPTY, Extents
from workers.models import BackupMode, Disk, PointDisk, RestorePoint, RunReport, RunState, Slice
from workers.point import Reader
from workers.run import Live
from workers.settings import Group
from workers.snapshot_point import SnapshotPoint, remove_snapshots
from workers.store import Store, StoreWriter
from workers.store.layout import SEGMENT
from workers.vsphere import changes
from workers.vsphere.session import Session

#: finished segments are made durable and checkpointed this often: what a killed worker repeats at most
FLUSH_EVERY = 20.0


class Chain:
    """Implements workers.sync.Target. It is made new in each message; what it decided is in the run's memory."""

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
        self._tracked: dict[str, Extents] = {}
        self._pending: list[Slice] = []
        self._flushed = time.monotonic()

    def nothing_new(self) -> str | None:
        return None  # a backup is asked for or due; that nothing changed is known only after change tracking answered

    def take(self) -> Mapping[str, Extents]:
        if not self.point.disks:
            why = "; ".join(self._unprotected()) or "it has none at all; give it one, or take it out of the group"
            raise Refused(f"{self.live.run.vm} has no disk that can be protected: {why}")
        self.point.choose()
        for disk in self.point.disks.values():
            self._choose(disk)
        modes = " ".join(f"{key}={mode}" for key, (mode, _) in self._how.items())
        if self.live.planned and self.live.recall("modes") != modes:
            self.live.forget_slices()  # planned for a smaller part of a disk than must be read now
        todo = {key: self._todo(disk) for key, disk in self.point.disks.items()}
        if not self.live.planned:
            read = {
                mode: sum(todo[k].total for k, (m, _) in self._how.items() if m == mode) for mode in ("full", "compare")
            }
            self.live.may_read_all(approval.strictest(groups(self.live)), first=read["full"], again=read["compare"])
        if self.live.recall("modes") != modes:
            self.live.remember(modes=modes)
        return todo

    def _choose(self, disk: Disk) -> None:
        """How the disk is read, and why, in words."""
        before = self._before.get(disk.id)
        if self.parent is None or before is None:
            why = "first backup of this VM" if self.parent is None else "the disk is new since the parent point"
            if self.parent is not None and any(part.disk.id == disk.id for part in self.parent.disks):
                why = f"what {self.parent.id} has of it is damaged in the store, so nothing is taken from there"
            self._decide(disk, "full", why)
            return
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
            return
        self._samples[disk.id] = plan.sample(
            answer, disk.capacity, self.live.here.settings.tuning.sample, f"{self.live.run.id}/{disk.id}"
        )
        self._exact[disk.id] = plan.exact(answer, disk.capacity)
        self._tracked[disk.id] = answer | self._samples[disk.id]
        self._decide(disk, "delta", f"change tracking since {self.parent.id}")

    def _todo(self, disk: Disk) -> Extents:
        """What of the disk must be read. What is allocated is asked for as a whole only once, to plan: of 10 TiB that
        takes 10,240 calls by VMware's library. From then on each slice asks for its own part (`_held`)."""
        if (tracked := self._tracked.get(disk.id)) is not None:
            return tracked
        if self.live.planned:
            return Extents.whole(disk.capacity)
        return self._held(disk, self.point.reader(disk.id), 0, disk.capacity)

    def _held(self, disk: Disk, source: Reader, start: int, end: int) -> Extents:
        """Where a disk that is read whole, or the parent point that it is compared with, may hold anything."""
        held = source.allocated(start, end)
        before = self._before.get(disk.id)
        return held if before is None else held | self.store.allocated(before, start, end)

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
        if mode != "delta":
            todo &= self._held(disk, source, part.done, part.end)
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
        return committed(self.live, self.store_name, self.point.session, restore_point)

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


def committed(live: Live, store_name: str, session: Session, point: RestorePoint) -> RunReport:
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


def groups(live: Live) -> list[Group]:
    """The groups that back this VM up to this store, or did when the run began."""
    _, store_name, uuid = live.run.target.split(":", 2)
    return members.policies_of(live.here, uuid, lambda group: group.store == store_name)
