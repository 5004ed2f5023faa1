"""What was written is read back, byte by byte; only what changed is stored and reported as changed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.store.conftest import EVERY_SLOWLY
from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, point_disk, write_disk
from workers.errors import BadInput, NotFound
from workers.extents import EMPTY, GRANULE, Extents
from workers.point import Piece
from workers.store import Store
from workers.store.layout import BLOCK, SEGMENT
from workers.store.read import DiskReader

KINDS = EVERY_SLOWLY

MIB = 1 << 20


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


def test_what_is_known_to_the_granule_is_not_compared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chunk of 256 KiB one such granule would have all be read, decompressed and checked."""

    def not_here(*_: object) -> None:
        raise AssertionError("the parent was read")

    source = MemoryDisk(16 * MIB + 1536)
    source.put(0, noise(16 * MIB, 1))
    first, _ = backup(store, source)
    before = source.copy()
    source.put(3 * GRANULE, noise(GRANULE, 2))
    source.put(MIB, bytes(GRANULE))
    source.put(16 * MIB, noise(1536, 3))
    source.put(5 * MIB, noise(GRANULE, 4))
    exact = (source.differs(before) | Extents.of([(9 * MIB, GRANULE)])).align(GRANULE, source.size)
    with monkeypatch.context() as patched:
        patched.setattr(DiskReader, "read", not_here)
        point, made = backup(store, source, exact, exact=exact)
    assert made[0].differing == exact, "what is known to differ counts as different"
    assert_content(store, point, source)
    assert_content(store, first, before)
    assert not source.differs(before) - store.diff(first.disks[0], point.disks[0])


def test_rewritten_equal_is_nothing(store: Store) -> None:
    source = MemoryDisk(16 * MIB)
    source.put(0, noise(8 * MIB, 1))
    first, _ = backup(store, source)
    second, made = backup(store, source, Extents.whole(source.size))
    assert made[0].differing == EMPTY and made[0].stored == 0
    assert second.disks[0].segments == first.disks[0].segments
    assert store.diff(first.disks[0], second.disks[0]) == EMPTY


@pytest.mark.parametrize("size", [3 * MIB, 3 * MIB + 512, 2 * MIB + 4096])
def test_a_disk_that_grew_is_compared_to_its_end(store: Store, size: int) -> None:
    source = MemoryDisk(2 * MIB + 1536)
    source.put(0, noise(MIB, 1))
    source.put(2 * MIB - GRANULE, noise(GRANULE, 2))
    backup(store, source)
    grown = MemoryDisk(size, dict(source.granules))
    grown.put(MIB, noise(GRANULE, 3))
    grown.put(2 * MIB, noise(GRANULE, 4))
    if size > 2 * MIB + GRANULE:
        grown.put(3 * MIB - 3 * GRANULE, noise(2 * GRANULE, 5))
    point, _ = backup(store, grown, grown.allocated(), mode="compare")
    assert_content(store, point, grown)


def test_compare_finds_what_the_parent_holds_and_the_source_does_not(store: Store) -> None:
    """What became a hole is outside of the source's allocated extents, and yet it changed."""
    source = MemoryDisk(16 * MIB)
    source.put(0, noise(4 * MIB, 1))
    first, _ = backup(store, source)
    before = source.copy()
    for granule in range(100, 300):
        del source.granules[granule]
    source.put(10 * MIB, noise(50_000, 2))
    point, made = backup(store, source, source.allocated(), mode="compare")
    assert_content(store, point, source)
    assert made[0].differing == store.diff(first.disks[0], point.disks[0]) == source.differs(before)


def test_full_starts_anew_and_stores_nothing_twice(store: Store) -> None:
    source = MemoryDisk(16 * MIB)
    source.put(0, noise(8 * MIB, 1))
    first, _ = backup(store, source)
    second, made = backup(store, source, mode="full")
    assert made[0].changed == 8 * MIB
    assert made[0].stored < 10_000, "only a map: all chunks were found by the index"
    assert_content(store, second, source)
    assert store.diff(first.disks[0], second.disks[0]) == EMPTY


def test_the_same_content_elsewhere_is_stored_once(store: Store) -> None:
    source = MemoryDisk(64 * MIB)
    source.put(0, noise(4 * MIB, 1))
    source.put(32 * MIB, noise(4 * MIB, 1))
    backup(store, source)
    other = MemoryDisk(64 * MIB)
    other.put(8 * MIB, noise(4 * MIB, 1))
    point, made = backup(store, other, vm="other-vm")
    assert made[0].stored < 10_000
    assert_content(store, point, other)


def test_a_disk_that_grew_and_one_that_shrank(store: Store) -> None:
    small = MemoryDisk(SEGMENT - 7 * 512)
    small.put(SEGMENT - 3 * GRANULE, noise(2 * GRANULE, 1))
    first, _ = backup(store, small)
    large = MemoryDisk(SEGMENT + 9 * MIB, small.granules)
    large.put(SEGMENT + MIB, noise(MIB, 2))
    second, _ = backup(store, large, large.differs(small))
    assert_content(store, second, large)
    assert store.diff(first.disks[0], second.disks[0]) == large.differs(small)
    third, _ = backup(store, small, EMPTY)
    assert_content(store, third, small)
    assert store.diff(first.disks[0], third.disks[0]) == EMPTY
    assert store.diff(second.disks[0], first.disks[0]).end <= small.size


def test_a_run_goes_on_in_another_process(store: Store) -> None:
    """Segments flushed by a writer that died are committed by the next writer of the same run; prune leaves them."""
    source = MemoryDisk(2 * SEGMENT)
    source.put(0, noise(MIB, 1))
    source.put(SEGMENT, noise(MIB, 2))
    everything = source.allocated()
    arguments = {"size": source.size, "source": source, "candidates": everything, "parent": None}
    with store.writer("run-1") as writer:
        kept = writer.segment(0, **arguments)
        writer.flush()
        writer.segment(1, **arguments)  # lost: not flushed
    again = Store.open(store.path)
    assert again.prune().packs == 0
    with again.writer("run-1") as writer:
        rest = writer.segment(1, **arguments)
        point = make_point(None, "run-1", [point_disk(source.size, [kept.name, rest.name])])
        writer.commit(point)
    assert_content(again, point, source)
    assert again.runs() == []


def test_segments_from_several_threads_at_once(store: Store) -> None:
    source = MemoryDisk(4 * SEGMENT)
    for i in range(4):
        source.put(i * SEGMENT + i * MIB, noise(3 * MIB, i % 2))
    with store.writer("run-1") as writer, ThreadPoolExecutor(4) as pool:
        arguments = {"size": source.size, "source": source, "candidates": source.allocated(), "parent": None}
        made = list(pool.map(lambda i: writer.segment(i, **arguments), range(4)))
        point = make_point(None, "run-1", [point_disk(source.size, [segment.name for segment in made])])
        writer.commit(point)
    assert_content(store, point, source)
    assert store.verify(deep=True) == []


def test_any_range_can_be_read(store: Store) -> None:
    source = MemoryDisk(SEGMENT + MIB)
    source.put(SEGMENT - 64 * GRANULE, noise(100 * GRANULE, 1))
    point, _ = backup(store, source)
    reader = store.reader(point, "disk-1")
    for offset, length in [(SEGMENT - 700, 1400), (SEGMENT - 64 * GRANULE + 1, 1), (5, 7), (SEGMENT + MIB - 1, 1)]:
        data = b"".join(bytes(p.length) if p.data is None else bytes(p.data) for p in reader.read([(offset, length)]))
        assert data == source.content(offset, length)
    with pytest.raises(ValueError, match="were asked for"):
        reader.read([(SEGMENT + MIB - 1, 2)])


def test_a_source_that_gives_other_bytes_than_asked_is_refused(store: Store) -> None:
    source = MemoryDisk(MIB)
    source.put(0, noise(MIB, 1))
    source.read = lambda batch: [Piece(o + GRANULE, n, bytes(n)) for o, n in batch]  # type: ignore[method-assign]
    with store.writer("run-1") as writer, pytest.raises(ValueError, match="was asked for"):
        write_disk(writer, source, Extents.of([(0, 2 * GRANULE)]))


def test_what_an_unknown_name_gets(store: Store) -> None:
    source = MemoryDisk(MIB)
    point, _ = backup(store, source)
    with pytest.raises(NotFound, match=f"it has {point.id}"):
        store.point(VM, "00000009-00000000")
    with pytest.raises(NotFound, match="disk-1"):
        store.reader(point, "disk-2")
    assert store.points("nobody") == [] and store.newest("nobody") is None
    with pytest.raises(BadInput, match="file's name"):
        store.points("../etc")


def test_a_new_store_is_its_owners_alone(tmp_path: Path) -> None:
    """In it are the disks of VMs, passwords of guests and all."""
    before = os.umask(0o022)
    try:
        made = Store.create(tmp_path / "deep" / "store")
    finally:
        os.umask(before)
    assert made.path.stat().st_mode & 0o077 == 0
    made.path.chmod(0o750)  # somebody opened it to a group: it stays so
    Store.create(made.path)
    assert made.path.stat().st_mode & 0o077 == 0o050
