"""What must not grow with a store's or a disk's size: memory at two sizes, and work that others' commits hold up."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.store.disks import VM, MemoryDisk, backup, disk_model, make_point, noise, point_disk
from workers.extents import GRANULE, Extents, Gathering
from workers.models import RestorePoint
from workers.store import Store, diff, needed, read, usage
from workers.store.crypt import Keys
from workers.store.layout import PLACE_PACK, PLACE_SLOT, SEGMENT
from workers.store.maps import GRANULES, MapsWriter, SegmentMap
from workers.store.points import Points, encode

MIB = 1 << 20


def peak(work: Callable[[], object]) -> int:
    """Bytes of Python's and numpy's memory that `work` takes at its worst."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def settled(work: Callable[[], object]) -> int:
    """The same, once the JSON reader's own cache (16,384 strings) has what it keeps."""
    work()
    return peak(work)


def striped(count: int) -> Extents:
    starts = np.arange(count, dtype=np.int64) * 2 * GRANULE
    return Extents(starts, starts + GRANULE)


def test_ranges_become_objects_a_few_at_a_time() -> None:
    few, many = striped(20_000), striped(100_000)
    assert peak(lambda: sum(1 for _ in many)) < 2 * MIB
    assert peak(lambda: sum(1 for _ in many.batches(8 * MIB))) < 4 * MIB
    assert list(few) == [(start, GRANULE) for start in range(0, 40_000 * GRANULE, 2 * GRANULE)]


@pytest.mark.parametrize("most", [1, 2, 7, 100, 1000])
def test_too_many_ranges_are_joined_where_the_gaps_are_smallest(most: int) -> None:
    dice = np.random.default_rng(most)
    edges = np.cumsum(dice.integers(1, 50, 1000)).astype(np.int64)
    exact = Extents(edges[::2], edges[1::2])
    joined = exact.at_most(most)
    assert len(joined) <= most and not exact - joined
    gaps = np.sort(exact.offsets[1:] - (exact.offsets + exact.lengths)[:-1])
    assert joined.total - exact.total == gaps[: len(exact) - len(joined)].sum()


def test_a_list_of_changes_is_gathered_within_a_bound() -> None:
    def gather(count: int) -> Extents:
        found = Gathering(most=1000)
        for i in range(count):
            found.add(i * 3 * GRANULE, GRANULE)
        return found.extents()

    assert gather(500) == Extents.of((i * 3 * GRANULE, GRANULE) for i in range(500))
    every = Extents.of((i * 3 * GRANULE, GRANULE) for i in range(20_000))
    assert len(gather(20_000)) == 1000 and not every - gather(20_000)
    assert peak(lambda: gather(20_000)) < 1.5 * peak(lambda: gather(4_000))


def striped_map(odd: bool) -> SegmentMap:
    """Every other granule lies in a pack, so that each is a step of its own."""
    starts = np.arange(GRANULES, dtype=np.uint32)
    places = np.where(np.arange(GRANULES) % 2 == odd, np.uint64(1 << PLACE_PACK | 1 << PLACE_SLOT), np.uint64(0))
    return SegmentMap(starts, places.astype(np.uint64), np.array([7], np.uint64))


def test_a_difference_has_so_many_ranges_at_most(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MapsWriter(store.path / "maps", "run", store._maps.keys)
    name = str(writer.append(striped_map(odd=False)))
    writer.seal()
    disk = point_disk(10 * SEGMENT, [name] * 10)
    monkeypatch.setattr(diff, "MOST", 2000)  # millions
    found = store.diff(None, disk)
    assert 1500 < len(found) <= 2000
    assert found.total < 10 * SEGMENT and len(Extents.of([(0, 8 * GRANULE)]) - found) <= 4
    monkeypatch.setattr(diff, "MOST", 10 * GRANULES)
    exact = store.diff(None, disk)
    assert len(exact) == 10 * GRANULES // 2 and not exact - found


class _Busy(Points):
    """Another VM commits whenever a point is read, as it is with thousands of them."""

    commits = 0

    def read(self, vm: str, seq: int) -> RestorePoint | None:
        found = super().read(vm, seq)
        self.commits += 1
        if self.commits < 400 and found is not None:
            _publish(self.root, f"other-{self.commits % 7}", 1 + self.commits // 7, (), self.keys)
        return found


def _publish(root: Path, vm: str, seq: int, names: tuple[str, ...], keys: Keys) -> None:
    point = make_point(None, f"run-{vm}-{seq}", [point_disk(len(names) * SEGMENT or SEGMENT, names)], vm)
    point = point.model_copy(update={"seq": seq})
    (root / vm).mkdir(exist_ok=True)
    (root / vm / f"{seq:08d}.json").write_bytes(encode(point, keys))


def test_all_points_are_read_while_other_vms_commit_all_the_time(store: Store) -> None:
    point, _ = backup(store, MemoryDisk(MIB, {0: noise(GRANULE, 1)}))
    busy = _Busy(store.path / "points", store._maps.keys)
    found = needed.needed(busy, store._maps, [point.run, "run-other-1-99"])
    assert list(found.segments) == list(point.disks[0].segments) and found.runs == {point.run}


def test_a_point_is_retired_while_its_vm_is_read(store: Store) -> None:
    """The one that came meanwhile is read in its place: what both share is not lost."""
    disk = MemoryDisk(2 * SEGMENT, {0: noise(GRANULE, 1)})
    first, _ = backup(store, disk)

    class Exchanged(Points):
        def read(self, vm: str, seq: int) -> RestorePoint | None:
            if seq == first.seq:
                disk.put(SEGMENT, noise(GRANULE, 2))
                second, _ = backup(store, disk)
                store.retire(VM, first.id)
                assert second.disks[0].segments[0] == first.disks[0].segments[0]
            return super().read(vm, seq)

    found = needed.needed(Exchanged(store.path / "points", store._maps.keys), store._maps)
    assert first.disks[0].segments[0] in list(found.segments)


def test_references_are_held_by_pack_and_not_by_segment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "IN_MEMORY", 1 << 14)  # 8 MiB
    writer = MapsWriter(store.path / "maps", "run", store._maps.keys)
    names = [str(writer.append(striped_map(odd=False)._replace(starts=np.array([0, i + 1], np.uint32),
             places=np.array([1 << PLACE_PACK, 0], np.uint64)))) for i in range(1000)]  # fmt: skip
    writer.seal()
    root, keys = store.path / "points", store._maps.keys
    for vm in range(4):
        _publish(root, f"vm-{vm}", 1, tuple(names[:100]), keys)
    few = settled(lambda: needed.needed(Points(root, keys), store._maps))
    for vm in range(4, 10):
        _publish(root, f"vm-{vm}", 1, tuple(names[vm * 100 : vm * 100 + 100]), keys)
    assert settled(lambda: needed.needed(Points(root, keys), store._maps)) < few + 20_000
    found = needed.needed(Points(root, keys), store._maps)
    assert found.packs == {7} and len(list(found.segments)) == 1000


def test_points_that_share_segments_hold_their_names_once(store: Store) -> None:
    names = tuple(f"{i:032x}-{i:016x}-1000-2000" for i in range(1000))
    for seq in range(1, 3):
        _publish(store.path / "points", VM, seq, names, store._maps.keys)
    few = peak(lambda: store.points(VM))
    for seq in range(3, 33):
        _publish(store.path / "points", VM, seq, names, store._maps.keys)
    made = store.points(VM)
    assert len({id(name) for point in made for name in point.disks[0].segments}) == 1000
    del made
    assert peak(lambda: store.points(VM)) < few + 30 * 1000 * 20


def test_verify_holds_a_number_for_each_pack(store: Store) -> None:
    backup(store, MemoryDisk(8 * MIB, {g: noise(GRANULE, g) for g in range(2048)}))
    slots: dict[int, int] = {}
    assert list(store.verifier().of_vm(VM, slots)) == []
    assert [type(highest) for highest in slots.values()] == [int] and set(slots.values()) == {31}


def test_usage_is_looked_at_from_anywhere_and_within_the_time(store: Store) -> None:
    from workers.store import victims

    ids = list(range(1 << 60, 1 << 64, 1 << 60))
    begun = {victims._from_anywhere(ids)[0] for _ in range(400)}
    assert len(begun) > 10
    assert sorted(victims._from_anywhere(ids)) == ids
    assert usage.TOGETHER <= 1 << 27 and disk_model(SEGMENT).capacity == SEGMENT


def test_a_scan_reads_of_the_store_only_what_no_digest_proves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk(40 * MIB, {g: noise(GRANULE, g) for g in range(0, 1024)})
    disk.granules |= {2048: noise(GRANULE, 9), 2050: noise(GRANULE, 10)}  # scraps, which share a blob
    backup(store, disk)
    decoded: list[int] = []
    real = read.opened
    # counted; it opens as ever
    monkeypatch.setattr(read, "opened", lambda pack, slot, data: decoded.append(slot) or real(pack, slot, data))
    _, made = backup(store, disk, mode="compare")
    assert len(decoded) == 1 and not any(segment.differing for segment in made)
    disk.put(5 * GRANULE, noise(GRANULE, 77))
    del disk.granules[700]
    disk.put(3000 * GRANULE, noise(GRANULE, 78))
    decoded.clear()
    before = disk.copy()
    _, (segment,) = backup(store, disk, mode="compare")
    assert segment.differing == Extents.of([(g * GRANULE, GRANULE) for g in (5, 700, 3000)])
    assert len(decoded) == 3, "the two chunks that differ, and the scraps"
    point = store.newest(VM)
    assert point is not None
    (piece,) = [store.reader(point, "disk-1").read([(0, 4 * MIB)])]
    assert b"".join(bytes(p.data or bytes(p.length)) for p in piece) == before.content(0, 4 * MIB)
