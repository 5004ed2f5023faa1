"""A replica that somebody booted: set aside at once, looked at now and then, back when the cause is gone."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pyVmomi import vim

from tests.integration import child
from tests.integration.world import MIB, World
from workers import dispatch
from workers.errors import Touched
from workers.models import Run, RunKind
from workers.state import State
from workers.status import overview


def due(world: World, minutes: float) -> list[Run]:
    """The syncs that a tick so much later starts."""
    found = dispatch.dispatch(world.here, world.catalogue.now() + timedelta(minutes=minutes))
    return [run for run in found if run.kind is RunKind.SYNC and run.vm == "booted"]


def test_a_touched_replica_is_looked_at_now_and_then_and_rejoins(world: World) -> None:
    world.make_vm("booted", 4 * MIB)
    world.scribble("booted", 1)
    world.backup("booted")
    world.sync("booted")
    seal = world.state("booted_replica", "dr").snapshots[0]
    replica = world.vm("booted_replica", "dr")
    world.target.wait(replica.PowerOnVM_Task())
    world.scribble("booted", 2)
    point = world.backup("booted").point
    assert point is not None
    (first,) = due(world, 0)
    with pytest.raises(Touched):
        child.work(world.here, first.id)
    (line,) = overview(world.here, ["booted"])
    assert line.state is State.TOUCHED and line.sync is not None and "looked at again in" in line.sync.sentence

    before = world.state("booted_replica", "dr")
    assert due(world, 50) == []
    (probe,) = due(world, 65)
    with pytest.raises(Touched):
        child.work(world.here, probe.id)
    after = world.state("booted_replica", "dr")
    assert (after.change_version, after.notes) == (before.change_version, before.notes), "a look writes nothing"
    assert world.catalogue.slices(probe.id) == []

    world.target.wait(replica.PowerOffVM_Task())  # whoever booted it puts it back
    world.target.wait(world.target.object(vim.vm.Snapshot, seal.moref).RevertToSnapshot_Task())
    (probe,) = due(world, 65)
    assert child.work(world.here, probe.id).outcome == "succeeded"
    (line,) = overview(world.here, ["booted"])
    assert line.state is State.IN_SYNC and not line.problem
    world.assert_replica_is("booted", point)
