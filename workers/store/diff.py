"""Where two disks of a store differ, by their maps alone: equal names are skipped, the rest is compared in batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import EMPTY, GRANULE, Extents
from workers.models import PointDisk
from workers.store import layout
from workers.store.layout import SEGMENT
from workers.store.maps import GRANULES, KEEP, Maps, SegmentMap, pack_numbers

Ints = NDArray[np.int64]

#: Segments of each side that are compared at a time. 32 segments of 4,096 steps are 1.6 MB a side: they stay in
#: the processor's cache, and numpy's cost per call (some 5 us) no longer shows.
TOGETHER = 32


class Steps(NamedTuple):
    """The steps of several segments in one line: GRANULES each, one after the other."""

    starts: Ints
    ends: Ints
    #: equal at equal starts = equal content; 0 = zeroes
    places: Ints


def diff(maps: Maps, a: PointDisk | None, b: PointDisk) -> Extents:
    names_a = a.segments if a is not None else ()
    changed = [
        (i, names_a[i] if i < len(names_a) else "", name)
        for i, name in enumerate(b.segments)
        if _content(name) != (_content(names_a[i]) if i < len(names_a) else "")
    ]
    batches = [changed[i : i + TOGETHER] for i in range(0, len(changed), TOGETHER)]

    def one(batch: Sequence[tuple[int, str, str]]) -> tuple[Ints, Ints]:
        return _differing(maps, batch)

    if len(batches) <= 2:
        parts = [one(batch) for batch in batches]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(one, batches))
    return _extents(parts, b.disk.capacity)


def allocated(maps: Maps, b: PointDisk) -> Extents:
    return diff(maps, None, b)


def _content(name: str) -> str:
    """The digest part of a name: what another run stored equally elsewhere is equal."""
    return name.partition("-")[0]


def _extents(parts: Sequence[tuple[Ints, Ints]], capacity: int) -> Extents:
    if not parts:
        return EMPTY
    starts = np.concatenate([p[0] for p in parts])
    ends = np.concatenate([p[1] for p in parts])
    return Extents.from_arrays(starts, ends - starts).clip(0, capacity)


def _differing(maps: Maps, batch: Sequence[tuple[int, str, str]]) -> tuple[Ints, Ints]:
    """Byte ranges of the disk where the segments of a batch differ."""
    side_a = maps.load_many([name for _, name, _ in batch])
    side_b = maps.load_many([name for _, _, name in batch])
    number = _numbering(side_a, side_b)
    starts, ends = compare(_line_up(side_a, number), _line_up(side_b, number))
    base = np.array([i for i, _, _ in batch], np.int64) * SEGMENT
    # A range never crosses a segment: steps end there on both sides.
    segment = base[starts // GRANULES]
    return segment + starts % GRANULES * GRANULE, segment + ((ends - 1) % GRANULES + 1) * GRANULE


def _numbering(*sides: Sequence[SegmentMap]) -> NDArray[np.uint64]:
    """The ids of all packs that a batch refers to, sorted: an id's position is its number."""
    return np.unique(np.concatenate([segment.packs for side in sides for segment in side]))


def _line_up(segments: Sequence[SegmentMap], number: NDArray[np.uint64]) -> Steps:
    counts = [len(segment.starts) for segment in segments]
    starts = np.concatenate([segment.starts for segment in segments]).astype(np.int64)
    which = np.repeat(np.arange(len(segments), dtype=np.int64), counts)
    starts += which * GRANULES
    places = np.concatenate([segment.places for segment in segments])
    # Each segment numbers its packs on its own: one table for all, with a 0 in front of each for zeroes.
    bases = np.cumsum([0] + [len(segment.packs) + 1 for segment in segments[:-1]])
    table = np.concatenate(
        [part for s in segments for part in (np.zeros(1, np.int64), np.searchsorted(number, s.packs) + 1)]
    )
    packs = table[pack_numbers(places) + np.repeat(bases, counts)]
    low = (places & KEEP & np.uint64(layout.PLACE_PACKED - 1)).astype(np.int64)
    ends = np.append(starts[1:], len(segments) * GRANULES)
    return Steps(starts, ends, low | (packs << layout.PLACE_PACK))


def compare(a: Steps, b: Steps) -> tuple[Ints, Ints]:
    """Ranges of granules where two lines of steps over the same granules differ: sorted and disjoint."""
    at = np.searchsorted(a.starts, b.starts)
    at[at == len(a.starts)] = 0
    same = (a.starts[at] == b.starts) & (a.places[at] == b.places) & (a.ends[at] == b.ends)
    rest_a = np.ones(len(a.starts), bool)
    rest_a[at[same]] = False
    if same.all() and not rest_a.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # What is left covers the same granules on both sides, mostly few: cut it at every border of either.
    left, right = _pick(a, rest_a), _pick(b, ~same)
    cuts = np.unique(np.concatenate((left.starts, left.ends, right.starts, right.ends)))
    from_, to = cuts[:-1], cuts[1:]
    inside, value_a = _value(left, from_)
    _, value_b = _value(right, from_)
    differs = inside & (value_a != value_b)
    return from_[differs], to[differs]


def _pick(steps: Steps, mask: NDArray[np.bool_]) -> Steps:
    return Steps(steps.starts[mask], steps.ends[mask], steps.places[mask])


def _value(steps: Steps, points: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Whether each point lies in a step, and what the disk holds there."""
    at = np.searchsorted(steps.starts, points, side="right") - 1
    inside = (at >= 0) & (points < steps.ends[at])
    value = steps.places[at] + (points - steps.starts[at])
    return inside, np.where(steps.places[at] == 0, 0, value)
