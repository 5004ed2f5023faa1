"""What a compare finds: ranges that differ, and ranges that can not be compared because the store is damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from workers.errors import StoreDamaged
from workers.extents import GRANULE, Extents
from workers.point import Digested, Piece, Reader

#: ranges of a slice that are kept apart; more are joined over what lies between them, and that is written again too
MOST_RANGES = 1024
#: what can not be read from the store is left out in parts of this size
PART = 256 << 10


class Findings:
    """A Writer that writes nothing: it keeps which granules it was given."""

    size = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[tuple[int, int]] = []

    def write(self, pieces: Sequence[Piece]) -> None:
        with self._lock:
            self._found += [(piece.offset, piece.length) for piece in pieces]

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, granules that differ), in order; the nearest are joined if more than MOST_RANGES."""
        all_of = Extents.of(self._found)
        starts, ends = all_of.offsets, all_of.offsets + all_of.lengths
        counts = -(-all_of.lengths // GRANULE)
        if len(starts) > MOST_RANGES:
            gaps = starts[1:] - ends[:-1]
            borders = np.sort(np.argpartition(-gaps, MOST_RANGES - 2)[: MOST_RANGES - 1])
            first, last = np.concatenate(([0], borders + 1)), np.concatenate((borders, [len(starts) - 1]))
            starts, ends, counts = starts[first], ends[last], np.add.reduceat(counts, first)
        yield from zip(starts.tolist(), ends.tolist(), counts.tolist(), strict=True)


class Doubtful:
    """A restore point's reader that goes on where the store is damaged: what it can not read counts as not compared."""

    def __init__(self, inner: Reader, held: Reader) -> None:
        self.size = inner.size
        self._inner, self._held = inner, held
        self._lock = threading.Lock()
        #: (offset, length, why)
        self.unread: list[tuple[int, int, str]] = []

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._inner.allocated(start, end)

    def undecided(self, held: Sequence[Piece]) -> list[tuple[int, int]]:
        if not isinstance(self._inner, Digested):
            return [(piece.offset, piece.length) for piece in held]
        try:
            return self._inner.undecided(held)
        except StoreDamaged:
            return [(piece.offset, piece.length) for piece in held]  # each is read, and said if it can not be

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        try:
            return self._inner.read(batch)
        except StoreDamaged:
            return [piece for offset, length in Extents.of(batch).cut(PART) for piece in self._one(offset, length)]

    def _one(self, offset: int, length: int) -> list[Piece]:
        try:
            return self._inner.read([(offset, length)])
        except StoreDamaged as err:
            with self._lock:
                self.unread.append((offset, length, str(err)))
            return self._held.read([(offset, length)])

    def close(self) -> None: ...
