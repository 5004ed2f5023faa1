"""What everything stands on is gone for a while and comes back: the work goes on without a person."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.integration.partition import FarRedis
from tests.integration.realm import ASKED_ONLY, PATIENCE, QUICK, realm
from tests.integration.test_celery_messages import prepared
from tests.integration.world import MIB, Vcenter, World
from workers import replicate
from workers.errors import UnderstudyError
from workers.models import RunState


@pytest.fixture
def mortal(tmp_path: Path, vcenters: tuple[Vcenter, Vcenter]) -> Iterator[World]:
    """A world whose recovery site may die: its vCenter keeps its inventory on disk."""
    folder = tmp_path / "mortal"
    folder.mkdir()
    dr = Vcenter(folder, "dr", lasting=True)
    try:
        yield World(tmp_path, vcenters[0], dr, tuning={"lease": "60s"})
    finally:
        dr.stop()


def test_a_vcenter_that_is_gone_is_waited_for(mortal: World) -> None:
    """Its run is put off with a sentence, try by try, and ends well when it is back."""
    world = mortal
    world.make_vm("waits", 4 * MIB)
    world.scribble("waits", 1)
    world.backup("waits")
    world.sync("waits")
    world.scribble("waits", 2)
    point = world.backup("waits").point
    assert point is not None
    run = world.request_sync("waits")
    world.dr.stop()
    for tries in (1, 2):
        world.expire_lease(run)
        try:
            replicate.run(world.here, run.id)
        except UnderstudyError as err:  # it may also be known as unreachable from the try before
            raise AssertionError(f"an outage ends no run: {err}") from err
        now = world.catalogue.run(run.id)
        assert now.live and now.attempts == tries and now.error is not None and "dr" in now.error, now
    world.dr.start()
    world.expire_lease(run)
    assert replicate.run(world.here, run.id).point == point
    world.assert_replica_is("waits", point)


@pytest.mark.slow
def test_a_catalogue_that_is_down_for_longer_than_a_lease(vcenters: tuple[Vcenter, Vcenter], tmp_path: Path) -> None:
    """PostgreSQL dies under a sync that is at work. The worker can not renew its lease and stops; the run goes on."""
    with services.Postgres() as postgres, services.Redis() as server:
        tuning = {**QUICK, "lease": "3s"}
        catalogue = postgres.database()
        world = World(tmp_path, *vcenters, redis=server.url, tuning=tuning, group=ASKED_ONLY, catalogue=catalogue)
        with realm(world, server) as made:
            made.workers(None, "dr")
            made.beat()
            point = prepared(made, "down")
            world.dr.fault("ReconfigVM_Task", TaskMs=2000)
            run = made.begun(made.sync("down"))
            postgres.stop("immediate")
            time.sleep(5)  # the outage itself: longer than the lease
            postgres.start()
            assert made.ended(run).point == point
            world.assert_replica_is("down", point)
            assert world.catalogue.fence(run.target) == run.fence


@pytest.mark.slow
def test_a_redis_that_nobody_can_reach_for_a_while(vcenters: tuple[Vcenter, Vcenter], tmp_path: Path) -> None:
    """Partitioned: packets vanish, nobody is told. What is at work goes on; what was asked for is done after."""
    with FarRedis() as server:
        world = World(tmp_path, *vcenters, redis=server.url, tuning=QUICK, group=ASKED_ONLY)
        with realm(world, server) as made:
            (_, worker) = made.workers(None, "dr")
            made.beat()
            first, second = prepared(made, "at-work"), prepared(made, "asked")
            world.dr.fault("CreateSnapshot_Task", TaskMs=3000)
            running = made.begun(made.sync("at-work"))
            server.line.fall_silent()
            assert made.ended(running).point == first, "nothing of the work needs Redis"
            asked = world.request_sync("asked")  # its message is lost: nobody can send one
            time.sleep(5)
            assert world.catalogue.run(asked.id).state is RunState.QUEUED
            server.line.heal()
            assert made.ended(asked).point == second
            services.wait_for(lambda: not made.queued_work(), "empty queues", PATIENCE)
            for name, point in (("at-work", first), ("asked", second)):
                world.assert_replica_is(name, point)
            assert worker.process.poll() is None
