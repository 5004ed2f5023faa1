"""The catalogue is lost in the middle of life, and is rebuilt from stores and replicas. Judged byte for byte."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.integration.world import MIB, World
from workers import dispatch, left_behind, reaper, rebuild, replicate, rollback, snapshot_point
from workers.catalogue import Catalogue
from workers.errors import BadInput, Refused
from workers.models import RunKind, RunState, Trigger
from workers.run import Here


def lose(world: World, *, kept_by_a_zombie: bool = False) -> str:
    """The catalogue's file is gone, `init` makes an empty one. Returns the id of the realm that was."""
    realm = world.catalogue.realm
    world.catalogue.close()
    if kept_by_a_zombie:
        url = f"sqlite:///{world.folder}/another.db"
        world.settings = world.settings.model_copy(update={"catalogue_given": url})
    else:
        for file in world.folder.glob("catalogue.db*"):
            file.unlink()
    world.catalogue = Catalogue.create(world.settings.catalogue)
    world.here = Here(world.settings, world.catalogue)
    assert world.catalogue.realm != realm
    return realm


def rebuilt(world: World, **how: Any) -> rebuild.Rebuilt:
    made = rebuild.rebuild(world.here, **how)
    assert made.troubles == (), made
    return made


def test_everything_goes_on_by_difference_after_the_catalogue_is_lost(world: World) -> None:
    """One in sync, one half applied, one rolled back: each is as it was."""
    for name in ("r-sync", "r-half", "r-back"):
        world.make_vm(name, 8 * MIB, 4 * MIB)
        world.scribble(name, 1)
        world.backup(name)
        world.sync(name)
        world.scribble(name, 2)
        world.backup(name)
    world.sync("r-sync")
    world.sync("r-back")
    back = world.pair("r-back")
    goal = rollback.goal_of(world.here, back, None).id
    replicate.run(world.here, rollback.request(world.here, back, goal)[0].id)
    world.killed_at(world.request_sync("r-half"), "slice.written")
    pairs = {pair.vm: pair for pair in world.catalogue.pairs()}
    fences = {vm: world.cursor(vm).fence for vm in pairs}
    held = {vm: world.catalogue.sync_point(pair.id) for vm, pair in pairs.items()}
    points = world.catalogue.newest_points()

    realm = lose(world)
    made = rebuilt(world)
    assert made.realm == realm == world.catalogue.realm and made.taken_over
    assert (made.points, made.chains, len(made.pairs)) == (6, 3, 3)
    again = {pair.vm: pair for pair in world.catalogue.pairs()}
    for vm, pair in pairs.items():
        now = again[vm]
        rest = {"paused": None, "created": None}
        assert now.model_copy(update=rest) == pair.model_copy(update=rest)
        assert world.catalogue.fence(replicate.target_of(pair.id)) > fences[vm]
        before, after = held[vm], world.catalogue.sync_point(pair.id)
        if vm != "r-half":
            assert before is not None and after is not None
            assert (after.point, after.data_time, after.change_ids) == (
                before.point,
                before.data_time,
                before.change_ids,
            )
    assert [(p.vm, p.id, p.capacity) for p in world.catalogue.newest_points()] == [
        (p.vm, p.id, p.capacity) for p in points
    ]
    assert "was paused when the catalogue was lost" in (again["r-back"].paused or "")
    first = world.catalogue.fence(replicate.target_of(pairs["r-sync"].id))
    assert not rebuilt(world).taken_over and world.catalogue.fence(replicate.target_of(pairs["r-sync"].id)) == first

    for vm in ("r-half", "r-sync"):
        assert again[vm].paused is None
        world.scribble(vm, 3)
        point = str(world.backup(vm).point)
        planned = world.plan(vm)
        assert {disk.mode for disk in planned.disks} == {"delta"}, planned
        world.sync(vm)
        world.assert_replica_is(vm, point)
        assert world.cursor(vm).fence > fences[vm]
        assert world.catalogue.sync_point(pairs[vm].id).point == point
    uuid = world.state("r-back").identity.instance_uuid
    assert dispatch.after_backup(world.here, uuid, "main", "any") == []
    world.assert_replica_is("r-back", goal)


@pytest.mark.parametrize("when", [pytest.param("slices.planned", marks=pytest.mark.slow), "cursor.applying"])
def test_hole_9_a_run_of_the_lost_catalogue_wakes_up_too_late(world: World, when: str) -> None:
    """It still has the old catalogue open, where it is in the right; the replica knows better."""
    name = f"h9-{when.replace('.', '-')}"
    world.make_vm(name, 8 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.sync(name)
    for _ in range(3):
        world.sync(name)  # fences that leave no trace
    world.scribble(name, 2)
    world.backup(name)
    run = world.request_sync(name)
    zombie = world.in_child(run, f"{when}=stop")
    deadline = time.monotonic() + 60
    while (stopped := os.waitpid(zombie.pid, os.WUNTRACED | os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert os.WIFSTOPPED(stopped[1])
    lose(world, kept_by_a_zombie=True)
    rebuilt(world)
    assert world.catalogue.fence(replicate.target_of(world.pair(name).id)) > run.fence
    world.scribble(name, 3)
    point = str(world.backup(name).point)
    world.sync(name)
    after = world.cursor(name)
    os.kill(zombie.pid, signal.SIGCONT)
    said = zombie.communicate(timeout=60)[0].decode()
    assert zombie.returncode != 0 and "nothing was committed" in said, said[-2000:]
    assert world.cursor(name) == after and after.fence > run.fence
    world.assert_replica_is(name, point)
    world.scribble(name, 4)
    point = str(world.backup(name).point)
    world.sync(name)
    world.assert_replica_is(name, point)


def test_hole_19_a_snapshot_of_an_unknown_run_is_not_removed_before_it_was_ended(world: World) -> None:
    world.make_vm("h19", 8 * MIB)
    world.scribble("h19", 1)
    world.backup("h19")
    world.scribble("h19", 2)
    lost = world.request_backup("h19")
    world.killed_at(lost, "checkpoint.after")
    name = snapshot_point.snapshot_name(world.catalogue.realm, lost.id)
    realm = lose(world)
    world.catalogue.take_over_realm(realm)  # as a rebuild that could not read the site

    world.discover()
    found = reaper.reap(world.here)
    assert (found.lost, found.unclean) == ([], [])
    with pytest.raises(Refused, match="does not know to have ended"):
        world.backup("h19")
    assert [node.name for node in world.state("h19").snapshots] == [name]
    assert world.store.runs() == [lost.id], "its packs are still its own"

    world.catalogue.close()
    lose(world)
    made = rebuilt(world)
    assert any(f"the backup run {lost.id} of h19 was ended" in remark for remark in made.remarks)
    assert world.store.runs() == []
    assert [node.name for node in world.state("h19").snapshots] == [name]
    (unclean,) = reaper.reap(world.here).unclean
    left_behind.clean_up(world.here, unclean.id)
    assert world.state("h19").snapshots == () and reaper.reap(world.here).unclean == []
    assert world.catalogue.run(lost.id).state is RunState.FAILED
    point = str(world.backup("h19").point)
    world.assert_point_is_readable("h19", point)
    world.sync("h19")
    world.assert_replica_is("h19", point)


def test_hole_19_a_snapshot_of_another_live_run_stays(world: World) -> None:
    """Only what is known to be over is left over."""
    world.make_vm("h19b", 4 * MIB)
    uuid = world.state("h19b").identity.instance_uuid
    run, _ = world.catalogue.request_run(
        RunKind.BACKUP, f"chain:elsewhere:{uuid}", vm="h19b", site="prod", trigger=Trigger.SCHEDULE
    )
    name = snapshot_point.snapshot_name(world.catalogue.realm, run.id)
    world.source.wait(world.vm("h19b").CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))
    with pytest.raises(Refused, match="does not know to have ended"):
        world.backup("h19b")
    assert [node.name.replace("%2f", "/") for node in world.state("h19b").snapshots] == [name]


def test_two_installations_are_asked_about(world: World) -> None:
    world.make_vm("mixed", 4 * MIB)
    world.backup("mixed")
    world.sync("mixed")
    first = lose(world)
    with pytest.raises(BadInput, match="no realm 'f00' has left anything"):
        rebuild.rebuild(world.here, realm="f00")
    world.discover()
    world.make_vm("other", 4 * MIB)
    world.backup("other")
    second = lose(world)
    with pytest.raises(BadInput, match="by several installations") as asked:
        rebuild.rebuild(world.here)
    assert first in str(asked.value) and second in str(asked.value)
    assert world.catalogue.is_new()
    made = rebuilt(world, realm=first[:8])
    assert made.realm == first and len(made.pairs) == 1
    lose(world)
    made = rebuilt(world, realm=second)
    assert made.pairs == () and any("replica of another installation" in remark for remark in made.remarks)
    used = Catalogue.create(f"sqlite:///{world.folder}/used.db")
    used.request_run(RunKind.BACKUP, "chain:x:y", vm="y", site="prod", trigger=Trigger.SCHEDULE)
    with pytest.raises(Refused, match="has been used already"):
        used.take_over_realm(first)


def test_what_can_not_be_read_is_said_and_done_later(world: World) -> None:
    world.make_vm("later", 4 * MIB)
    point = str(world.backup("later").point)
    world.sync("later")
    pair = world.pair("later")
    lose(world)
    world.dr.fault("CreateContainerView", Fault="NoPermission", Count=-1)
    made = rebuild.rebuild(world.here)
    assert len(made.troubles) == 1 and "the site dr" in made.troubles[0] and made.pairs == ()
    world.dr.control(clear=True)
    assert len(rebuilt(world).pairs) == 1
    assert world.catalogue.pair(pair.id) == pair.model_copy(update={"created": world.catalogue.pair(pair.id).created})
    assert world.plan("later").nothing_new
    world.assert_replica_is("later", point)
    lose(world)
    groups = {"all": world.settings.groups["all"].model_copy(update={"vms": ("x*",)})}
    narrow = Here(world.settings.model_copy(update={"groups": groups}), world.catalogue)
    made = rebuild.rebuild(narrow)
    assert "add its group" in made.troubles[0] and made.points == 1


def test_a_run_registered_in_the_store_waits_for_a_person(world: World) -> None:
    world.make_vm("waits", 4 * MIB)
    world.backup("waits")
    world.store.writer("unknown-run").close()
    lose(world)
    made = rebuilt(world)
    assert any("still waits for the run unknown-run" in remark for remark in made.remarks)
    assert world.store.runs() == ["unknown-run"]
    rebuilt(world, end_lost_runs=True)
    assert world.store.runs() == []
