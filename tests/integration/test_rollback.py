"""A replica goes back to an older restore point, and forwards again, by differences. Judged byte for byte."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.integration.world import MIB, World
from workers import dispatch, replicate, rollback
from workers.errors import NotFound, Refused
from workers.models import RunState, Trigger


def life(world: World, name: str) -> list[str]:
    """Four points: written, with a third disk and a grown one, without the third, written again."""
    world.make_vm(name, 8 * MIB, 4 * MIB)
    world.scribble(name, 1)
    points = [str(world.backup(name).point)]
    world.add_disk(name, 4 * MIB)
    world.grow_disk(name, 1, 6 * MIB)
    world.scribble(name, 2)
    points.append(str(world.backup(name).point))
    world.remove_disk(name, 2)
    world.scribble(name, 3)
    points.append(str(world.backup(name).point))
    world.scribble(name, 4)
    points.append(str(world.backup(name).point))
    world.sync(name)
    return points


def go(world: World, name: str, to: str | None) -> str:
    pair = world.pair(name)
    goal = rollback.goal_of(world.here, pair, to)
    run, made = rollback.request(world.here, pair, goal.id)
    assert made
    replicate.run(world.here, run.id)
    return run.id


def test_backwards_and_forwards_with_the_hardware_of_each_point(world: World) -> None:
    points = life(world, "there-and-back")
    for wanted in (None, points[0], points[1], points[3][:9]):
        goal = rollback.goal_of(world.here, world.pair("there-and-back"), wanted).id
        assert wanted is not None or goal == points[2], "without a point it is the one before the present one"
        planned = rollback.preview(world.here, world.pair("there-and-back"), goal)
        run = go(world, "there-and-back", wanted)
        world.assert_replica_is("there-and-back", goal)
        assert world.catalogue.sync_point(world.pair("there-and-back").id).point == goal
        assert {d.mode for d in planned.disks} <= {"delta", "full", "nothing"}
        assert all(d.mode != "full" or "new disk" in d.reason for d in planned.disks)
        assert world.catalogue.run(run).written == planned.bytes
    world.catalogue.pause(world.pair("there-and-back").id, None)
    world.sync("there-and-back")
    world.assert_replica_is("there-and-back", points[3])


def test_hole_17_a_rollback_is_not_undone_by_the_schedule(world: World) -> None:
    points = life(world, "h17")
    pair = world.pair("h17")
    asked_before = world.pair("h17")  # by a tick that looked when the pair was not paused yet
    go(world, "h17", points[1])
    world.scribble("h17", 5)
    world.backup("h17")
    uuid = world.state("h17").identity.instance_uuid
    newest = world.catalogue.newest_points()[0].id
    assert dispatch.after_backup(world.here, uuid, "main", newest) == []
    assert [r for r in dispatch.dispatch(world.here, world.catalogue.now() + timedelta(days=2)) if r.vm == "h17"] == []
    with pytest.raises(Refused, match=r"rolled back to .*`understudy resume h17` ends that"):
        dispatch.request_sync(world.here, asked_before, Trigger.SCHEDULE, "late")
    run, _ = dispatch.request_sync(world.here, asked_before, Trigger.AD_HOC)
    report = replicate.run(world.here, run.id)
    assert report.outcome == RunState.NOTHING_NEW and "rolled back" in report.reason
    world.assert_replica_is("h17", points[1])
    assert "resume" in (world.catalogue.pair(pair.id).paused or "")
    assert world.state(pair.replica_name, "dr").witness.endswith(" paused")
    world.catalogue.pause(pair.id, None)
    world.sync("h17")
    world.assert_replica_is("h17", newest)
    assert not world.state(pair.replica_name, "dr").witness.endswith("paused")


@pytest.mark.parametrize(
    "step",
    [
        "slice.written",
        *(
            pytest.param(step, marks=pytest.mark.slow)
            for step in ("rollback.paused", "cursor.applying", "hardware.after", "commit.after")
        ),
    ],
)
def test_a_rollback_killed_at_a_step_goes_on(world: World, step: str) -> None:
    name = f"rb-{step.replace('.', '-')}"
    points = life(world, name)
    run, _ = rollback.request(world.here, world.pair(name), points[1])
    world.killed_at(run, step)
    assert world.pair(name).paused
    if step == "slice.written":  # given up; another rollback, elsewhere, must not leave the dead one's blocks
        world.give_up(run.id)
        go(world, name, points[0])
        return world.assert_replica_is(name, points[0])
    replicate.run(world.here, run.id)
    world.assert_replica_is(name, points[1])


def test_what_can_not_be_is_a_sentence_and_pauses_nothing(world: World) -> None:
    world.make_vm("refused", 4 * MIB)
    world.backup("refused")
    with pytest.raises(Refused, match="no sync point yet"):
        rollback.goal_of(world.here, world.pair("refused"), None)
    run = world.request_sync("refused")
    with pytest.raises(Refused, match=f"run {run.id} is at work"):
        rollback.request(world.here, world.pair("refused"), str(world.catalogue.newest_points()[0].id))
    replicate.run(world.here, run.id)
    with pytest.raises(NotFound, match="before"):
        rollback.goal_of(world.here, world.pair("refused"), None)
    with pytest.raises(NotFound, match="as old as 2001-01-01"):
        rollback.goal_of(world.here, world.pair("refused"), "2001-01-01")
    with pytest.raises(NotFound, match="is no restore point of refused"):
        rollback.goal_of(world.here, world.pair("refused"), "yesterday")
    with pytest.raises(NotFound, match="has no replica to the recovery target moon"):
        rollback.pair_of(world.here, "refused", "moon")
    gone, _ = rollback.request(world.here, world.pair("refused"), "00000009-deadbeef")
    with pytest.raises(NotFound, match="is not in the store"):
        replicate.run(world.here, gone.id)
    assert world.pair("refused").paused is None
    assert rollback.pair_of(world.here, "refused", "recovery") == world.pair("refused")
