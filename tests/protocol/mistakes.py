"""Mistakes that are planted into the real code: the machine must find each of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from workers import plan
from workers.disks.file import Descriptor, FileLock
from workers.extents import Extents
from workers.models import Cursor, HardwareChange, Slice
from workers.point import Reader
from workers.replica import Replica
from workers.replica_held import HeldReplica
from workers.replica_target import ReplicaTarget
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
        no_pins,
        touches_go_unseen,
    )
}
