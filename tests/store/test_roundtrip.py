"""What was written is read back, byte by byte; only what changed is stored and reported as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.disks import MemoryDisk, assert_content, backup, noise
from workers.extents import EMPTY, GRANULE, Extents
from workers.store import Store
from workers.store.layout import BLOCK, SEGMENT

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.mark.parametrize("size", [4096, 512, 10 * MIB + 512, 40 * MIB, 2 * SEGMENT + 12345 * 512])
def test_full(store: Store, size: int) -> None:
    source = MemoryDisk(size)
    for i, offset in enumerate(range(0, size - 4096, max(4096, size // 7 // 4096 * 4096))):
        source.put(offset, noise(min(size - offset, 300_000), i)[: (size - offset)])
    source.put((size - 1) // 4096 * 4096, b"x" * ((size - 1) % 4096 + 1))
    point, made = backup(store, source, Extents.whole(size) if size < MIB else None)
    assert_content(store, point, source)
    assert store.diff(None, point.disks[0]) == source.differs(None)
    assert sum(s.changed for s in made) == source.differs(None).total
    assert store.newest(point.vm.instance_uuid) == point


def test_incremental_is_granule_exact(store: Store) -> None:
    source = MemoryDisk(SEGMENT + 64 * MIB)
    source.put(0, noise(9 * MIB, 1))
    source.put(SEGMENT + MIB, noise(3 * MIB, 2))
    first, _ = backup(store, source)
    before = source.copy()
    source.put(5 * GRANULE, noise(GRANULE, 3))
    source.put(2 * MIB, noise(BLOCK, 4))
    source.put(SEGMENT + MIB, bytes(2 * MIB))
    source.put(SEGMENT + 20 * MIB, noise(70_000, 5))
    reported = source.differs(before).align(64 << 10, source.size) | Extents.of([(6 * MIB, MIB)])
    point, made = backup(store, source, reported)
    truth = source.differs(before)
    assert_content(store, point, source)
    assert_content(store, first, before)
    assert store.diff(first.disks[0], point.disks[0]) == truth
    assert store.diff(point.disks[0], first.disks[0]) == truth
    assert made[0].differing | made[1].differing == truth


def test_rewritten_equal_is_nothing(store: Store) -> None:
    source = MemoryDisk(16 * MIB)
    source.put(0, noise(8 * MIB, 1))
    first, _ = backup(store, source)
    second, made = backup(store, source, Extents.whole(source.size))
    assert made[0].differing == EMPTY and made[0].stored == 0
    assert second.disks[0].segments == first.disks[0].segments
    assert store.diff(first.disks[0], second.disks[0]) == EMPTY
