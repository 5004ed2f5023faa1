"""A store whose packs are mostly dead, for the tests of compaction; and what must hold of it whatever happens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from workers.extents import GRANULE
from workers.models import RestorePoint
from workers.store import Store

MIB = 1 << 20
SIZE = 8 * MIB

History = list[tuple[RestorePoint, MemoryDisk]]


class Base(NamedTuple):
    path: Path
    history: History


def scribble(disk: MemoryDisk, seed: int, writes: int = 40) -> None:
    """Chunks and scraps, here and there."""
    rng = random.Random(seed)
    for i in range(writes):
        granules = rng.choice([1, 1, 2, 3, 30])
        disk.put(rng.randrange(0, SIZE // GRANULE - granules) * GRANULE, noise(granules * GRANULE, seed * 1000 + i))


def lived(path: Path, points: int = 8, keep: int = 4) -> Base:
    """Many points, of which the last few are kept."""
    store, disk, made = Store.create(path), MemoryDisk(SIZE), History()
    disk.put(0, noise(2 * MIB, 7))
    for seed in range(points):
        scribble(disk, seed)
        made.append((backup(store, disk)[0], disk.copy()))
    for point, _ in made[:-keep]:
        store.retire(VM, point.id)
    store.prune()
    store.close()
    return Base(path, made[-keep:])


def compacted(store: Store, below: float = 0.95) -> None:
    """Until there is nothing to do, and what that leaves is deleted."""
    for _ in range(50):
        report = store.compact(below=below)
        assert report.state in ("done", "goes on", "nothing to do"), report
        if report.state == "nothing to do":
            break
    assert store.prune().waiting == 0


def assert_as_before(store: Store, history: History, *, exact: bool = True) -> None:
    now = {point.id: point for point in store.points(history[0][0].vm.instance_uuid)}
    for point, truth in history:
        mine = now[point.id]
        assert_content(store, mine, truth)
        names = {"disks": mine.disks}
        assert point.model_copy(update=names) == mine, "nothing but the names of segments changes"
        for other, earlier in history:
            found = store.diff(now[other.id].disks[0], mine.disks[0])
            assert not truth.differs(earlier) - found, "a diff that reports too little loses data"
            assert not exact or found == truth.differs(earlier)
    assert store.verify(deep=True) == []
    store.close()  # or compactions by others would wait for us, who have read


def leftovers(store: Store) -> list[Path]:
    kept = [path for folder in ("compaction", "tombs", "writers") for path in (store.path / folder).iterdir()]
    return [*kept, *(path for path in store.path.rglob(".*") if path.name != ".exchange")]


def size_of(store: Store) -> int:
    return sum(path.stat().st_size for folder in ("packs", "maps") for path in (store.path / folder).iterdir())
