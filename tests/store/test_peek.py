"""What is only compared is read without a check: it must be the same bytes, and damage must never become content."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.store.disks import MemoryDisk, assert_content, backup, noise
from workers.errors import StoreDamaged
from workers.extents import GRANULE, Extents
from workers.store import Store
from workers.store.read import DiskReader

MIB = 1 << 20
SIZE = 6 * MIB + 512


def words(length: int, seed: int) -> bytes:
    """To be compressed to a third, in blocks that differ."""
    return np.random.default_rng(seed).choice(np.frombuffer(b"abcdefg ", np.uint8), length).tobytes()


def disk() -> MemoryDisk:
    made = MemoryDisk(SIZE)
    made.put(0, words(2 * MIB, 1))
    made.put(3 * MIB, noise(MIB, 2))
    made.put(6 * MIB, b"end of the disk".ljust(512, b"."))
    return made


def test_the_same_bytes(store: Store) -> None:
    source = disk()
    backup(store, source)
    source.put(MIB, noise(GRANULE, 3))
    source.put(3 * MIB + 5 * GRANULE, noise(3 * GRANULE, 4))
    point, _ = backup(store, source, Extents.of([(MIB, GRANULE), (3 * MIB, MIB)]))
    reader = store.reader(point, point.disks[0].disk.id)
    assert isinstance(reader, DiskReader)
    chance = random.Random(5)
    for _ in range(60):
        starts = sorted(chance.sample(range(SIZE // GRANULE + 3), chance.choice((1, 5, 60))))
        ranges = [(a * GRANULE, chance.randint(1, max(1, b - a)) * GRANULE)
                  for a, b in zip(starts, [*starts[1:], starts[-1] + 90], strict=True)]  # fmt: skip
        into = np.full(sum(length for _, length in ranges), 7, np.uint8)
        reader.peek(ranges, into)
        expected = b"".join(source.content(a, n) if a + n <= SIZE else _padded(source, a, n) for a, n in ranges)
        assert into.tobytes() == expected


def _padded(source: MemoryDisk, offset: int, length: int) -> bytes:
    return source.content(offset, max(0, min(length, SIZE - offset))).ljust(length, b"\0")


@pytest.mark.parametrize("seed", range(3))
def test_damage_never_becomes_content(tmp_path: Path, seed: int) -> None:
    """Bytes of the parent's packs are overwritten; what the next backup commits reads as the source, or raises."""
    chance = random.Random(seed)
    source = disk()
    pristine = tmp_path / "pristine"
    backup(Store.create(pristine), source)
    told = right = 0
    for number in range(25):
        root = tmp_path / str(number)
        shutil.copytree(pristine, root)
        (pack,) = (root / "packs").glob("*.pack")
        with open(pack, "r+b") as file:
            for _ in range(chance.choice((1, 20))):
                file.seek(chance.randrange(4096, pack.stat().st_size - 8192))
                file.write(chance.choice((bytes(512), bytes(8192), chance.randbytes(3))))
        changed = source.copy()
        places = [g * GRANULE for g in chance.sample(range(0, 4 * MIB // GRANULE), 30)]
        for place in places:
            changed.put(place, chance.choice((bytes(GRANULE), noise(GRANULE, number), source.content(place, GRANULE))))
        store = Store.open(root)
        try:
            point, _ = backup(store, changed, Extents.of((p - p % (64 << 10), 64 << 10) for p in places))
            assert_content(store, point, changed)
            right += 1
        except StoreDamaged:
            told += 1
        shutil.rmtree(root)
    assert told and told + right == 25
