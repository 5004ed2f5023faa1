"""Prune and commit beside runs that died, were abandoned, or are at work."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.store.disks import (
    VM,
    assert_content,
    backup,
    make_point,
    point_disk,
    write_disk,
)
from tests.store.test_prune import at_step, disk_of, packs
from workers.errors import Conflict, StoreDamaged
from workers.store import Store

MIB = 1 << 20


def test_a_pack_that_is_still_open_here_but_was_pruned_is_not_reused(store: Store) -> None:
    """The index still names it and this process could still read it: only its name in the folder counts."""
    disk = disk_of(1)
    first, _ = backup(store, disk)
    assert_content(store, first, disk)
    backup(store, disk_of(2), mode="full")
    store.retire(VM, first.id)
    assert Store.open(store.path).prune().waiting == 2, "whoever was handed a point may read it"
    store.close()
    assert Store.open(store.path).prune().packs == 1
    point, made = backup(store, disk, mode="full")
    assert made[0].stored > MIB // 2
    assert_content(store, point, disk)


def test_only_one_of_many_commits_wins(store: Store) -> None:
    first, _ = backup(store, disk_of(1))
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def race(number: int) -> None:
        with Store.open(store.path).writer(f"run-{number}") as writer:
            made, _ = write_disk(writer, disk_of(number), disk_of(number).allocated(), first.disks[0], threads=1)
            barrier.wait()
            try:
                writer.commit(make_point(first, f"run-{number}", [made]))
                outcomes.append(f"run-{number}")
            except Conflict:
                pass

    racers = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(outcomes) == 1
    newest = store.newest(VM)
    assert newest is not None and newest.run == outcomes[0]
    assert_content(store, newest, disk_of(int(outcomes[0][4:])))


@pytest.mark.parametrize("broken", ["listing", "manifest", "map"])
def test_prune_deletes_nothing_when_it_cannot_read_everything(
    store: Store, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = backup(store, disk_of(1))
    backup(store, disk_of(2), mode="full")
    backup(store, disk_of(3), vm="other-vm")
    store.retire(VM, first.id)
    before = packs(store)
    if broken == "listing":
        scandir = os.scandir

        def fails(path: Path) -> object:
            if "other-vm" in str(path):
                raise OSError(5, "Input/output error", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", fails)  # a real EIO needs a failing device
    else:
        folder = store.path / ("points/other-vm" if broken == "manifest" else "maps")
        for path in folder.iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2 if broken == "manifest" else 4096 + 8] ^= 1
            path.write_bytes(data)
    with pytest.raises((OSError, StoreDamaged)):
        store.prune()
    monkeypatch.undo()
    assert packs(store) == before


def test_two_prunes_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = backup(store, disk_of(1))
    backup(store, disk_of(2), mode="full")
    store.retire(VM, first.id)
    busy: list[bool] = []
    at_step(monkeypatch, "store.tombstone", lambda: busy.append(Store.open(store.path).prune().busy))
    assert store.prune().packs == 1
    assert busy == [True]


def test_packs_of_a_registered_run_stay_until_it_is_abandoned(store: Store) -> None:
    with store.writer("run") as writer:
        made, _ = write_disk(writer, disk_of(1), disk_of(1).allocated())
        writer.flush()
    del made
    assert store.prune() == store.prune()
    assert len(packs(store)) == 1 and store.runs() == ["run"]
    store.abandon("run")
    store.abandon("run")
    report = store.prune()
    assert report.packs == 1 and report.maps == 1 and packs(store) == set()


def test_a_writer_without_a_commit_publishes_nothing(store: Store) -> None:
    with store.writer("run") as writer:
        write_disk(writer, disk_of(1), disk_of(1).allocated())
    assert packs(store) == set() and store.vms() == []
    empty = point_disk(8 * MIB, [""])
    with store.writer("run") as writer:
        writer.commit(make_point(None, "run", [empty]))
    assert store.vms() == [VM] and store.allocated(empty).total == 0
