"""Which packs and files of maps are worth a compaction: those that free more than is written for it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from workers.errors import StoreDamaged
from workers.store import files, layout, usage
from workers.store.maps import Maps
from workers.store.needed import Needed
from workers.store.packs import PackCache
from workers.store.place import Path

#: What one compaction moves at most: its table of moved blobs is 64 MiB in memory then, and its packs and maps must
#: fit into the store beside the old ones until those are deleted.
MOST_BLOBS = 1 << 20
MOST_BYTES = 16 << 30


class Victim(NamedTuple):
    id: int
    #: bytes of its blobs or segments (heads, trailers and padding are never "dead"), and what of them is in use
    size: int
    live: int
    blobs: int = 0

    @property
    def dead(self) -> int:
        return self.size - self.live


class Chosen(NamedTuple):
    packs: tuple[int, ...] = ()
    maps: tuple[int, ...] = ()
    #: bytes that are written for it, bytes that are freed
    moves: int = 0
    frees: int = 0


def choose(
    maps: Maps,
    packs: PackCache,
    refs: Needed,
    *,
    spare_packs: Collection[int],
    spare_maps: Collection[int],
    below: float,
    worth: int,
    seconds: float | None = None,
) -> Chosen:
    """Of packs and files of maps that `refs` name and that are in use to less than `below`: the emptiest first.

    Nothing when they free less than `worth` bytes together.
    """
    sparse = _sparse_packs(maps, packs, refs, spare_packs, below, seconds)
    sparse = _within(_worth_their_maps(maps, refs.segments, sparse), packs.folder)
    maps_files = [v for v in _sparse_maps(maps, refs.segments, spare_maps) if v.live < below * v.size]
    freed = sum(victim.dead for victim in (*sparse, *maps_files))
    if not freed or freed < worth:
        return Chosen()
    return Chosen(
        tuple(victim.id for victim in sparse),
        tuple(victim.id for victim in maps_files),
        sum(victim.live for victim in (*sparse, *maps_files)),
        freed,
    )


def _sparse_packs(
    maps: Maps, packs: PackCache, refs: Needed, spare: Collection[int], below: float, seconds: float | None
) -> list[Victim]:
    """Of all packs, or of as many as can be looked at in so many seconds, from a random one on: each has its turn."""
    deadline = time.monotonic() + seconds if seconds is not None else None

    def readable() -> Iterator[int]:
        for pack_id in _from_anywhere(refs.packs - set(spare)):
            try:
                packs.get(pack_id)
            except StoreDamaged:
                continue  # `verify` names it; what can be read of it is read from where it is
            yield pack_id

    found = []
    for group in usage.groups(packs, readable()):
        usage.mark(maps, refs.segments, group)
        for pack_id, used in group.items():
            live = used.live()
            victim = Victim(pack_id, int(used.stored.sum()), used.live_bytes(), int((live > 0).sum()))
            if 0 < live.sum() and victim.live < below * victim.size:
                found.append(victim)
        if deadline is not None and time.monotonic() > deadline:
            break
    return found


def _from_anywhere(packs: Collection[int]) -> list[int]:
    """In order, beginning at a random one. Ids are random numbers: where it begins says nothing of what is there."""
    ordered = sorted(packs)
    first = bisect.bisect(ordered, layout.fresh_id())
    return ordered[first:] + ordered[:first]


def _worth_their_maps(maps: Maps, names: Iterable[str], victims: list[Victim]) -> list[Victim]:
    """Without those that free less than the map segments which must be written again on their account."""
    cost = dict.fromkeys((victim.id for victim in victims), 0)
    for name in names if victims else ():
        mine = [pack for pack in maps.packs(name) if pack in cost]
        for pack in mine:
            cost[pack] += maps.parse(name).length // len(mine)
    return [victim for victim in victims if victim.dead > cost[victim.id]]


def _within(victims: list[Victim], folder: Path) -> list[Victim]:
    """As many as one compaction takes, and half of what is free holds: the emptiest first."""
    free = files.free(folder)
    room = min(MOST_BYTES, free // 2) if free is not None else MOST_BYTES
    ordered = sorted(victims, key=lambda victim: (victim.live / victim.size, victim.id))
    bytes_, blobs = np.cumsum([v.live for v in ordered]), np.cumsum([v.blobs for v in ordered])
    return [v for v, b, n in zip(ordered, bytes_, blobs, strict=True) if b <= room and n <= MOST_BLOBS]


def _sparse_maps(maps: Maps, names: Iterable[str], spare: Collection[int]) -> list[Victim]:
    used: dict[int, int] = {}
    for name in names:
        where = maps.parse(name)
        used[where.file] = used.get(where.file, 0) + where.length
    return [
        Victim(file, sum(length for _, length in maps.file(file).segments()), used[file])
        for file in sorted(used.keys() - set(spare))
    ]
