"""Where two disks of a store differ, by their maps alone: equal names are skipped, the rest is compared in batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.errors import StoreDamaged
from workers.extents import EMPTY, GRANULE, MOST, Extents
from workers.models import PointDisk
from workers.store import layout
from workers.store.layout import BLOCK, SEGMENT
from workers.store.maps import GRANULES, KEEP, Maps, SegmentMap, pack_numbers

Ints = NDArray[np.int64]

#: Segments of each side that are compared at a time. 16 segments of 4,096 steps are 0.8 MB a side: they stay in
#: the processor's cache, and numpy's cost per call (some 5 us) no longer shows.
TOGETHER = 16

#: How far back a diff follows what segments say of their origin: each step costs a read of 4 KiB a segment, some 50 us;
#: to compare two segments step by step takes some 300 us.
GENERATIONS = 4

_BLOCK_SHIFT = (BLOCK // GRANULE).bit_length() - 1


class Steps(NamedTuple):
    """The steps of several segments in one line: GRANULES each, one after the other."""

    #: one more than places: the last is the end
    starts: NDArray[np.uint32]
    places: NDArray[np.uint64]


def diff(maps: Maps, a: PointDisk | None, b: PointDisk) -> Extents:
    names_a = a.segments if a is not None else ()
    changed = [
        (i, names_a[i] if i < len(names_a) else "", name)
        for i, name in enumerate(b.segments)
        if _content(name) != (_content(names_a[i]) if i < len(names_a) else "")
    ]
    #: of one segment
    most = max(1, MOST // max(1, len(changed)))
    batches = [changed[i : i + TOGETHER] for i in range(0, len(changed), TOGETHER)]

    def one(batch: Sequence[tuple[int, str, str]]) -> tuple[Ints, Ints]:
        told = [_told(maps, *names) for _, *names in batch]
        rest = [part for part, known in zip(batch, told, strict=True) if known is None]
        parts = [_on_disk([part[0]], *known) for part, known in zip(batch, told, strict=True) if known is not None]
        if not parts:
            return _fewer(*_differing(maps, rest), most * len(batch))
        if rest:
            parts.append(_differing(maps, rest))
        starts, ends = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        if rest:
            order = np.argsort(starts)
            starts, ends = starts[order], ends[order]
        return _fewer(starts, ends, most * len(batch))

    if len(batches) <= 2:
        parts = [one(batch) for batch in batches]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(one, batches))
    return _extents(parts, b.disk.capacity)


def _fewer(starts: Ints, ends: Ints, most: int) -> tuple[Ints, Ints]:
    """Not more ranges than that: the nearest are joined."""
    if len(starts) <= most:
        return starts, ends
    found = Extents(starts, ends).at_most(most)
    return found.offsets, found.offsets + found.lengths


def allocated(maps: Maps, b: PointDisk, start: int = 0, end: int | None = None) -> Extents:
    """Only the maps of segments that lie there are read."""
    end = b.disk.capacity if end is None else end
    there = range(start // SEGMENT, -(-end // SEGMENT))
    part = tuple(name if number in there else "" for number, name in enumerate(b.segments))
    return diff(maps, None, b.model_copy(update={"segments": part})).clip(start, end)


def _content(name: str) -> str:
    """The digest part of a name: what another run stored equally elsewhere is equal."""
    return name.partition("-")[0]


def _extents(parts: Sequence[tuple[Ints, Ints]], capacity: int) -> Extents:
    if not parts:
        return EMPTY
    starts = np.concatenate([p[0] for p in parts])
    ends = np.concatenate([p[1] for p in parts])
    # In order and disjoint: they only have to be joined where they touch. Sorting 1.6 million again took 0.3 s.
    apart = np.flatnonzero(starts[1:] != ends[:-1])
    starts = np.concatenate((starts[:1], starts[apart + 1]))
    return Extents(starts, np.concatenate((ends[apart], ends[-1:]))).clip(0, capacity)


def _told(maps: Maps, a: str, b: str) -> tuple[Ints, Ints] | None:
    """Ranges of granules by what the segments themselves say of their origin; None when b's forebears are not a.

    What changed and changed back on the way counts as different.
    """
    steps: list[tuple[Ints, Ints]] = []
    wanted = _content(a)
    while a and len(steps) < GENERATIONS:
        try:
            origin = maps.since(b)
        except StoreDamaged:  # or pruned: only the two ends of a diff are sure to be there, and they are read next
            return None
        if origin is None:
            return None
        steps.append((origin.starts.astype(np.int64), origin.ends.astype(np.int64)))
        if origin.parent.digest == wanted:
            return steps[0] if len(steps) == 1 else _united(steps)
        b = str(origin.parent)
    return None


def _united(steps: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    starts = np.concatenate([s for s, _ in steps])
    found = Extents.from_arrays(starts, np.concatenate([e for _, e in steps]) - starts)
    return found.offsets, found.offsets + found.lengths


def _differing(maps: Maps, batch: Sequence[tuple[int, str, str]]) -> tuple[Ints, Ints]:
    """Byte ranges of the disk where the segments of a batch differ."""
    side_a = maps.load_many([name for _, name, _ in batch])
    side_b = maps.load_many([name for _, _, name in batch])
    return _on_disk([i for i, _, _ in batch], *compare(*line_up(side_a, side_b)))


def _on_disk(segments: Sequence[int], starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Bytes of the disk, from granules of those segments in one line. A range never crosses a segment's end."""
    base = np.array(segments, np.int64)[starts // GRANULES] * SEGMENT
    return base + starts % GRANULES * GRANULE, base + ((ends - 1) % GRANULES + 1) * GRANULE


def line_up(side_a: Sequence[SegmentMap], side_b: Sequence[SegmentMap]) -> tuple[Steps, Steps]:
    """Both sides in one line each, with places that are equal where the content is."""
    places_b = [_renumbered(a, b) for a, b in zip(side_a, side_b, strict=True)]
    return _line(side_a, [a.places for a in side_a]), _line(side_b, places_b)


def _renumbered(a: SegmentMap, b: SegmentMap) -> NDArray[np.uint64]:
    """b's places in a's numbering of packs. A child keeps its parent's numbers as long as it uses all those packs."""
    common = min(len(a.packs), len(b.packs))
    if np.array_equal(a.packs[:common], b.packs[:common]):
        return b.places
    order = np.argsort(a.packs)
    at = np.searchsorted(a.packs, b.packs, sorter=order)
    at[at == len(order)] = 0
    known = a.packs[order[at]] == b.packs
    fresh = len(a.packs) + 1 + np.arange(len(b.packs))
    table = np.concatenate((np.zeros(1, np.int64), np.where(known, order[at] + 1, fresh)))
    return (b.places & KEEP) | table[pack_numbers(b.places)].astype(np.uint64) << np.uint64(layout.PLACE_PACK)


def _line(segments: Sequence[SegmentMap], places: Sequence[NDArray[np.uint64]]) -> Steps:
    counts = [len(segment.starts) for segment in segments]
    starts = np.empty(sum(counts) + 1, np.uint32)
    at = 0
    for i, (segment, count) in enumerate(zip(segments, counts, strict=True)):
        np.add(segment.starts, np.uint32(i * GRANULES), out=starts[at : at + count])
        at += count
    starts[-1] = len(segments) * GRANULES
    return Steps(starts, np.concatenate(places))


def compare(a: Steps, b: Steps) -> tuple[Ints, Ints]:
    """Ranges of granules where two lines of steps over the same granules differ: sorted and disjoint.

    Most steps are on both sides, in the same order within their block: each is tried against the one of equal rank,
    and only what does not fit is looked at closely. All of it walks through memory in order; a table from start to
    step took three times as long, a binary search four times.
    """
    begin_a, begin_b = a.starts[:-1], b.starts[:-1]
    # Shifted and made an index in one step each: numpy would copy any other type at every use.
    block_a = np.right_shift(begin_a, _BLOCK_SHIFT, dtype=np.int64)
    block_b = np.right_shift(begin_b, _BLOCK_SHIFT, dtype=np.int64)
    blocks = int(a.starts[-1]) >> _BLOCK_SHIFT
    more = np.zeros(blocks + 1, np.int64)
    np.cumsum(np.bincount(block_a, minlength=blocks) - np.bincount(block_b, minlength=blocks), out=more[1:])
    at = more.take(block_b)
    at += np.arange(len(at))
    # Where b's last block has more steps than a's, ranks reach beyond a's end; a step found there is still the same.
    same = a.places.take(at, mode="clip") == b.places
    same &= begin_a.take(at, mode="clip") == begin_b
    same &= a.starts[1:].take(at, mode="clip") == b.starts[1:]
    rest_b = np.flatnonzero(~same)
    if not len(rest_b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    alone = np.ones(len(begin_a), bool)
    alone[np.minimum(at[same], len(begin_a) - 1)] = False
    return _cut(a, np.flatnonzero(alone), b, rest_b)


def _cut(a: Steps, rest_a: Ints, b: Steps, rest_b: Ints) -> tuple[Ints, Ints]:
    """The steps `rest_a` and `rest_b` cover the same granules: cut at every start of either, then compare."""
    starts_a, starts_b = a.starts[rest_a].astype(np.int64), b.starts[rest_b].astype(np.int64)
    points = np.concatenate((starts_a, starts_b))
    order = np.argsort(points, kind="stable")
    points = points[order]
    is_a = order < len(starts_a)
    last = np.append(points[1:] != points[:-1], True)
    points = points[last]
    of_a, of_b = (np.cumsum(is_a) - 1)[last], (np.cumsum(~is_a) - 1)[last]
    value_a = _value(a.places[rest_a[of_a]], points - starts_a[of_a])
    value_b = _value(b.places[rest_b[of_b]], points - starts_b[of_b])
    ends = np.minimum(a.starts[rest_a[of_a] + 1], b.starts[rest_b[of_b] + 1]).astype(np.int64)
    differs = value_a != value_b
    return points[differs], ends[differs]


def _value(places: NDArray[np.uint64], further: Ints) -> NDArray[np.uint64]:
    return places + np.where(places == 0, 0, further).astype(np.uint64)
