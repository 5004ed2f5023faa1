"""Ranges of a disk: sorted, disjoint (offset, length) in bytes, as two numpy arrays. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

#: Everything that is stored, compared and diffed is a multiple of this, at multiples of it: the page of most
#: guests' file systems.
GRANULE = 4096

#: Most ranges that a difference or a list of changes is kept in: 64 MiB, whatever the disk's size. Above it the nearest
#: ranges are joined: some bytes too many, never one too few. 10 TiB with 409 changes in each GiB are still exact.
MOST = 4 << 20
#: Ranges that become Python objects at a time: 160 bytes each
_SOME = 4096

Array = NDArray[np.int64]


class Extents:
    """An immutable set of bytes of a disk.

    Always sorted by offset, disjoint and merged (neighbours that touch are one). 16 bytes a range, so that a plan
    for millions of scattered ranges costs megabytes, not the gigabytes of a list of tuples.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, starts: Array, ends: Array) -> None:
        """Trusted: `starts` and `ends` are sorted, disjoint, merged. Use `of` or `from_arrays` for anything else."""
        self._starts = starts
        self._ends = ends

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Extents:
        """From (offset, length) pairs in any order, overlapping or not; empty ranges vanish."""
        table = np.array([(o, n) for o, n in ranges], dtype=np.int64).reshape(-1, 2)
        return cls.from_arrays(table[:, 0], table[:, 1])

    @classmethod
    def from_arrays(cls, offsets: Array, lengths: Array) -> Extents:
        """From parallel arrays in any order, overlapping or not."""
        if (lengths < 0).any() or (offsets < 0).any():
            raise ValueError("an extent has a negative offset or length")
        keep = lengths > 0
        starts, ends = offsets[keep], offsets[keep] + lengths[keep]
        if len(starts) == 0:
            return EMPTY
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.concatenate(([True], starts[1:] > ends[:-1]))
        last = np.concatenate((first[1:], [True]))
        return cls(starts[first], ends[last])

    @classmethod
    def whole(cls, size: int) -> Extents:
        return cls.of([(0, size)])

    @property
    def offsets(self) -> Array:
        return self._starts

    @property
    def lengths(self) -> Array:
        return self._ends - self._starts

    @property
    def total(self) -> int:
        """Bytes covered."""
        return int((self._ends - self._starts).sum())

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return len(self._starts) > 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, length) as Python integers."""
        for first in range(0, len(self._starts), _SOME):
            starts, ends = self._starts[first : first + _SOME], self._ends[first : first + _SOME]
            yield from zip(starts.tolist(), (ends - starts).tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Extents):
            return NotImplemented
        return np.array_equal(self._starts, other._starts) and np.array_equal(self._ends, other._ends)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        head = ", ".join(f"{o}+{n}" for o, n in list(self.slice(0, 4)))
        return f"Extents({head}{', ...' if len(self) > 4 else ''}; {len(self)} ranges, {self.total} bytes)"

    def slice(self, first: int, last: int) -> Extents:
        """The ranges number `first` up to but not including `last`."""
        return Extents(self._starts[first:last], self._ends[first:last])

    def __or__(self, other: Extents) -> Extents:
        if not other:
            return self
        if not self:
            return other
        return Extents.from_arrays(
            np.concatenate((self._starts, other._starts)),
            np.concatenate((self.lengths, other.lengths)),
        )

    def clip(self, start: int, end: int) -> Extents:
        """The part within [start, end)."""
        a = int(np.searchsorted(self._ends, start, side="right"))
        b = int(np.searchsorted(self._starts, end, side="left"))
        starts, ends = np.maximum(self._starts[a:b], start), np.minimum(self._ends[a:b], end)
        keep = ends > starts
        return Extents(starts[keep], ends[keep])

    def complement(self, size: int) -> Extents:
        """What of [0, size) is not covered."""
        inside = self.clip(0, size)
        starts = np.concatenate((np.array([0], dtype=np.int64), inside._ends))
        ends = np.concatenate((inside._starts, np.array([size], dtype=np.int64)))
        keep = ends > starts
        return Extents(starts[keep], ends[keep])

    def __and__(self, other: Extents) -> Extents:
        size = max(self.end, other.end)
        return (self.complement(size) | other.complement(size)).complement(size)

    def __sub__(self, other: Extents) -> Extents:
        return self & other.complement(max(self.end, other.end))

    @property
    def end(self) -> int:
        """The first byte after the last range; 0 when empty."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def align(self, grain: int, size: int) -> Extents:
        """Each range widened to multiples of `grain`, cut at `size`."""
        starts = self._starts // grain * grain
        ends = np.minimum(-(-self._ends // grain) * grain, size)
        return Extents.from_arrays(starts, ends - starts)

    def at_most(self, most: int = MOST) -> Extents:
        """Itself, or the smallest superset with so many ranges: they are joined where the gaps are smallest."""
        if len(self) <= most:
            return self
        gaps = self._starts[1:] - self._ends[:-1]
        kept = np.sort(np.argpartition(gaps, len(gaps) - most + 1)[len(gaps) - most + 1 :]) if most > 1 else gaps[:0]
        return Extents(
            np.concatenate((self._starts[:1], self._starts[kept + 1])),
            np.concatenate((self._ends[kept], self._ends[-1:])),
        )

    def cut(self, longest: int) -> Iterator[tuple[int, int]]:
        """(offset, length) with no length above `longest`; cuts lie at multiples of `longest` on the disk."""
        for offset, length in self:
            end = offset + length
            while offset < end:
                stop = min(end, (offset // longest + 1) * longest)
                yield offset, stop - offset
                offset = stop

    def batches(self, size: int, most: int = 4096) -> Iterator[list[tuple[int, int]]]:
        """Lists of (offset, length), in order, of up to `size` bytes and `most` ranges; no range above `size`."""
        batch: list[tuple[int, int]] = []
        held = 0
        for offset, length in self.cut(size):
            if batch and (held + length > size or len(batch) >= most):
                yield batch
                batch, held = [], 0
            batch.append((offset, length))
            held += length
        if batch:
            yield batch


class Gathering:
    """Ranges that come one after the other, in order and apart: 16 bytes each, and about `most` of them at once."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._starts, self._ends = array("q"), array("q")

    def add(self, offset: int, length: int) -> None:
        if len(self._starts) >= 2 * self._most:
            fewer = self.extents()
            self._starts, self._ends = array("q", fewer._starts.tobytes()), array("q", fewer._ends.tobytes())
        self._starts.append(offset)
        self._ends.append(offset + length)

    def extents(self) -> Extents:
        starts, ends = (np.frombuffer(each, np.int64) if each else EMPTY.offsets for each in (self._starts, self._ends))
        return Extents.from_arrays(starts, ends - starts).at_most(self._most)


EMPTY = Extents(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
