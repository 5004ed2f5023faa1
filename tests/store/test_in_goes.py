"""A segment that takes longer than a task may is made in several goes, by several writers: the same as in one."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, point_disk
from workers.extents import EMPTY, GRANULE, Extents
from workers.models import PointDisk, RestorePoint
from workers.store import Segment, Store
from workers.store.layout import BLOCK, SEGMENT

MIB = 1 << 20


def in_goes(
    store: Store,
    source: MemoryDisk,
    candidates: Extents,
    *,
    mode: str = "delta",
    exact: Extents = EMPTY,
    threads: int = 2,
) -> tuple[RestorePoint, list[Segment]]:
    """Each go is another writer's, who has time for one batch, and dies after its checkpoint."""
    parent = store.newest(VM)
    before: PointDisk | None = parent.disks[0] if parent is not None else None
    names, goes = [], []
    for index in range(-(-source.size // SEGMENT)):
        begin, made, end = index * SEGMENT, "", min(source.size, (index + 1) * SEGMENT)
        while begin < end:
            with Store.open(store.path).writer("run-in-goes") as writer:
                segment = writer.segment(
                    index,
                    size=source.size,
                    source=source,
                    candidates=candidates.clip(begin, end),
                    parent=before,
                    threads=threads,
                    mode=mode,  # type: ignore[arg-type]
                    exact=exact,
                    begin=begin,
                    made=made,
                    until=time.monotonic() - 1,
                )
                writer.flush()
            assert segment.done > begin and (segment.done == end or segment.done % BLOCK == 0)
            begin, made = segment.done, segment.name
            goes.append(segment)
        names.append(made)
    assert store.prune().packs == 0
    with store.writer("run-in-goes") as writer:
        point = make_point(parent, "run-in-goes", [point_disk(source.size, names)])
        writer.commit(point)
    return point, goes


def grown(seed: int) -> tuple[MemoryDisk, MemoryDisk, Extents]:
    """A disk, what it became, and where that differs: whole batches, lone granules, zeroes, a new end."""
    rng = random.Random(seed)
    disk = MemoryDisk(SEGMENT + 5 * MIB)
    disk.put(0, noise(20 * MIB, seed))
    disk.put(SEGMENT - 3 * MIB, noise(6 * MIB, seed + 1))
    before = disk.copy()
    disk.size += 3 * MIB
    disk.put(0, noise(9 * MIB, seed + 2))
    disk.put(12 * MIB, bytes(MIB))
    disk.put(disk.size - MIB, noise(MIB, seed + 3))
    for number in range(200):
        disk.put(rng.randrange(9 * MIB // GRANULE, 20 * MIB // GRANULE) * GRANULE, noise(GRANULE, 1000 * seed + number))
    return before, disk, disk.differs(before)


@pytest.mark.parametrize(
    ("mode", "threads"),
    [
        ("delta", 2),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("compare", 1), ("full", 3), ("exact", 1))),
    ],
)
def test_in_goes_as_in_one(tmp_path: Path, mode: str, threads: int) -> None:
    before, disk, truth = grown(1)
    coarse = truth.align(1 << 16, disk.size) | Extents.of([(30 * MIB, 40 * MIB)])
    candidates = {"delta": coarse, "compare": disk.allocated(), "full": disk.allocated(), "exact": truth}[mode]
    how = {"mode": "delta" if mode == "exact" else mode, "exact": truth if mode == "exact" else EMPTY}
    found = []
    for name in ("one", "goes"):
        store = Store.create(tmp_path / name)
        backup(store, MemoryDisk(before.size, {g: noise(GRANULE, 99) for g in before.granules}))
        parent, _ = backup(store, before)  # its places are in two packs, of which the first go leaves one
        if name == "one":
            point, made = backup(store, disk, candidates, threads=threads, **how)  # type: ignore[arg-type]
        else:
            point, made = in_goes(store, disk, candidates, threads=threads, **how)  # type: ignore[arg-type]
            assert len(made) >= 3
        assert_content(store, point, disk)
        assert_content(store, parent, before)
        told = store.diff(parent.disks[0], point.disks[0])
        assert told == truth or (mode == "full" and not truth - told)  # what is stored again whole lies elsewhere
        assert not truth.clip(0, before.size) - store.diff(point.disks[0], parent.disks[0])
        assert store.verify(deep=True) == []
        found.append((sum(s.changed for s in made), sum(s.read for s in made)))
    assert found[0] == found[1]


def test_a_first_go_that_finds_nothing_but_zeroes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    disk = MemoryDisk(SEGMENT)
    disk.put(40 * MIB, noise(MIB, 1))
    point, made = in_goes(store, disk, Extents.whole(disk.size).clip(0, 48 * MIB))
    assert made[0].name == "" and len(made) > 2
    assert_content(store, point, disk)


def test_what_was_not_reached_is_the_parents(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    disk = MemoryDisk(64 * MIB)
    disk.put(0, noise(64 * MIB, 1))
    parent, _ = backup(store, disk)
    before = disk.copy()
    disk.put(0, noise(64 * MIB, 2))
    with store.writer("run-1") as writer:
        segment = writer.segment(
            0, size=disk.size, source=disk, candidates=disk.allocated(), parent=parent.disks[0], until=0
        )
        assert 8 * MIB <= segment.done < 64 * MIB and segment.read == segment.done
        point = make_point(parent, "run-1", [point_disk(disk.size, [segment.name])])
        writer.commit(point)
    expected = before.copy()
    expected.put(0, disk.content(0, segment.done))
    assert_content(store, point, expected)
