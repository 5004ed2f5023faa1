"""The dedup index: only a hint, published and merged without coordination, rebuilt from the packs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from workers.store import Store, index, layout
from workers.store.index import Run, joined, merge, open_runs, write_run

MIB = 1 << 20


def disk_of(seed: int) -> MemoryDisk:
    disk = MemoryDisk(4 * MIB)
    disk.put(0, noise(2 * MIB, seed))
    return disk


def runs(store: Store) -> list[Path]:
    return sorted((store.path / "index").glob("*.idx"))


def stored_again(store: Store, seed: int) -> int:
    _, made = backup(store, disk_of(seed), mode="full", vm=f"vm-{len(list((store.path / 'points').iterdir()))}")
    return made[0].stored


def test_losing_the_index_loses_nothing(store: Store) -> None:
    point, _ = backup(store, disk_of(1))
    assert stored_again(store, 1) < 10_000
    for path in runs(store):
        path.unlink()
    assert_content(store, point, disk_of(1))
    assert stored_again(store, 1) > MIB
    for path in runs(store):
        path.unlink()
    store.prune()
    assert stored_again(store, 1) < 10_000, "prune built it again from the trailers"


@pytest.mark.parametrize("how", ["cut", "scribbled", "wrong places"])
def test_a_damaged_index_costs_duplicates_only(store: Store, how: str) -> None:
    backup(store, disk_of(1))
    for path in runs(store):
        data = bytearray(path.read_bytes())
        if how == "cut":
            data = data[: len(data) // 2]
        elif how == "scribbled":
            data[64:] = noise(len(data) - 64, 3)
        else:
            data[-8:] = (1 << 40 | 77).to_bytes(8, "little")
            data[-16:-8] = (3).to_bytes(8, "little")
        path.write_bytes(data)
    point, _ = backup(store, disk_of(1), mode="full")
    assert_content(store, point, disk_of(1))
    assert store.verify(deep=True) == [] or how == "cut"


def test_equal_first_eight_bytes_are_not_equal_content(store: Store) -> None:
    """A hit in the index counts only when the pack's trailer shows the whole digest."""
    backup(store, disk_of(1))
    path = runs(store)[0]
    found = Run.open(path)
    other = store._packs.keys.digest(noise(256 << 10, 77))
    keys = found.keys.copy()
    keys[:] = int.from_bytes(other[:8], "little")
    path.unlink()
    write_run(store.path / "index", Run(found.packs.copy(), keys, found.places.copy()))
    point, made = backup(store, disk_of(77), vm="other")
    assert made[0].stored > MIB
    assert_content(store, point, disk_of(77))


def test_many_runs_are_merged_and_the_dead_are_dropped(store: Store) -> None:
    for seed in range(index.RUNS + 3):
        backup(store, disk_of(seed), mode="full")
    assert len(runs(store)) == index.RUNS + 3
    for point in store.points(VM)[:3]:
        store.retire(VM, point.id)
    store.prune()
    assert len(runs(store)) <= index.RUNS
    packs = {int(pack) for run in open_runs(store.path / "index") for pack in run.packs.tolist()}
    assert packs == {int(path.stem, 16) for path in (store.path / "packs").iterdir()}
    for seed in range(3, index.RUNS + 3):
        assert stored_again(store, seed) < 10_000
    assert stored_again(store, 0) > MIB


def test_a_merge_equals_one_sorted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part by part with little memory, with keys that occur twice, and one merge over another's result."""
    monkeypatch.setattr(index, "MERGE", 1000)  # the little memory
    dice = np.random.default_rng(5)
    everything: set[tuple[int, int, int]] = set()
    for number in range(index.RUNS + 4):
        packs = np.array([100 + number, 7], np.uint64)
        keys = np.sort(dice.integers(0, 1 << 63, 700, dtype=np.uint64) * np.uint64(2))
        places = np.arange(700, dtype=np.uint64) | (dice.integers(0, 2, 700, dtype=np.uint64) << np.uint64(32))
        write_run(tmp_path, Run(packs, keys, places))
        rows = zip(keys.tolist(), packs[(places >> np.uint64(32)).astype(int)].tolist(), places.tolist(), strict=True)
        everything |= {(key, pack, place & 0xFFFFFFFF) for key, pack, place in rows}
    assert merge(tmp_path)
    assert not merge(tmp_path)
    found = [
        (key, int(run.packs[place >> 32]), place & 0xFFFFFFFF)
        for run in open_runs(tmp_path)
        for key, place in zip(run.keys.tolist(), run.places.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(everything)
    for run in open_runs(tmp_path):
        assert (np.diff(run.keys.astype(object)) >= 0).all()
    assert len(joined(open_runs(tmp_path))) == len(everything)


def test_a_writer_publishes_while_it_works(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small packs, few entries before a publication: what the run itself stored is found again all the time."""
    monkeypatch.setattr(layout, "PACK", MIB)
    monkeypatch.setattr(index, "PUBLISH", 8)
    disk = MemoryDisk(128 * MIB)
    disk.put(0, noise(24 * MIB, 1))
    disk.put(64 * MIB, noise(24 * MIB, 1))
    point, made = backup(store, disk)
    assert made[0].stored < 30 * MIB
    assert len(list((store.path / "packs").iterdir())) > 2
    assert len(runs(store)) > 1
    assert_content(store, point, disk)


def test_a_run_that_prune_merges_at_once_stops_no_backup(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its publication and the moment its writer opens it, its content went into another file."""
    publish = index.write_run

    def merged(folder: Path, run: Run) -> Path | None:
        path = publish(folder, run)
        if path is not None:
            path.rename(path.with_name("00000000000000aa.idx"))
        return path

    monkeypatch.setattr(index, "write_run", merged)  # that very moment has no step
    point, _ = backup(store, disk_of(1))
    assert_content(store, point, disk_of(1))
