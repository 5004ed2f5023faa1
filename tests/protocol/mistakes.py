"""Mistakes that are planted into the real code: the machine must find each of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from workers import plan
from workers.claims import Claims
from workers.disks.file import Descriptor, FileLock, FileWriter
from workers.extents import Extents
from workers.models import Cursor, HardwareChange, Slice
from workers.point import Reader
from workers.replica import Replica
from workers.replica_held import HeldReplica
from workers.replica_target import ReplicaTarget
from workers.run import Live
from workers.store import Store
from workers.transfer import copy


def checkpoint_before_write(patch: pytest.MonkeyPatch) -> None:
    def write(self: ReplicaTarget, part: Slice, todo: Extents, source: Reader) -> None:
        disk = self._disks()[part.disk]
        with FileLock(Descriptor(self._path(disk)).flat).lock(part.done, part.end - part.done, wait=self._wait()):
            self.live.check_slice(part)
            self._prove_unchanged()
            self.live.checkpoint(part.model_copy(update={"done": part.end}))
            with closing(self._opened(disk, part)) as destination:
                copy(source, destination, todo, threads=1)

    patch.setattr(ReplicaTarget, "write", write)


def cursor_written_late(patch: pytest.MonkeyPatch) -> None:
    """The replica goes on saying that it holds the old point while it is written."""
    real = HeldReplica._write

    def write(self: HeldReplica, cursor: Cursor) -> None:
        if cursor.state == "applying" and self.cursor is not None and self.cursor.state == "committed":
            cursor = cursor.model_copy(update={"state": "committed", "targets": ()})
        real(self, cursor)

    patch.setattr(HeldReplica, "_write", write)


def targets_shrink(patch: pytest.MonkeyPatch) -> None:
    real = HeldReplica._cursor

    def cursor(self: HeldReplica, **given: Any) -> Cursor:
        return real(self, **{**given, "targets": given["targets"][-1:]})

    patch.setattr(HeldReplica, "_cursor", cursor)


def only_from_the_base(patch: pytest.MonkeyPatch) -> None:
    """A delta is the difference to what was committed, not to what half-done runs left."""
    real = Replica._extents

    def extents(self: Replica, changes: Sequence[HardwareChange]) -> dict[str, Extents]:
        self.decision = self.decision._replace(since=self.decision.since[:1])
        return real(self, changes)

    patch.setattr(Replica, "_extents", extents)


def nobody_is_fenced(patch: pytest.MonkeyPatch) -> None:
    """Who slept writes on, whatever happened meanwhile, and takes nobody's content ids for a sign."""
    patch.setattr(Claims, "check_slice", lambda *_: None)
    patch.setattr(Live, "check", lambda *_: None)
    patch.setattr(ReplicaTarget, "_prove_unchanged", lambda self: self._reread())
    patch.setattr(ReplicaTarget, "_still", lambda *_: None)


def commits_too_early(patch: pytest.MonkeyPatch) -> None:
    """It does not look whether others are still at their slices."""
    patch.setattr(Claims, "all_finished", lambda _: True)


def checkpoints_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileWriter, "flush", lambda _: None)


def grown_disks_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Of a disk that grew the part that it had before is brought over."""
    real = Replica._extents

    def extents(self: Replica, changes: Sequence[HardwareChange]) -> dict[str, Extents]:
        had = {change.disk: self._disks()[change.disk].capacity for change in changes if change.kind == "grow disk"}
        return {disk: todo.clip(0, had.get(disk, 1 << 62)) for disk, todo in real(self, changes).items()}

    patch.setattr(Replica, "_extents", extents)


def grown_by_the_dead_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A disk that a run which died has made longer is taken for one that was as long in each state."""
    real = Replica._extents

    def extents(self: Replica, changes: Sequence[HardwareChange]) -> dict[str, Extents]:
        found = real(self, changes)
        if self.cursor is None or self.cursor.state == "committed" or self.cursor.base is None:
            return found
        base = next((point for point in self.points if point.id == self.cursor.base), None)
        had = {part.disk.id: part.disk.capacity for part in base.disks} if base is not None else {}
        return {disk: todo.clip(0, had.get(disk, 1 << 62)) for disk, todo in found.items()}

    patch.setattr(Replica, "_extents", extents)


def added_by_the_dead_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A disk that was added, or made anew, in a run that died is taken for one that has always been there."""
    real = HeldReplica._write

    def write(self: HeldReplica, cursor: Cursor) -> None:
        real(self, cursor.model_copy(update={"fresh": ()}))

    patch.setattr(HeldReplica, "_write", write)


def no_pins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "pin", lambda *_: None)


def touches_go_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "check_untouched", lambda *_, **__: None)
    patch.setattr(ReplicaTarget, "_still", lambda *_: None)


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    made.__name__: made
    for made in (
        checkpoint_before_write,
        cursor_written_late,
        targets_shrink,
        only_from_the_base,
        nobody_is_fenced,
        commits_too_early,
        checkpoints_what_is_not_synced,
        grown_disks_forgotten,
        grown_by_the_dead_forgotten,
        added_by_the_dead_forgotten,
        no_pins,
        touches_go_unseen,
    )
}
