"""Requests to undo that come twice, and what is kept of a replica that is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.test_undo import half, with_
from tests.integration.world import MIB, Vcenter, World
from workers import replicate, rollback
from workers.errors import Refused
from workers.models import RunState
from workers.run import Here
from workers.undo import SYNC_POINT


@pytest.fixture(scope="module")
def world(vcenters: tuple[Vcenter, Vcenter], tmp_path_factory: pytest.TempPathFactory) -> World:
    """The store stands at the site of production, so that old content is kept."""
    return World(tmp_path_factory.mktemp("undo-gone"), *vcenters, store=['site = "prod"'])


def kept(world: World) -> list[Path]:
    return sorted(world.dr.datastores.rglob("understudy-undo-*"))


def test_who_asks_twice_for_the_way_back_gets_one_run(world: World) -> None:
    """By the store the run goes to a restore point by its name: that is what was asked for all the same."""
    name = "twice-back"
    before, _ = half(world, name)
    here = Here(with_(world.settings, store={"site": ""}), world.catalogue)
    first, made = rollback.request(here, world.pair(name), SYNC_POINT)
    world.killed_at(first, "slice.locked", here)
    again, anew = rollback.request(here, world.pair(name), SYNC_POINT)
    assert (again.id, made, anew) == (first.id, True, False)
    with pytest.raises(Refused, match="is at work"):
        rollback.request(here, world.pair(name), "another point")
    replicate.run(here, first.id)
    world.assert_replica_is(name, before)
    last, anew = rollback.request(here, world.pair(name), SYNC_POINT)
    assert anew and replicate.run(here, last.id).outcome == RunState.NOTHING_NEW


def test_what_a_sync_kept_that_never_began_goes_with_the_way_back(world: World) -> None:
    """It died before its cursor said that the replica is half-applied: there is nothing to take back."""
    name = "never-began"
    before, _ = half(world, name, "cursor-writing")
    assert kept(world)
    run, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    assert replicate.run(world.here, run.id).outcome == RunState.NOTHING_NEW
    assert kept(world) == []
    world.assert_replica_is(name, before)


@pytest.mark.parametrize("how", ["Destroy_Task", "UnregisterVM"])
def test_what_was_kept_of_a_replica_goes_with_it(world: World, how: str) -> None:
    """Deleted, nobody can go back; only taken out of the inventory, somebody may register it again."""
    name = f"gone-{how[:7].lower()}"
    world.make_vm(name, 2 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.sync(name)
    world.scribble(name, 2)
    point = str(world.backup(name).point)
    run = world.request_sync(name)
    world.killed_at(run, "commit.before")
    world.give_up(run.id)
    files = kept(world)
    assert files
    replica = world.vm(world.pair(name).replica_name, "dr")
    if how == "Destroy_Task":
        world.target.wait(replica.Destroy_Task())
    else:
        replica.UnregisterVM()
    ended = world.sync(name)
    world.assert_replica_is(name, point)
    reasons = " ".join(world.catalogue.run(ended.run).reasons)
    if how == "Destroy_Task":
        assert kept(world) == [] and "of a replica that is gone is removed" in reasons
    else:
        assert kept(world) == files and "is still there" in reasons
        for file in files:
            file.unlink()


def test_nobody_is_called_to_help_with_what_one_worker_does(world: World) -> None:
    """What was kept is read in one order; without the store, no helper could do anything but leave."""
    from tasks import dispatch

    name = "alone"
    half(world, name)
    run, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    with pytest.MonkeyPatch.context() as patch:
        sent: list[object] = []
        patch.setattr(dispatch, "_publish", lambda messages, *_: sent.extend(messages))
        dispatch.call_helpers(run, 2)
        assert sent == []
        dispatch.call_helpers(world.request_backup(name), 2)
        assert len(sent) == 2
    replicate.run(replace(world.here, call_helpers=None), run.id)
