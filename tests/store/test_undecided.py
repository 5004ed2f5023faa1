"""What digests prove to be equal is not read from the store; what differs is always found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.store.conftest import EVERY_SLOWLY
from tests.store.disks import MemoryDisk, backup, noise
from workers.disks.memory import MemoryDisk as Target
from workers.extents import GRANULE, Extents
from workers.point import Digested, Piece
from workers.store import Store
from workers.store.read import DiskReader
from workers.transfer import copy

KINDS = EVERY_SLOWLY

MIB = 1 << 20
SIZE = 12 * MIB + 512


def stored(store: Store) -> tuple[MemoryDisk, DiskReader]:
    """A full backup and an increment with scraps, zeroes in between."""
    source = MemoryDisk(SIZE)
    source.put(0, noise(3 * MIB, 1))
    source.put(8 * MIB, noise(4 * MIB, 2))
    source.put(12 * MIB, b"end of the disk".ljust(512, b"."))
    backup(store, source)
    source.put(MIB, noise(GRANULE, 3))
    source.put(9 * MIB + 5 * GRANULE, noise(3 * GRANULE, 4))
    source.put(10 * MIB, bytes(2 * GRANULE))
    point, _ = backup(store, source, Extents.of([(MIB, GRANULE), (9 * MIB, MIB), (10 * MIB, 2 * GRANULE)]))
    return source, store.reader(point, point.disks[0].disk.id)


def test_what_is_equal_is_hardly_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source, reader = stored(store)
    assert isinstance(reader, Digested)
    asked: list[int] = []
    really = DiskReader.read

    def read(self: DiskReader, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        asked.append(sum(length for _, length in batch))
        return really(self, batch)

    monkeypatch.setattr(DiskReader, "read", read)  # counted; it reads as ever
    target = Target(source.content(0, SIZE))
    result = copy(reader, target, Extents.whole(SIZE), threads=2, against=target)
    assert (result.written, result.read) == (0, SIZE)
    # Only the blobs that the increment cut, and its scraps.
    assert sum(asked) < 2 * MIB


@pytest.mark.parametrize("seed", range(6))
def test_what_differs_is_found_wherever_it_is(store: Store, seed: int) -> None:
    source, reader = stored(store)
    wanted = source.content(0, SIZE)
    held = bytearray(wanted)
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 12)):
        held[rng.choice([rng.randrange(SIZE), MIB, MIB - 1, 8 * MIB, 10 * MIB, SIZE - 1, 5 * MIB])] ^= 0x55
    expected = sum(min(GRANULE, SIZE - g * GRANULE) for g in range(-(-SIZE // GRANULE)) if differs(held, wanted, g))
    target = Target(bytes(held))
    result = copy(reader, target, Extents.whole(SIZE), threads=1, against=target)
    assert target.content == wanted
    assert result.written == expected


def differs(one: Any, other: Any, granule: int) -> bool:
    part = slice(granule * GRANULE, (granule + 1) * GRANULE)
    return bytes(one[part]) != bytes(other[part])


def test_zeroes_are_known_without_a_look_at_the_store(store: Store) -> None:
    _, reader = stored(store)
    zeroes, data = (4 * MIB, MIB), (0, MIB)
    assert reader.undecided([Piece(*zeroes, None), Piece(6 * MIB, MIB, bytes(MIB))]) == []
    assert reader.undecided([Piece(*zeroes, b"\1" + bytes(MIB - 1)), Piece(*data, None)]) == [zeroes, data]
