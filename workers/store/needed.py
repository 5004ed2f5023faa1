"""What the restore points of a store refer to: read so that no commit, retirement or exchange is missed."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from workers.models import RestorePoint
from workers.store import files
from workers.store.maps import Maps
from workers.store.points import Points

#: Names of segments that are held in memory, in bytes; above it they are in a temporary file. A name takes 64.
IN_MEMORY = 8 << 20


class Names:
    """Names of segments, each once, by VM: those of 5,000 VMs with 60 restore points each would be 300 MB of memory.

    Adding is for one VM at a time, for no two VMs share a segment.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)

    def __del__(self) -> None:
        self._file.close()

    def add(self, names: Iterable[str]) -> None:
        self._file.seek(0, 2)
        self._file.writelines(f"{name}\n".encode() for name in names)

    def __iter__(self) -> Iterator[str]:
        """One iteration at a time."""
        self._file.seek(0)
        for line in self._file:
            yield line[:-1].decode()


@dataclass
class Needed:
    """Every reference of the restore points: some 200 bytes for each pack and each file of maps."""

    segments: Names = field(default_factory=Names)
    packs: set[int] = field(default_factory=set)
    maps: set[int] = field(default_factory=set)
    #: runs that have committed, of those that were asked about
    runs: set[str] = field(default_factory=set)
    #: retired points whose numbers are still claimed
    marks: set[tuple[str, int]] = field(default_factory=set)

    def of_vm(self, names: Collection[str], maps: Maps) -> None:
        """The segments of one VM, in the order in which they are read fastest, and what they refer to."""
        ordered = sorted(names, key=lambda name: maps.parse(name)[1:])
        self.segments.add(ordered)
        for name in ordered:
            self.maps.add(maps.parse(name).file)
            self.packs.update(maps.packs(name))


def segments(point: RestorePoint) -> set[str]:
    return {name for disk in point.disks for name in disk.segments if name}


def needed(points: Points, maps: Maps, runs: Collection[str] = ()) -> Needed:
    """Every reference; of `runs` those that have committed. VM after VM, as no two share a segment.

    A VM's points are listed again after they were read, and who came meanwhile is read too: a point is retired only
    after a newer one was committed, so of those that share a segment one is read before it is retired. What other VMs
    commit in the meantime is by runs that prune and compaction wait for, or by such that avoid the files in question.
    """
    found = Needed()
    for vm in points.folders():
        seen, names = set[int](), set[str]()
        while fresh := set(points.sequences(vm)) - seen:
            one = partial(_add, found, points, vm, runs)
            for mine in files.together(points.root, one, sorted(fresh)):
                names |= mine
            seen |= fresh
        found.of_vm(names, maps)
    return found


def each(points: Points) -> Iterator[tuple[str, int]]:
    """VM and number of every point, as they are listed when it is the VM's turn."""
    for vm in points.folders():
        for seq in points.sequences(vm):
            yield vm, seq


def _add(found: Needed, points: Points, vm: str, runs: Collection[str], seq: int) -> set[str]:
    """The names of the point's segments."""
    point = points.read(vm, seq)
    if point is None:
        if points.mark(vm, seq):
            found.marks.add((vm, seq))
        return set()
    if point.run in runs:
        found.runs.add(point.run)
    return segments(point)
