"""What a run leaves when something fails after its work, or when what it worked on is gone."""

from __future__ import annotations

import pytest

from tests.integration import invariants
from tests.integration.world import MIB, World
from workers import backup, left_behind, reaper, replicate
from workers.errors import UnderstudyError
from workers.models import RunState


def delete_replica(world: World, name: str) -> None:
    replica = invariants.replica_of(world, name)
    assert replica is not None
    world.target.wait(world.target.vm(replica.identity.moref).Destroy_Task())


def test_a_backup_has_not_ended_before_its_snapshot_is_gone(world: World) -> None:
    """A snapshot that nobody removes grows until the datastore is full: the run lives until it is gone."""
    world.make_vm("a1", 4 * MIB)
    world.backup("a1")
    world.scribble("a1", 1)
    run = world.request_backup("a1")
    world.prod.fault("RemoveSnapshot_Task", Fault="SystemError")
    report = backup.run(world.here, run.id)
    assert report.outcome == "waiting" and world.catalogue.run(run.id).live
    assert len(world.store.points(run.target.split(":")[2])) == 2, "the point itself is safe"
    world.expire_lease(run)
    report = backup.run(world.here, run.id)
    world.keep("a1", report)
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED
    assert world.state("a1").snapshots == ()
    assert len(world.store.points(run.target.split(":")[2])) == 2


def test_a_replica_that_somebody_deleted_is_built_again(world: World) -> None:
    world.make_vm("a2", 4 * MIB)
    world.scribble("a2", 1)
    point = world.backup("a2").point
    world.sync("a2")
    delete_replica(world, "a2")
    report = world.sync("a2")
    assert any("is gone from its vCenter" in reason for reason in world.catalogue.run(report.run).reasons)
    world.assert_replica_is("a2", point)


@pytest.mark.parametrize("first", [True, False], ids=["built by this run", "built before"])
def test_checkpoints_of_a_replica_that_is_gone_count_for_nothing(world: World, first: bool) -> None:
    """The run has written and checkpointed; the replica is deleted; the run goes on: the new one begins as zeroes."""
    name = f"a3-{first:d}"
    world.make_vm(name, 4 * MIB, 2 * MIB)
    world.scribble(name, 1)
    point = world.backup(name).point
    if not first:
        world.sync(name)
        world.scribble(name, 2)
        point = world.backup(name).point
    dead = world.request_sync(name)
    world.killed_at(dead, "commit.before")
    delete_replica(world, name)
    replicate.run(world.here, dead.id)
    world.assert_replica_is(name, point)
    assert world.catalogue.run(dead.id).state is RunState.SUCCEEDED
    invariants.check(world, name)


@pytest.mark.parametrize("step", ["commit.after", "seal.before", "seal.after", "catalogue.before"])
def test_what_a_dead_run_committed_is_told_by_every_record(world: World, step: str) -> None:
    """It is given up after its commit; the next one finds nothing new, and concludes it: seal, witness, pins."""
    name = f"a4-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB)
    world.backup(name)
    world.sync(name)
    world.scribble(name, 1)
    point = world.backup(name).point
    dead = world.request_sync(name)
    world.killed_at(dead, step)
    world.give_up(dead.id)
    assert world.sync(name).outcome == "nothing new"
    world.assert_replica_is(name, point)
    invariants.check(world, name)


def test_what_a_dead_run_committed_a_second_time_is_told_by_every_record(world: World) -> None:
    """The replica was deleted and built again at the same restore point: which run it is of is news."""
    world.make_vm("a4-again", 4 * MIB)
    point = world.backup("a4-again").point
    world.sync("a4-again")
    delete_replica(world, "a4-again")
    dead = world.request_sync("a4-again")
    world.killed_at(dead, "catalogue.before")
    world.give_up(dead.id)
    report = world.sync("a4-again")
    assert world.catalogue.run(report.run).state is RunState.NOTHING_NEW
    invariants.check(world, "a4-again")
    world.assert_replica_is("a4-again", point)


def test_a_backup_that_failed_without_a_snapshot_does_not_keep_prune_waiting(world: World) -> None:
    """It had registered as a writer, lost its snapshot, and could not take another."""
    world.make_vm("a5", 4 * MIB)
    world.backup("a5")
    world.scribble("a5", 1)
    dead = world.request_backup("a5")
    world.killed_at(dead, "manifest.before")
    (snapshot,) = world.state("a5").snapshots
    invariants.remove_snapshot(world, "a5", snapshot.name)
    world.source.wait(world.vm("a5").PowerOffVM_Task())
    world.source.wait(world.vm("a5").Destroy_Task())
    with pytest.raises(UnderstudyError, match="not in this vCenter any more"):
        backup.run(world.here, dead.id)
    for run in reaper.reap(world.here).unclean:
        left_behind.clean_up(world.here, run.id)
    assert world.store.runs() == []
    world.store.prune()
    assert world.store.prune().waiting == 0


@pytest.mark.parametrize("step", ["cbt-enabled", "snapshot.before", "snapshot.after"])
def test_a_run_given_up_before_it_could_note_its_snapshot_leaves_none(world: World, step: str) -> None:
    name = f"a6-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB)
    dead = world.request_backup(name)
    world.killed_at(dead, step)
    world.give_up(dead.id)
    assert [run.id for run in reaper.reap(world.here).unclean] == [dead.id]
    left_behind.clean_up(world.here, dead.id)
    assert world.state(name).snapshots == ()
    assert reaper.reap(world.here).unclean == []


def test_a_backup_that_died_after_its_point_was_published_bids_the_store_farewell(world: World) -> None:
    world.make_vm("a7", 4 * MIB)
    dead = world.request_backup("a7")
    world.killed_at(dead, "store.linked")
    assert world.store.runs() == [dead.id]
    assert backup.run(world.here, dead.id).outcome == "succeeded"
    assert world.store.runs() == []
