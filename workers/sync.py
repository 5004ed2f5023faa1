"""The one flow: bring a target up to a point. Backup and replication say which point and which target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Protocol

import structlog

from workers import spread
from workers.errors import BrokerUnreachable
from workers.extents import Extents
from workers.models import RunReport, RunState, Slice
from workers.point import Reader
from workers.run import Live, Shared, storage_in_words
from workers.settings import size

log = structlog.get_logger()


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

    def flush(self) -> None:
        """All slices that `write` was given are checkpointed when this returns."""

    def commit(self) -> RunReport:
        """Everything is on stable storage: say so where the truth lives. Repeatable."""


def sync(point: Point, target: Target, live: Live) -> RunReport:
    """Nothing new ends here; else take, slices, commit. Each step may be entered again after a crash."""
    reason = target.nothing_new()
    if reason is not None:
        live.note(reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
    todo = target.take()
    if live.plan_slices(lambda: _slices(live, target, todo)):
        _call_helpers(live, todo)
    bring_over(point, target, live, todo)
    if not live.all_finished():
        raise Shared
    return target.commit()


def bring_over(point: Point, target: Target, live: Live, todo: Mapping[str, Extents]) -> None:
    """Take slices until nobody has to begin any. Everybody works this way, the run's own worker and its helpers."""
    while (part := live.next_slice()) is not None:
        try:
            with storage_in_words(), closing(point.reader(part.disk)) as source:
                target.write(part, todo[part.disk].clip(part.done, part.end), source)
        except Exception as err:
            live.failed(part, err)
            raise
        live.spend()
    target.flush()


def _slices(live: Live, target: Target, todo: Mapping[str, Extents]) -> Iterator[Slice]:
    for disk, extents in todo.items():
        for start, end in target.cut(disk, extents):
            yield Slice(run=live.run.id, disk=disk, start=start, end=end, done=start)


def _call_helpers(live: Live, todo: Mapping[str, Extents]) -> None:
    """Once per plan: the reaper replaces who is lost. Without Redis the run goes on alone."""
    tuning = live.here.settings.tuning
    free = len(live.here.catalogue.slices(live.run.id))
    total = sum(extents.total for extents in todo.values())
    count = spread.worth(total, free, most=size(tuning.slice_size), workers=tuning.spread) - 1
    if count and live.here.call_helpers is not None:
        try:
            live.here.call_helpers(live.here.catalogue.run(live.run.id), count)  # with what was remembered since
        except BrokerUnreachable as err:
            log.warning(f"the run goes on without helpers: {err}", run=live.run.id, vm=live.run.vm)
