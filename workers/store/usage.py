"""Which granules of packs are in use, by the maps alone: what compaction moves, what a store's figures count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import GRANULE
from workers.store import layout
from workers.store.maps import GRANULES, Maps, SegmentMap, pack_numbers
from workers.store.packs import Pack, PackCache

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Granules of packs that are looked at in one pass over the maps, a byte each: a pass per 512 GiB of content.
TOGETHER = 1 << 27
#: Map segments that are loaded at a time: 1.2 MB each at worst
BATCH = 16


class Used(NamedTuple):
    """Of one pack: which of its blobs' granules somebody refers to, all blobs in one line."""

    #: where each blob's granules begin in `granules`; one more than blobs
    begins: Ints
    granules: Mask
    #: bytes of the blobs as they are stored
    stored: Ints

    def live(self) -> Ints:
        """Granules of each blob that are in use."""
        total: Ints = np.zeros(len(self.granules) + 1, np.int64)
        np.cumsum(self.granules, out=total[1:])
        return total[self.begins[1:]] - total[self.begins[:-1]]

    def live_bytes(self) -> int:
        """Stored bytes that are in use; of a blob that is used in part, that part."""
        sizes = np.maximum(np.diff(self.begins), 1)
        return int((self.stored * self.live() // sizes).sum())


def nothing_of(pack: Pack) -> Used:
    begins = np.concatenate((np.zeros(1, np.int64), np.cumsum(-(-pack.raw // GRANULE))))
    return Used(begins, np.zeros(int(begins[-1]), np.bool_), pack.stored)


def groups(packs: PackCache, ids: Iterable[int], most: int = TOGETHER) -> Iterator[dict[int, Used]]:
    """The packs, unused as yet, in this order, in groups that fit into memory. Raises `StoreDamaged`."""
    group: dict[int, Used] = {}
    held = 0
    for pack_id in ids:
        fresh = nothing_of(packs.get(pack_id))
        if group and held + len(fresh.granules) > most:
            yield group
            group, held = {}, 0
        group[pack_id] = fresh
        held += len(fresh.granules)
    if group:
        yield group


def mark(maps: Maps, names: Iterable[str], group: dict[int, Used]) -> None:
    """Notes in `group` what the segments called `names` refer to. Fast where neighbours in a file follow each other."""
    waiting = iter(names)
    while batch := list(islice(waiting, BATCH)):
        for segment in maps.load_many(batch):
            mark_segment(segment, group)


def mark_segment(segment: SegmentMap, group: dict[int, Used]) -> None:
    mine = [(number, used) for number, pack in enumerate(segment.packs.tolist(), 1) if (used := group.get(pack))]
    if not mine:
        return
    numbers = pack_numbers(segment.places)
    lengths = np.append(segment.starts[1:], np.uint32(GRANULES)).astype(np.int64) - segment.starts
    for number, used in mine:
        steps = np.flatnonzero(numbers == number)
        slots, inside = slots_of(segment.places[steps])
        used.granules[_ranges(used.begins[slots] + inside, lengths[steps])] = True


def slots_of(places: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """The blob's number in its pack and the granule within it, of each place."""
    slots = (places >> np.uint64(layout.PLACE_SLOT) & np.uint64(0xFFFFFF)).astype(np.int64)
    return slots, (places & np.uint64(0xFF)).astype(np.int64)


def _ranges(begins: Ints, lengths: Ints) -> Ints:
    """All numbers of the ranges, one after the other."""
    shift: Ints = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(len(shift), dtype=np.int64) + shift
