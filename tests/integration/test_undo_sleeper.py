"""A rollback by undo files while a worker of the dead run still writes: what it saves last must come back, too."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.crew import PATIENCE, Crew, stopped, wait_stopped
from tests.integration.test_resumed import at
from tests.integration.test_undo import disaster, forward, left
from tests.integration.world import MIB, Vcenter, World
from workers import replicate, rollback
from workers.undo import SYNC_POINT


@pytest.fixture
def world(vcenters: tuple[Vcenter, Vcenter], tmp_path: Path) -> World:
    return World(tmp_path, *vcenters, store=['site = "prod"'])


def test_hole_10_a_worker_of_the_dead_run_wakes_up_while_its_half_sync_is_undone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had passed its fence check, and holds its range; the rollback has looked at the undo files already."""
    name = "sleeper"
    world.make_vm(name, 2 * MIB)
    world.scribble(name, 1)
    before = str(world.backup(name).point)
    world.sync(name)
    world.write(name, 0, os.urandom(MIB))
    after = str(world.backup(name).point)
    run = world.request_sync(name)
    sleeper = Crew(world, run, tmp_path / "crew").lead(stopped("undo.reserved"))
    wait_stopped(sleeper)
    world.expire_lease(run)
    world.give_up(run.id)

    def wake() -> None:
        os.kill(sleeper.pid, signal.SIGCONT)
        sleeper.wait(PATIENCE)

    back, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    at(monkeypatch, "cursor.applying", wake)
    with disaster(world):
        report = replicate.run(world.here, back.id)
        assert report.outcome == "succeeded", report
        assert "writes nothing more" in sleeper.said or "FencedOut" in sleeper.said, sleeper.said
        world.assert_replica_is(name, before)
        assert left(world, name) == []
    forward(world, name)
    world.assert_replica_is(name, after)
