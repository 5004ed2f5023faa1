"""Going back to an older restore point against everything that could take it away, undo it or lie about it."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.test_restore import assert_holds, of, off
from tests.integration.test_rollback import go, life
from tests.integration.world import MIB, World
from workers import dispatch, holding, replicate, restore, rollback
from workers.models import RunState, Trigger
from workers.restore_order import Wish
from workers.status import overview


def paused(world: World, name: str) -> str:
    return world.pair(name).paused or ""


def subject(world: World, name: str) -> holding.Subject:
    (found,) = holding.subjects(world.here, [name], which="replicas")
    return found


def test_the_undo_of_a_restore_does_not_retire_what_is_restored(make_world: Callable[..., World]) -> None:
    """The backup of what the original holds is one point more, and the oldest one went for it."""
    world = make_world(keep="{ last = 2 }")
    world.make_vm("tight", 4 * MIB)
    points = []
    for seed in (1, 2):
        world.scribble("tight", seed)
        points.append(str(world.backup("tight").point))
    world.scribble("tight", 3)
    off(world, "tight")
    run, _ = restore.request(world.here, Wish(vm="tight", point=points[0], over_original=True))
    assert restore.run(world.here, run.id).outcome == "succeeded"
    assert_holds(world, world.state("tight"), "prod", of(world, points[0]))
    assert world.store.pins(world.state("tight").identity.instance_uuid) == {}


def test_a_rollback_that_needs_approval_pauses_nothing_and_says_what_lets_it_be_done(
    make_world: Callable[..., World],
) -> None:
    """It said "approve", and what then started was a sync to the newest point; the pair was paused at nothing."""
    world = make_world(group=('full = "ask"',))
    world.make_vm("asked", 4 * MIB)
    points = []
    for seed in (1, 2, 3):
        world.scribble("asked", seed)
        points.append(str(world.backup("asked").point))
    world.sync("asked")
    pair = world.pair("asked")
    world.target.wait(world.vm(pair.replica_name, "dr").Destroy_Task())
    run, _ = rollback.request(world.here, pair, points[1])
    report = replicate.run(world.here, run.id)
    assert report.outcome == "approval needed" and paused(world, "asked") == ""
    assert f"`understudy rollback asked --to {points[1]} --full`" in report.reason
    assert "understudy approve" not in report.reason and "understudy sync" not in report.reason
    answer = holding.approve(world.here, subject(world, "asked"), who="ann", reason="go")
    assert not answer.done and "--full" in answer.sentence
    assert world.catalogue.holds(subject(world, "asked").target) == {}
    run, _ = rollback.request(world.here, world.pair("asked"), points[1], full="ann asked")
    assert replicate.run(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is("asked", points[1])
    assert paused(world, "asked").startswith(f"rolled back to {points[1]}")


def test_hole_17_a_rollback_of_a_paused_pair_and_a_pause_of_a_rolled_back_one(world: World) -> None:
    """A pause for another reason let a sync by name undo the rollback, whichever of the two came first."""
    points = life(world, "both-ways")
    holding.pause(world.here, subject(world, "both-ways"), who="ann", reason="moving")
    go(world, "both-ways", points[1])
    assert paused(world, "both-ways").startswith(f"rolled back to {points[1]}") and "moving" in paused(
        world, "both-ways"
    )
    go(world, "both-ways", points[0])
    assert paused(world, "both-ways").startswith(f"rolled back to {points[0]}"), "where it is, not where it was"
    for reason in ("storage", "network"):
        holding.pause(world.here, subject(world, "both-ways"), who="ann", reason=reason)
    assert paused(world, "both-ways").startswith(f"rolled back to {points[0]}")
    assert paused(world, "both-ways").endswith("network") and "storage" not in paused(world, "both-ways")
    (line,) = overview(world.here, ["both-ways"])
    assert "rolled back to" in " ".join(line.troubles)
    run, _ = dispatch.request_sync(world.here, world.pair("both-ways"), Trigger.AD_HOC)
    assert replicate.run(world.here, run.id).outcome == RunState.NOTHING_NEW
    world.assert_replica_is("both-ways", points[0])
    holding.resume(world.here, subject(world, "both-ways"))
    world.sync("both-ways")
    world.assert_replica_is("both-ways", points[3])
