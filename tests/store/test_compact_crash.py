"""A compaction that is killed at each file operation, with and without power loss, and one beside busy processes."""

from __future__ import annotations

import multiprocessing
import random
import secrets
import shutil
import time
import traceback
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.store.conftest import KEY
from tests.store.crashing import Died, Machine
from tests.store.disks import VM, MemoryDisk, assert_content, backup
from tests.store.living import SIZE, Base, assert_as_before, compacted, leftovers, lived, scribble
from workers.store import Store, keyring


@pytest.fixture(scope="module")
def base(kind_of_store: str, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return lived(tmp_path_factory.mktemp("lived") / "store", points=4, keep=2)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["every seventh", "every"])
def test_every_operation(base: Base, step: int, power: bool, tmp_path: Path) -> None:
    """What was committed is whole after it; the next compaction goes on, and in the end nothing is left over."""
    for die_at in range(0, 1000, step):
        here = tmp_path / str(die_at)
        shutil.copytree(base.path, here / "store")
        machine = Machine(here / "store", here / "attic", die_at)
        store = Store.open(here / "store")
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch)
            try:
                store.compact(below=0.9)
                store.prune()
                died = False
            except Died:
                died = True
        del store
        if power:
            machine.lose_power()
        store = Store.open(here / "store")
        assert_as_before(store, base.history, exact=False)
        compacted(store, 0.9)
        assert_as_before(store, base.history)
        assert leftovers(store) == []
        shutil.rmtree(here)
        if not died:
            assert die_at > 30
            return
    pytest.fail("it never came to its end")


def _opened(path: Path) -> Store:
    """In a process of its own, which does not know what kind of stores are tested."""
    return Store.open(path, KEY if keyring.read(path).sealed else None)


def _back_up(path: Path, stop: Event, troubles: Queue[str]) -> None:
    """Backups of three VMs in turn, each on top of the one before; some are retired, the rest is read in the end."""
    disks = {f"busy-{i}": (MemoryDisk(SIZE), list[tuple[str, MemoryDisk]]()) for i in range(3)}
    try:
        for seed in range(10_000):
            vm = f"busy-{seed % 3}"
            disk, history = disks[vm]
            scribble(disk, seed, writes=8)
            store = _opened(path)
            history.append((backup(store, disk, vm=vm)[0].id, disk.copy()))
            if len(history) > 4:
                store.retire(vm, history.pop(secrets.randbelow(3))[0])
            del store
            if stop.is_set() and seed > 6:
                break
        for vm, (_, history) in disks.items():
            for point_id, truth in history:
                store = _opened(path)
                assert_content(store, store.point(vm, point_id), truth)
    except BaseException:
        troubles.put(f"backing up: {traceback.format_exc()}")


def _read(path: Path, stop: Event, troubles: Queue[str], history: list[tuple[str, MemoryDisk]]) -> None:
    """Restores of points that nobody pinned, one after the other; and pins that come and go."""
    try:
        while not stop.is_set():
            point_id, truth = random.choice(history)
            store = _opened(path)
            point = store.point(VM, point_id)
            reader = store.reader(point, "disk-1")
            for batch in truth.allocated().batches(64 << 10):
                for piece in reader.read(batch):
                    assert bytes(piece.data or bytes(piece.length)) == truth.content(piece.offset, piece.length)
                time.sleep(0.001)
            store.pin(VM, point_id, "pair-1")
            store.unpin(VM, point_id, "pair-1")
    except BaseException:
        troubles.put(f"reading: {traceback.format_exc()}")


def test_beside_processes_that_back_up_read_pin_and_retire(base: Base, tmp_path: Path) -> None:
    """Three jobs from the first to the last step, with everything going on."""
    path = tmp_path / "store"
    shutil.copytree(base.path, path)
    spawned = multiprocessing.get_context("spawn")
    stop, troubles = spawned.Event(), spawned.Queue()
    history = [(point.id, truth) for point, truth in base.history]
    children = [
        spawned.Process(target=_back_up, args=(path, stop, troubles)),
        spawned.Process(target=_read, args=(path, stop, troubles, history)),
    ]
    for child in children:
        child.start()
    states: list[str] = []
    try:
        deadline = time.monotonic() + 120
        while states.count("done") < 3 and time.monotonic() < deadline and all(child.is_alive() for child in children):
            states.append(Store.open(path).compact(below=0.95).state)
            Store.open(path).prune()
    finally:
        stop.set()
        for child in children:
            child.join()
    assert troubles.empty(), troubles.get()
    assert states.count("done") >= 3
    store = Store.open(path)
    compacted(store)
    assert_as_before(store, base.history)
    assert leftovers(store) == []
