"""Publication without link(2) and flock: whatever happens between any two requests, what is published can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.conftest import objects
from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, write_disk
from tests.store.objects import ObjectPath
from workers.errors import Conflict, NotFound, Refused, Transient
from workers.models import RestorePoint
from workers.store import Store, StoreWriter, presence, publishing

MIB = 1 << 20


class Died(BaseException):
    """Not an Exception: no clean-up of the program may catch it."""


class World:
    """A store in objects with one point, and a run that is about to commit the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.root = objects(folder)
        self.store = Store.create(self.root)
        self.disk = MemoryDisk(4 * MIB)
        self.disk.put(0, noise(64 << 10, 1))
        self.first, _ = backup(self.store, self.disk)
        self.disk.put(MIB, noise(64 << 10, 2))
        self.store.close()

    def about_to(self, run: str) -> tuple[StoreWriter, RestorePoint]:
        writer = self.store.writer(run)
        made, _ = write_disk(writer, self.disk, self.disk.allocated(), self.first.disks[0])
        return writer, make_point(self.first, run, [made])

    def at_change(self, number: int, action: Callable[[], None]) -> list[str]:
        """Before the n-th change from now on; returns the changes, as they are asked for."""
        asked: list[str] = []

        def before(verb: str, key: str) -> None:
            asked.append(f"{verb} {key}")
            if len(asked) == number + 1:
                self.root.objects.before = lambda verb, key: None
                action()
                self.root.objects.before = before

        self.root.objects.before = before
        return asked

    def die(self) -> None:
        """Nothing is asked for after this."""

        def dead(verb: str, key: str) -> None:
            raise Died

        self.root.objects.before = dead
        raise Died

    def quiet(self) -> None:
        self.root.objects.before = lambda verb, key: None

    def judge(self, point: RestorePoint, *, published: bool) -> None:
        self.quiet()
        other = Store.open(self.root)
        live = [each.id for each in other.points(VM)]
        assert (point.id in live) == published and self.first.id in live
        assert other.verify(deep=True) == []
        if published:
            assert_content(other, point, self.disk)
        other.close()
        disk = self.disk.copy()
        disk.put(2 * MIB, noise(64 << 10, 9))
        after, _ = backup(other, disk, run="after")
        assert_content(other, after, disk)
        other.close()
        assert other.prune().waiting == 0
        assert other.verify(deep=True) == []
        other.close()


def changes_of_a_commit(folder: Path) -> int:
    world = World(folder)
    writer, point = world.about_to("run")
    asked = world.at_change(1000, lambda: None)
    writer.commit(point)
    return len(asked)


def test_hole_13_a_run_that_is_ended_between_any_two_requests_of_its_commit(tmp_path: Path) -> None:
    """Abandoned, and pruned, while its process is stopped: what it publishes after that it cannot publish."""
    outcomes = set()
    for number in range(changes_of_a_commit(tmp_path / "count")):
        world = World(tmp_path / str(number))
        writer, point = world.about_to("run")

        def meanwhile(world: World = world) -> None:
            Store.open(world.root).abandon("run")
            Store.open(world.root).prune()

        world.at_change(number, meanwhile)
        try:
            writer.commit(point)
            published = True
        except Conflict:
            published = False
        writer.close()
        world.judge(point, published=published)
        outcomes.add(published)
    assert outcomes == {True, False}, "in the beginning it is stopped, at the end it is through"


def test_a_writer_that_dies_between_any_two_requests_of_its_commit(tmp_path: Path) -> None:
    """Another process goes on with the run, or another run takes the number: nobody waits for the dead."""
    for number in range(changes_of_a_commit(tmp_path / "count")):
        world = World(tmp_path / str(number))
        writer, point = world.about_to("run")
        world.at_change(number, world.die)
        with pytest.raises(Died):
            writer.commit(point)
        world.quiet()
        there = Store.open(world.root).newest(VM)
        published = there is not None and there.id == point.id
        if number % 2 or published:
            Store.open(world.root).abandon("run")
        world.judge(point, published=published)


def test_two_runs_want_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between any two requests, the first finds that the second was quicker, or the other way round."""
    monkeypatch.setattr(publishing, "PATIENCE", 0.0)  # seconds, for each of these worlds
    for number in range(changes_of_a_commit(tmp_path / "count")):
        world = World(tmp_path / str(number))
        writer, point = world.about_to("run")
        second, other = world.about_to("other")
        said: list[BaseException] = []

        def meanwhile(second: StoreWriter = second, other: RestorePoint = other, said: list = said) -> None:
            try:
                second.commit(other)
            except Conflict as err:
                said.append(err)

        world.at_change(number, meanwhile)
        try:
            writer.commit(point)
        except Conflict as err:
            said.append(err)
        assert len(said) == 1, "one is published, the other is told"
        world.quiet()
        won = Store.open(world.root).newest(VM)
        assert won is not None and won.id in (point.id, other.id)
        for run in ("run", "other"):
            world.store.abandon(run)
        world.judge(point, published=won.id == point.id)


def test_hole_14_a_pin_between_any_two_requests_of_a_retirement(tmp_path: Path) -> None:
    for number in range(6):
        world = World(tmp_path / str(number))
        backup(world.store, world.disk, mode="full")
        pinned: list[bool] = []

        def pin(world: World = world, pinned: list[bool] = pinned) -> None:
            try:
                world.store.pin(VM, world.first.id, "pair-1")
                pinned.append(True)
            except NotFound:
                pinned.append(False)

        world.at_change(number, pin)
        retired = True
        try:
            world.store.retire(VM, world.first.id)
        except Refused:
            retired = False
        world.quiet()
        held = bool(pinned) and pinned[0]
        assert not (held and retired), "a point that is pinned stays"
        assert (world.first.id in [p.id for p in world.store.points(VM)]) == (not retired)
        assert (world.first.id in world.store.pins(VM)) == held


def test_a_retirement_that_died_holds_nothing_up(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    backup(world.store, world.disk, mode="full")
    world.at_change(1, world.die)
    with pytest.raises(Died):
        world.store.retire(VM, world.first.id)
    world.quiet()
    assert world.root.objects.held[f"points/{VM}/00000001.json"][0].startswith(b'{"marked":')
    assert_content(world.store, world.first, world_at_first(world))
    world.store.pin(VM, world.first.id, "pair-1")
    with pytest.raises(Refused, match="pair-1"):
        world.store.retire(VM, world.first.id)
    world.store.unpin(VM, world.first.id, "pair-1")
    world.store.retire(VM, world.first.id)


def world_at_first(world: World) -> MemoryDisk:
    disk = world.disk.copy()
    disk.put(MIB, bytes(64 << 10))
    return disk


def test_a_reader_that_slept_too_long_is_told_to_begin_anew(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    sleeper = Store.open(world.root)
    point = sleeper.points(VM)[0]
    reader = sleeper.reader(point, point.disks[0].disk.id)
    backup(world.store, world.disk, mode="full")
    world.store.retire(VM, point.id)
    world.store.close()
    assert world.store.prune().waiting > 0, "it is waited for"
    world.root.objects.now += presence.DEAD + 1
    assert world.store.prune().waiting == 0, "and then no more"
    assert sleeper._reading is not None and sleeper._reading._presence is not None
    sleeper._reading._presence._seen -= presence.DEAD + 1
    with pytest.raises(Transient, match="begins anew"):
        reader.read([(0, 64 << 10)])


def test_a_lock_of_the_dead_is_taken_over_and_of_the_living_is_not(tmp_path: Path) -> None:
    root = objects(tmp_path)
    lock: ObjectPath = root / "prune.lock"
    with presence.alone(lock) as mine, presence.alone(lock) as other:
        assert mine and not other
        root.objects.now += presence.DEAD + 1
        with presence.alone(lock) as late:
            assert late
    with presence.alone(lock) as again:
        assert again
