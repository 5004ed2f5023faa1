"""Where compaction moved what: the file of moves beside each new pack, and a map segment with its places exchanged.

One granule of an old blob goes to one granule of a new one, for every segment alike: so places that were equal stay
equal, places that differed still differ, and a diff of two rewritten segments is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.store import files, layout, place
from workers.store.crypt import PLAIN, Keys
from workers.store.layout import MOVED, MOVES_MAGIC, PLACE_PACK, PLACE_SLOT
from workers.store.maps import SegmentMap, dense, from_dense, pack_numbers
from workers.store.place import Path
from workers.store.usage import slots_of

#: most granules of a blob
_GRANULES = 256


class Table(NamedTuple):
    """Of one old pack, by slot: the new pack, the slot there, and which granules went along."""

    slots: NDArray[np.int64]
    packs: NDArray[np.uint64]
    to: NDArray[np.uint64]
    #: a row of 32 bytes each
    live: NDArray[np.uint8]


def moves_path(folder: Path, pack_id: int) -> Path:
    return folder / f"{pack_id:016x}.moves"


def record(pack: int, slot: int, to: int, live: NDArray[np.bool_]) -> tuple[int, int, int, bytes]:
    """`live` has one entry per granule of the old blob."""
    return pack, slot, to, np.packbits(live, bitorder="little").tobytes().ljust(_GRANULES // 8, b"\0")


def write(
    folder: Path, pack_id: int, run: str, records: Sequence[tuple[int, int, int, bytes]], keys: Keys = PLAIN
) -> None:
    """Durable when it returns."""
    table = np.array(records, dtype=MOVED).tobytes()
    head, sealing = layout.head(MOVES_MAGIC, pack_id, run, keys)
    trailer, foot = layout.ending(len(records), len(head), table, keys, sealing)
    files.write_new(moves_path(folder, pack_id), head + trailer + foot)
    files.sync_folder(folder)


def load(folder: Path, pack_ids: Sequence[int], keys: Keys = PLAIN) -> dict[int, Table]:
    """Old pack -> where its blobs went; where a blob was moved twice, the later of `pack_ids` counts."""
    parts = []
    for pack_id in pack_ids:
        path = moves_path(folder, pack_id)
        fd = files.open_read(path)
        try:
            _, sealed = layout.read_head(path, files.read_all(fd, layout.HEAD_SIZE, 0), MOVES_MAGIC, pack_id, keys)
            found = layout.read_trailer(path, fd, MOVED, keys, sealed)
        finally:
            place.close(fd)
        parts.append((np.full(len(found), pack_id, np.uint64), found))
    if not parts:
        return {}
    into = np.concatenate([ids for ids, _ in parts])
    table = np.concatenate([found for _, found in parts])
    return {int(pack): _table(table, into, table["pack"] == pack) for pack in np.unique(table["pack"]).tolist()}


def _table(table: np.ndarray, into: NDArray[np.uint64], mine: NDArray[np.bool_]) -> Table:
    rows, packs = table[mine][::-1], into[mine][::-1]
    slots, first = np.unique(rows["slot"].astype(np.int64), return_index=True)
    rows = rows[first]
    live = np.frombuffer(rows["live"].tobytes(), np.uint8).reshape(-1, _GRANULES // 8)
    return Table(slots, packs[first], rows["to"].astype(np.uint64), live)


def moved(segment: SegmentMap, tables: Mapping[int, Table]) -> SegmentMap:
    """The segment with its places in old packs exchanged; itself when there is nothing to exchange.

    A pack of which it needs anything that was not moved stays as it is in this segment: a diff then reports too much,
    never too little.
    """
    packs = segment.packs.tolist()
    if not any(pack in tables for pack in packs):
        return segment
    places, changed = dense(segment), False
    numbers = pack_numbers(places)
    for number, pack in enumerate(segment.packs.tolist(), 1):
        if pack in tables:
            at = np.flatnonzero(numbers == number)
            fresh = _exchanged(places[at], tables[pack], packs)
            if fresh is not None:
                places[at] = fresh
                changed = True
    return from_dense(places, packs) if changed else segment


def _exchanged(places: NDArray[np.uint64], table: Table, packs: list[int]) -> NDArray[np.uint64] | None:
    """The new places, and new packs added to `packs`; None when one of them was not moved."""
    slots, inside = slots_of(places)
    at = np.searchsorted(table.slots, slots)
    at[at == len(table.slots)] = 0
    rows, which = np.unique(at, return_inverse=True)
    bits = np.unpackbits(table.live[rows], axis=1, bitorder="little")
    if not ((table.slots[at] == slots) & (bits[which, inside] == 1)).all():
        return None
    rank = (np.cumsum(bits, axis=1, dtype=np.uint16) - 1)[which, inside].astype(np.uint64)
    number = np.zeros(len(rows), np.uint64)
    for pack in np.unique(table.packs[rows]).tolist():
        number[table.packs[rows] == pack] = _number(packs, pack)
    kept = places & np.uint64(layout.PLACE_PACKED)
    slot = table.to[rows][which] << np.uint64(PLACE_SLOT)
    fresh: NDArray[np.uint64] = kept | number[which] << np.uint64(PLACE_PACK) | slot | rank
    return fresh


def _number(packs: list[int], pack: int) -> int:
    """From 1."""
    if pack not in packs:
        packs.append(pack)
    return packs.index(pack) + 1
