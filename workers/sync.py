"""The one flow: bring a target up to a point. Backup and replication say which point and which target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Protocol

from workers.extents import Extents
from workers.models import RunReport, RunState, Slice
from workers.point import Reader
from workers.run import Live


class Point(Protocol):
    """A state of a VM that can be read."""

    def reader(self, disk: str) -> Reader: ...


class Target(Protocol):
    """Something that can be brought up to a point: a replica, or a VM's chain of restore points."""

    def nothing_new(self) -> str | None:
        """The reason why there is nothing to do, decided without touching a disk; None when there is."""

    def take(self) -> Mapping[str, Extents]:
        """Make the target ready to be written; what has to be brought over, by disk. Repeatable."""

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        """(start, end) of the slices of a disk, in order."""

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        """Bring the slice over, as far as time allows, and checkpoint it. Raises `OutOfTime` after the checkpoint."""

    def commit(self) -> RunReport:
        """Everything is on stable storage: say so where the truth lives. Repeatable."""


def sync(point: Point, target: Target, live: Live) -> RunReport:
    """Nothing new ends here; else take, slices, commit. Each step may be entered again after a crash."""
    reason = target.nothing_new()
    if reason is not None:
        live.note(reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
    todo = target.take()
    parts = live.slices(
        lambda: (
            Slice(run=live.run.id, disk=disk, start=start, end=end, done=start)
            for disk, extents in todo.items()
            for start, end in target.cut(disk, extents)
        )
    )
    for part in parts:
        if not part.finished:
            live.check()
            with closing(point.reader(part.disk)) as source:
                target.write(part, todo[part.disk].clip(part.done, part.end), source)
            live.spend()
    return target.commit()
