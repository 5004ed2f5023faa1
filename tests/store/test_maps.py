"""Maps: steps and dense form are the same thing, compare finds exactly what differs, fragmentation stays bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.disks import MemoryDisk, assert_content, backup, noise
from workers.errors import StoreTooNew
from workers.extents import GRANULE
from workers.store import Store, diff, layout, maps
from workers.store.layout import BLOCK, SEGMENT
from workers.store.maps import (
    EMPTY_MAP,
    GRANULES,
    Name,
    SegmentMap,
    decode,
    dense,
    encode,
    from_dense,
    pack_numbers,
)

MIB = 1 << 20
PACKS = [11, 22, 33]

#: runs of granules: (length, pack number 0..3, slot, granule in the blob); blobs with odd slots are packed
runs = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3), st.integers(0, 3), st.integers(0, 200)), max_size=40)


def places(script: list[tuple[int, int, int, int]]) -> np.ndarray:
    made, at = np.zeros(GRANULES, np.uint64), 0
    for length, pack, slot, granule in script:
        if pack:
            first = pack << layout.PLACE_PACK | slot << layout.PLACE_SLOT | granule
            first |= layout.PLACE_PACKED if slot % 2 else 0
            made[at : at + length] = np.arange(length, dtype=np.uint64) + np.uint64(first)
        at += length
    return made


@settings(deadline=None)
@given(runs)
def test_steps_and_dense_are_the_same(script: list[tuple[int, int, int, int]]) -> None:
    wanted = places(script)
    made = from_dense(wanted, PACKS)
    body = encode(made)
    name = Name(maps.digest_of(body), 1, 0, len(body))
    assert Name.parse(str(name)) == name
    read = decode(Path("x"), name, body)
    assert read.starts[0] == 0 and (np.diff(read.starts.astype(int)) > 0).all()
    assert len(set(read.packs.tolist())) == len(read.packs)
    numbers = pack_numbers(read.places)
    assert set(numbers[numbers > 0].tolist()) == set(range(1, len(read.packs) + 1)), "unused packs would be kept alive"
    back = dense(read)
    assert np.array_equal(_identity(back, read.packs.tolist()), _identity(wanted, PACKS))


def _identity(dense_places: np.ndarray, packs: list[int]) -> np.ndarray:
    """(pack id, rest) per granule, whatever the numbering."""
    ids = np.array([0, *packs], np.uint64)[pack_numbers(dense_places)]
    rest = dense_places & np.uint64(layout.PLACE_PACKED | 0xFFFFFFFF)
    return np.stack((ids, rest))


@settings(deadline=None)
@given(runs, runs, st.permutations(PACKS))
def test_compare_against_every_granule(
    a: list[tuple[int, int, int, int]], b: list[tuple[int, int, int, int]], order: list[int]
) -> None:
    """The packs of the second map are numbered differently, as after another history."""
    one, two = from_dense(places(a), PACKS), from_dense(places(b), order)
    starts, ends = diff.compare(*diff.line_up([one], [two]))
    found = np.zeros(GRANULES, bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        assert start < end and not found[start:end].any()
        found[start:end] = True
    mask = np.uint64(layout.PLACE_PACKED - 1)
    truth = (_identity(places(a) & mask, PACKS) != _identity(places(b) & mask, order)).any(axis=0)
    assert np.array_equal(found, truth)


def test_a_newer_segment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "FORMAT", 2)  # as a newer version writes it
    body = encode(from_dense(places([(3, 1, 0, 0)]), PACKS))
    monkeypatch.undo()
    name = Name(maps.digest_of(body), 1, 0, len(body))
    with pytest.raises(StoreTooNew, match="format 2"):
        decode(Path("x.maps"), name, body)


def test_an_empty_map_is_zeroes() -> None:
    assert not dense(EMPTY_MAP).any()
    assert isinstance(from_dense(np.zeros(GRANULES, np.uint64), []), SegmentMap)


def test_a_block_in_too_many_parts_is_stored_whole(store: Store) -> None:
    """Every second granule of a block, one backup after the other: the map does not grow without end."""
    disk = MemoryDisk(4 * MIB)
    disk.put(0, noise(4 * MIB, 0))
    backup(store, disk)
    most = rewritten = 0
    for round_ in range(20):
        before = disk.copy()
        disk.put(2 * (round_ % 32) * GRANULE, noise(GRANULE, 100 + round_))
        point, made = backup(store, disk, disk.differs(before))
        steps = store._maps.load(point.disks[0].segments[0])
        most = max(most, int((steps.starts < BLOCK // GRANULE).sum()))
        rewritten += made[0].rewritten
        assert made[0].differing == disk.differs(before)
    assert rewritten == BLOCK - GRANULE, "once in these rounds, and only that block"
    assert most <= 34
    assert_content(store, point, disk)


def test_scraps_in_too_many_blobs_are_repacked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.store.write.SCRAP_BLOBS", 8)  # 64
    disk = MemoryDisk(64 * MIB)
    disk.put(0, noise(16 * MIB, 0))
    backup(store, disk)
    blobs, rewritten = [], 0
    for round_ in range(20):
        before = disk.copy()
        for block in range(0, 64, 4):
            disk.put(block * BLOCK + (round_ % 8) * GRANULE, noise(GRANULE, round_ * 1000 + block))
        point, made = backup(store, disk, disk.differs(before))
        rewritten += made[0].rewritten
        steps = store._maps.load(point.disks[0].segments[0])
        packed = steps.places[steps.places >= np.uint64(layout.PLACE_PACKED)]
        blobs.append(len(np.unique(packed >> np.uint64(8))))
        assert_content(store, point, disk)
        assert made[0].differing == disk.differs(before)
    assert rewritten and max(blobs) <= 9 and min(blobs[10:]) < 5
    assert not disk.differs(None) - store.allocated(point.disks[0])


def test_what_is_allocated_in_a_part_takes_no_other_maps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 TiB all maps are a GiB: a message that works on one segment reads one."""
    disk = MemoryDisk(3 * SEGMENT - MIB)
    for at in (0, SEGMENT - MIB, SEGMENT, 2 * SEGMENT + 5 * MIB):
        disk.put(at, noise(MIB, at // MIB))
    candidates = disk.differs(None)
    point, _ = backup(store, disk, candidates)
    (made,) = point.disks
    assert store.allocated(made) == candidates
    parts = [(0, SEGMENT), (SEGMENT - MIB, SEGMENT + 4096), (SEGMENT + MIB, 2 * SEGMENT), (2 * SEGMENT, disk.size)]
    for start, end in parts:
        assert store.allocated(made, start, end) == candidates.clip(start, end)
    read: list[Name] = []
    real = maps.MapsFile.segment

    def segment(file: maps.MapsFile, where: Name, data: memoryview) -> SegmentMap:
        read.append(where)  # it is only counted
        return real(file, where, data)

    monkeypatch.setattr(maps.MapsFile, "segment", segment)
    again = Store.open(store.path)
    again.allocated(made, SEGMENT + MIB, 2 * SEGMENT)
    assert read == [again._maps.parse(made.segments[1])]


def test_a_batch_of_scattered_ranges_holds_little_memory(store: Store) -> None:
    """A granule out of each of many chunks: what is returned is a granule each, not a chunk each."""
    disk = MemoryDisk(64 * MIB)
    disk.put(0, noise(64 * MIB, 0))
    point, _ = backup(store, disk)
    reader = store.reader(point, "disk-1")
    pieces = reader.read([(block * BLOCK + 5 * GRANULE, GRANULE) for block in range(256)])
    for piece in pieces:
        assert piece.data is not None and bytes(piece.data) == disk.content(piece.offset, piece.length)
        assert isinstance(piece.data, memoryview) and len(piece.data.obj) == GRANULE  # type: ignore[arg-type]
    whole = reader.read([(0, MIB)])
    assert sum(piece.length for piece in whole) == MIB and len(whole) == 4
