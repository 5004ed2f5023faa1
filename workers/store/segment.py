"""What a writer makes of a segment of a disk's map, in one go or in several: over a slow link one takes longer than a
task may."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workers.extents import Extents
from workers.store import layout
from workers.store.maps import KEEP, Places, SegmentMap, dense, pack_numbers


class Segment(NamedTuple):
    """What `StoreWriter.segment` made."""

    #: for PointDisk.segments; "" = nothing but zeroes
    name: str
    #: bytes read from the source, bytes that differ from the parent, bytes added to packs and maps
    read: int
    changed: int
    stored: int
    #: where the content differs from the parent's (without one: from zeroes), to the granule; all that was `exact`
    differing: Extents
    #: unchanged bytes that were stored again because the segment was fragmented; `Store.diff` counts them as changed
    rewritten: int
    #: byte of the disk: above it, up to the segment's end, it is as it was before, for time was up
    done: int = 0


def going_on(before: SegmentMap, made: SegmentMap) -> tuple[Places, list[int]]:
    """The places of what was `made` of a segment so far, and the packs that they number. Those of `before`, from which
    it is made, keep their numbers: whether a granule is as it was is told by its place."""
    packs = [int(pack) for pack in before.packs]
    known = {pack: number for number, pack in enumerate(packs, 1)}
    numbers = [0]
    for pack in (int(pack) for pack in made.packs):
        if pack not in known:
            packs.append(pack)
            known[pack] = len(packs)
        numbers.append(known[pack])
    places = dense(made)
    moved = np.array(numbers, np.uint64)[pack_numbers(places)]
    return (places & KEEP) | (moved << np.uint64(layout.PLACE_PACK)), packs
