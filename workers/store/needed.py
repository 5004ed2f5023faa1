"""What the restore points of a store refer to: read so that no commit, retirement or exchange is missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.errors import Transient
from workers.models import RestorePoint
from workers.store import files
from workers.store.maps import Maps
from workers.store.points import Points


@dataclass
class Needed:
    """Every reference of the restore points."""

    segments: set[str] = field(default_factory=set)
    packs: set[int] = field(default_factory=set)
    maps: set[int] = field(default_factory=set)
    #: runs that have committed
    runs: set[str] = field(default_factory=set)
    #: retired points whose numbers are still claimed
    marks: set[tuple[str, int]] = field(default_factory=set)


def segments(point: RestorePoint) -> set[str]:
    return {name for disk in point.disks for name in disk.segments if name}


def needed(points: Points, maps: Maps) -> Needed:
    """Every reference, from a listing that no commit or retirement disturbed.

    Names of points only ever appear (they are forgotten by prune alone), so two equal listings around the reading mean
    that whatever was committed meanwhile was read, or that the point it replaced was.
    """
    for _ in range(20):
        before = _listing(points)
        found = Needed()
        for vm, sequences in before.items():
            for seq in sequences:
                _add(found, points, vm, seq)
        if _listing(points) == before:
            for name in found.segments:
                found.maps.add(maps.parse(name).file)
                found.packs.update(maps.packs(name))
            return found
    raise Transient(f"the restore points in {points.root} change faster than they can be read; it is tried later")


def each(points: Points) -> Iterator[tuple[str, int]]:
    """VM and number of every point, as they are listed now."""
    for vm, sequences in _listing(points).items():
        for seq in sequences:
            yield vm, seq


def _listing(points: Points) -> dict[str, list[int]]:
    return {vm: points.sequences(vm) for vm in files.names(points.root)}


def _add(found: Needed, points: Points, vm: str, seq: int) -> None:
    point = points.read(vm, seq)
    if point is None:
        if points.mark(vm, seq):
            found.marks.add((vm, seq))
        return
    found.runs.add(point.run)
    found.segments.update(segments(point))
