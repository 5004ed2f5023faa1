"""Restore points in a second store: copied by runs that may be killed anywhere, kept by rules of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.world import MIB, World
from workers import backup, copy, dispatch, holding, left_behind, prune, status
from workers.errors import BadInput, NoSpace, Refused
from workers.models import RestorePoint, Run, RunKind, RunReport, RunState, Trigger
from workers.restore_held import holder
from workers.run import Here, Live
from workers.settings import Group, StoreSettings
from workers.store import Store, files


def with_far(world: World, **group: Any) -> Here:
    """The realm with a second store, for copies after each backup unless `group` says otherwise."""
    second = StoreSettings(path=world.folder / "far", site="dr")
    Store.create(second.path)
    given = {**world.settings.groups["all"].model_dump(by_alias=True), "copy": {"to": "far"}, **group}
    changes = {
        "stores": {**world.settings.stores, "far": second},
        "groups": {"all": Group.model_validate(given)},
    }
    return Here(world.settings.model_copy(update=changes), world.catalogue)


def far(here: Here) -> Store:
    return Store.open(here.settings.stores["far"].path)


def uuid_of(world: World, name: str) -> str:
    return world.state(name).identity.instance_uuid


def ask(world: World, here: Here, name: str, *, point: str | None = None, turned: bool = False) -> Run:
    stores = ("far", "main") if turned else ("main", "far")
    return copy.request(here, name, uuid_of(world, name), *stores, point=point)[0]


def copied(world: World, here: Here, name: str, **more: Any) -> RunReport:
    return copy.run(here, ask(world, here, name, **more).id)


def reasons(world: World, run: Run | RunReport) -> str:
    return "\n".join(world.catalogue.run(run.id if isinstance(run, Run) else run.run).reasons)


def assert_same(world: World, here: Here, name: str, point: str | None) -> RestorePoint:
    """Byte for byte what the log says, read from the copy alone; and all else as in the source."""
    assert point is not None
    there, uuid = far(here), uuid_of(world, name)
    found, origin = there.point(uuid, point), world.store.point(uuid, point)
    for part in found.disks:
        reader = there.reader(found, part.disk.id)
        data = bytearray(reader.size)
        for piece in reader.read([(0, reader.size)]):
            if piece.data is not None:
                data[piece.offset : piece.offset + piece.length] = piece.data
        assert data == world.held[point][part.disk.id]
    own = {"run", "fence", "created", "disks", "copied_from"}
    assert found.model_dump(exclude=own) == origin.model_dump(exclude=own)
    assert [part.disk for part in found.disks] == [part.disk for part in origin.disks]
    assert found.copied_from == world.store.id
    return found


def test_a_point_is_copied_once_and_by_difference(world: World) -> None:
    world.make_vm("cp", 16 * MIB, 8 * MIB)
    world.scribble("cp", 1)
    here = with_far(world)
    first = world.backup("cp").point
    plan = copy.preview(here, "cp", uuid_of(world, "cp"), "main", "far")
    assert (plan.point, plan.base, plan.where) == (first, None, "by workers of dr, where far stands")
    assert 0 < plan.bytes <= 24 * MIB
    report = copied(world, here, "cp")
    assert (report.outcome, report.point) == ("succeeded", first)
    assert report.stored > 0 and report.read > 0
    assert_same(world, here, "cp", first)
    again = copied(world, here, "cp")
    assert again.outcome == "nothing new" and "already" in reasons(world, again)
    world.write("cp", 4 * MIB, b"new" * 30_000)
    second = world.backup("cp").point
    assert copy.preview(here, "cp", uuid_of(world, "cp"), "main", "far").base == first
    small = copied(world, here, "cp")
    assert small.read < report.read / 10
    assert_same(world, here, "cp", second)
    assert world.catalogue.points(uuid_of(world, "cp"), "far")[-1].id == second
    # Nothing is held after it but what the next copy builds on, and no run is waited for.
    assert world.store.pins(uuid_of(world, "cp")) == {}
    assert far(here).runs() == []
    held = prune.needed(here, "main", world.store, uuid_of(world, "cp"))
    assert held == {second: ["the next copy to far builds on it"]}
    with pytest.raises(Refused, match="a chain only grows"):
        world.store.pin(uuid_of(world, "cp"), first or "", "t")
        far(here).retire(uuid_of(world, "cp"), first or "")
        copied(world, here, "cp", point=first)


def test_both_ends_must_be_two(world: World) -> None:
    world.make_vm("end", 8 * MIB)
    world.backup("end")
    here = with_far(world)
    with pytest.raises(BadInput, match="one store"):
        copy.request(here, "end", uuid_of(world, "end"), "main", "main")
    link = world.folder / "other-name"
    link.symlink_to(world.settings.stores["main"].path)
    stores = {**here.settings.stores, "link": StoreSettings(path=link)}
    linked = Here(here.settings.model_copy(update={"stores": stores}), world.catalogue)
    run, _ = copy.request(linked, "end", uuid_of(world, "end"), "main", "link")
    with pytest.raises(Refused, match="two names"):
        copy.run(linked, run.id)


def _slow(*steps: str) -> list[Any]:
    return [pytest.param(step, marks=pytest.mark.slow) for step in steps]


@pytest.mark.parametrize(
    "step",
    [
        "copy.pinned", "intake.arrived", "copy.after",
        *_slow("store.registered", "slice.claimed", "store.packs-synced", "copy.before", "store.linked",
               "copy.unpinned"),
    ],
)  # fmt: skip
def test_killed_at_each_step_it_goes_on(world: World, step: str) -> None:
    name = f"die-{step}"
    world.make_vm(name, 12 * MIB)
    world.scribble(name, 1)
    here = with_far(world)
    copied(world, here, name) if world.backup(name).point else None
    world.scribble(name, 2)
    point = world.backup(name).point
    run = ask(world, here, name)
    world.killed_at(run, step, here)
    report = copy.run(here, run.id)
    assert (report.outcome, report.point) == ("succeeded", point)
    assert_same(world, here, name, point)
    assert far(here).runs() == [] and world.store.pins(uuid_of(world, name)) == {}
    assert far(here).verify(deep=True) == []


def test_copies_at_once_are_one_run(world: World) -> None:
    world.make_vm("two", 8 * MIB)
    world.scribble("two", 1)
    here = with_far(world)
    point = world.backup("two").point
    runs = [ask(world, here, "two") for _ in range(2)]
    assert runs[0].id == runs[1].id
    reports: list[RunReport] = []
    threads = [threading.Thread(target=lambda: reports.append(copy.run(here, runs[0].id))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(report.outcome for report in reports)[-1] == "succeeded"
    assert_same(world, here, "two", point)
    assert len(far(here).points(uuid_of(world, "two"))) == 1


def test_another_run_on_the_same_chain_is_waited_for(world: World) -> None:
    world.make_vm("busy", 8 * MIB)
    here = with_far(world)
    world.backup("busy")
    ask(world, here, "busy")
    with pytest.raises(Refused, match="is at work on the restore points of busy in far"):
        ask(world, here, "busy", point=world.catalogue.points(uuid_of(world, "busy"))[0].id)


def test_what_retention_wants_meanwhile_stays_until_it_is_copied(world: World) -> None:
    world.make_vm("gone", 8 * MIB)
    world.scribble("gone", 1)
    here = with_far(world, keep={"last": 1})
    first = world.backup("gone").point
    run = ask(world, here, "gone")
    world.killed_at(run, "intake.arrived", here)
    world.scribble("gone", 2)
    backup.run(here, dispatch.request_backup(here, dispatch.find(here, "gone")[0], Trigger.AD_HOC)[0].id)
    assert first in [point.id for point in world.store.points(uuid_of(world, "gone"))]
    assert copy.run(here, run.id).point == first
    assert_same(world, here, "gone", first)


def test_a_point_that_is_gone_ends_the_run_in_words(world: World) -> None:
    world.make_vm("late", 8 * MIB)
    here = with_far(world)
    first = world.backup("late").point
    run = ask(world, here, "late", point=first)
    world.write("late", 0, b"x" * 4096)
    world.backup("late")
    world.store.retire(uuid_of(world, "late"), first or "")
    with pytest.raises(BadInput, match="is not in main any more"):
        copy.run(here, run.id)
    assert world.catalogue.run(run.id).state is RunState.FAILED


def test_a_full_store_is_a_sentence_and_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    world.make_vm("full", 8 * MIB)
    world.scribble("full", 1)
    here = with_far(world)
    point = world.backup("full").point
    run = ask(world, here, "full")
    real = files.write_aligned

    def write(fd: int, view: memoryview, offset: int) -> None:
        if offset:  # a file system that fills up on demand is not to be had here
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_aligned", write)
        with pytest.raises(NoSpace, match=str(here.settings.stores["far"].path)):
            copy.run(here, run.id)
    assert world.catalogue.run(run.id).family == NoSpace.family
    assert run.id in [each.id for each in world.catalogue.unclean_runs()]
    left_behind.clean_up(here, run.id)
    assert far(here).runs() == [] and world.store.pins(uuid_of(world, "full")) == {}
    assert world.catalogue.unclean_runs() == []
    assert copied(world, here, "full").point == point
    assert_same(world, here, "full", point)


def due(here: Here) -> list[Run]:
    return [run for run in dispatch.dispatch(here, here.catalogue.now()) if run.kind is RunKind.COPY]


def test_copies_follow_backups_and_are_kept_by_rules_of_their_own(world: World) -> None:
    world.make_vm("auto", 8 * MIB)
    world.scribble("auto", 1)
    here = with_far(world, keep={"last": 5}, copy={"to": "far", "keep": {"last": 2}})
    assert due(here) == []
    points = []
    for seed in range(4):
        world.write("auto", seed * MIB, bytes([seed + 1]) * 9000)
        points.append(world.backup("auto").point)
        (run,) = [run for run in dispatch.after_backup(here, uuid_of(world, "auto"), "main", points[-1] or "")
                  if run.kind is RunKind.COPY]  # fmt: skip
        assert due(here) == []  # it is under way
        assert copy.run(here, run.id).point == points[-1]
        assert due(here) == []
    uuid = uuid_of(world, "auto")
    assert [point.id for point in far(here).points(uuid)] == points[-2:]
    assert len(world.store.points(uuid)) == 4
    world.write("auto", 0, b"last" * 3000)
    last = world.backup("auto").point
    subjects = holding.subjects(here, ["auto"], which="backups")
    assert [each.what for each in subjects] == ["the backups to main", "the copies to far"]
    for each in subjects:
        holding.pause(here, each, who="a test", reason="the link is needed")
    assert due(here) == []
    for each in subjects:
        holding.resume(here, each)
    (run,) = due(here)  # whoever was to send it died: the tick finds it
    assert (run.site, run.trigger, run.slot) == ("dr", Trigger.AFTER_BACKUP, f"point {last}")
    copy.run(here, run.id)
    assert_same(world, here, "auto", last)
    (line,) = (line for line in status.overview(here, ["auto"]) if line.store == "far")
    assert line.remark == "copies of the restore points in main" and not line.problem


def test_a_scheduled_copy_has_slots_of_its_own(world: World) -> None:
    world.make_vm("slot", 8 * MIB)
    schedule = {"every": "1d", "jitter": "none"}
    here = with_far(world, copy={"to": "far", "after_backup": False, "schedule": schedule})
    world.backup("slot")
    (run,) = due(here)
    assert run.trigger is Trigger.SCHEDULE
    copy.run(here, run.id)
    world.write("slot", 0, b"x" * 4096)
    world.backup("slot")
    assert due(here) == []


def test_backups_go_on_in_the_store_of_the_copies_and_come_back(world: World) -> None:
    """The first store burned down: the group names the other one, and nothing begins anew."""
    world.make_vm("moved", 8 * MIB)
    world.scribble("moved", 1)
    here = with_far(world)
    first = world.backup("moved").point
    copied(world, here, "moved")
    world.write("moved", 0, b"y" * 5000)
    there = with_far(world, store="far", copy=None)
    member = dispatch.find(there, "moved")[0]
    report = backup.run(there, dispatch.request_backup(there, member, Trigger.AD_HOC)[0].id)
    world.keep("moved", report)
    newest = far(there).newest(uuid_of(world, "moved"))
    assert newest is not None and newest.parent == first and newest.disks[0].mode == "delta"
    back = copied(world, there, "moved", turned=True)
    assert back.point == newest.id
    world.assert_point_is_readable("moved", newest.id)
    # From now on the two are level again; but what goes separate ways is never mixed.
    world.write("moved", MIB, b"z" * 5000)
    world.backup("moved")
    world.write("moved", 2 * MIB, b"z" * 5000)
    backup.run(there, dispatch.request_backup(there, member, Trigger.AD_HOC)[0].id)
    world.write("moved", 3 * MIB, b"z" * 5000)
    world.backup("moved")
    with pytest.raises(Refused, match="separate ways"):
        copied(world, here, "moved")


def test_a_copy_goes_on_from_what_an_earlier_message_sent(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that is so slow that a message brings over one read only."""
    from workers.store import intake

    world = make_world(tuning={"threads": 1})
    world.make_vm("slow", 8 * MIB)
    world.scribble("slow", 1, count=20)
    here = with_far(world)
    point = world.backup("slow").point
    run = ask(world, here, "slow")
    monkeypatch.setattr(intake, "READ", 256 << 10)  # so that the disk is many reads
    outcomes = []
    monkeypatch.setattr(Live, "deadline", property(lambda _: 0.0, lambda _, value: None), raising=False)  # past
    while world.catalogue.run(run.id).live and len(outcomes) < 50:
        outcomes.append(copy.run(here, run.id).outcome)
    assert outcomes[-1] == "succeeded" and outcomes.count("continues") >= 3
    stored = sum(part.stored for part in far(here).point(uuid_of(world, "slow"), point or "").disks)
    assert world.catalogue.run(run.id).read < 1.6 * stored
    assert_same(world, here, "slow", point)
    assert holder(here.catalogue.realm, run.id) not in str(world.store.pins(uuid_of(world, "slow")))
