"""Killed at each file operation, with and without power loss: what was committed is whole, the rest is as if never."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.store.crashing import Died, Machine
from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, write_disk
from workers.errors import NotFound
from workers.models import RestorePoint
from workers.store import Store

MIB = 1 << 20


class World(NamedTuple):
    """A store with two points; the third state of the disk is what the scenarios back up."""

    path: Path
    points: list[RestorePoint]
    states: list[MemoryDisk]


@pytest.fixture(scope="module")
def world(kind_of_store: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("base") / "store"
    store, disk = Store.create(path), MemoryDisk(6 * MIB)
    points, states = [], []
    for i in range(3):
        disk.put(i * MIB, noise(80_000, i))
        disk.put(5 * MIB + 3 * i * 4096, noise(4096, i))
        states.append(disk.copy())
        if i < 2:
            points.append(backup(store, disk)[0])
    return World(path, points, states)


def back_up(store: Store, world: World, done: list[str]) -> None:
    disk = world.states[2]
    with store.writer("crashing") as writer:
        made, _ = write_disk(writer, disk, disk.allocated(), world.points[1].disks[0], threads=1)
        writer.commit(make_point(world.points[1], "crashing", [made]))
        done.append("committed")


def pin(store: Store, world: World, done: list[str]) -> None:
    store.pin(VM, world.points[0].id, "pair-1")
    done.append("pinned")


def retire_and_prune(store: Store, world: World, done: list[str]) -> None:
    store.retire(VM, world.points[0].id)
    done.append("retired")
    store.prune()


def abandon_and_prune(store: Store, world: World, done: list[str]) -> None:
    disk = world.states[2]
    with store.writer("given-up") as writer:
        write_disk(writer, disk, disk.allocated(), world.points[1].disks[0], threads=1)
        writer.flush()
    store.abandon("given-up")
    store.prune()


SCENARIOS = [back_up, pin, retire_and_prune, abandon_and_prune]


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_operation(
    scenario: Callable[[Store, World, list[str]], None], power: bool, world: World, tmp_path: Path
) -> None:
    for die_at in range(500):
        here = tmp_path / str(die_at)
        shutil.copytree(world.path, here / "store")
        machine, done = Machine(here / "store", here / "attic", die_at), list[str]()
        store = Store.open(here / "store")
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch)
            try:
                scenario(store, world, done)
                died = False
            except Died:
                died = True
        del store
        if power:
            machine.lose_power()
        check(Store.open(here / "store"), world, done)
        shutil.rmtree(here)
        if not died:
            assert die_at > 5
            return
    pytest.fail("the scenario never came to its end")


def check(store: Store, world: World, done: list[str]) -> None:
    assert store.verify(deep=True) == []
    found = {point.seq: point for point in store.points(VM)}
    assert 2 in found
    assert 1 in found or "retired" in done or not store.pins(VM)
    assert 3 in found or "committed" not in done
    assert 1 not in found or "retired" not in done
    assert "pinned" not in done or store.pins(VM) == {world.points[0].id: {"pair-1"}}
    for seq, point in found.items():
        assert_content(store, point, world.states[seq - 1])
    goes_on(store, world)


def goes_on(store: Store, world: World) -> None:
    """Whatever was left behind stops nobody: the next backup, pins, retirement and prune work, and nothing is kept."""
    for run in store.runs():
        store.abandon(run)
    point, _ = backup(store, world.states[2])
    assert_content(store, point, world.states[2])
    for other in store.points(VM)[:-1]:
        for holder in store.pins(VM).get(other.id, set()):
            store.unpin(VM, other.id, holder)
        store.pin(VM, other.id, "test")
        store.unpin(VM, other.id, "test")
        store.retire(VM, other.id)
        with pytest.raises(NotFound):
            store.pin(VM, other.id, "test")
    store.prune()
    assert store.verify(deep=True) == []
    assert_content(store, point, world.states[2])
    assert not list((store.path / "tombs").iterdir())
    assert len(list((store.path / "points" / VM).glob("*.json"))) == 1
    needed = {name.split("-")[1] for name in point.disks[0].segments}
    assert {path.stem for path in (store.path / "maps").iterdir()} == needed


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_create(power: bool, tmp_path: Path) -> None:
    for die_at in range(50):
        here = tmp_path / str(die_at)
        here.mkdir()
        machine = Machine(here / "store", here / "attic", die_at)
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch)
            try:
                Store.create(here / "store")
                died = False
            except Died:
                died = True
        if power:
            machine.lose_power()
        store = Store.create(here / "store")
        assert store.id == Store.open(here / "store").id
        backup(store, MemoryDisk(MIB))
        if not died:
            return
    pytest.fail("never came to its end")
