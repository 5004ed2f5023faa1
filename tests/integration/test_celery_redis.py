"""Redis that dies, forgets or is not there: the runs are in the catalogue and go on, the workers stay."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests import services
from tests.integration.realm import ASKED_ONLY, PATIENCE, Realm, Worker
from tests.integration.test_celery_messages import prepared
from workers.models import RunState


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm]) -> Realm:
    made = make_realm(group=ASKED_ONLY)
    made.workers(None)
    made.beat()
    return made


@pytest.fixture(scope="module")
def worker(realm: Realm) -> Worker:
    """One for all tests: it has to outlive them."""
    made = realm.worker("dr", concurrency=2)
    made.ready()
    return made


def test_a_half_busy_worker_outlives_redis_and_its_run_ends(realm: Realm, worker: Worker) -> None:
    """One child works, the other waits: celery 5.7.0 ends its worker here."""
    world = realm.world
    first, second = prepared(realm, "busy"), prepared(realm, "after")
    pool = sorted(worker.children())
    seals = world.dr.control()["calls"]["CreateSnapshot_Task"]
    world.dr.fault("CreateSnapshot_Task", TaskMs=4000)
    run = realm.sync("busy")
    services.wait_for(
        lambda: world.dr.control()["calls"]["CreateSnapshot_Task"] > seals, "the seal, which takes a while", PATIENCE
    )
    realm.server.kill()
    ended = realm.ended(run)  # nothing of the work needs Redis
    assert (ended.point, ended.attempts) == (first, 1)
    world.assert_replica_is("busy", first)
    realm.server.start()

    later = realm.ended(realm.sync("after"))
    assert later.point == second
    world.assert_replica_is("after", second)
    assert worker.process.poll() is None and sorted(worker.children()) == pool
    assert "Unrecoverable" not in worker.log.read_text()
    assert [failure.message for failure in world.catalogue.failures()] == []


def test_without_redis_a_request_is_kept_and_goes_on_when_it_is_back(realm: Realm, worker: Worker) -> None:
    world = realm.world
    point = prepared(realm, "absent")
    realm.server.kill()
    said = realm.command("sync", "absent", code=1)
    assert said.stdout == ""
    assert re.fullmatch(
        r"understudy: Redis at redis://\S+ does not answer \(.*\); 1 runs stay queued in the catalogue "
        r"and go on by themselves when it is back\n",
        said.stderr,
    ), said.stderr
    (run,) = world.catalogue.live_runs()
    assert (run.vm, run.state) == ("absent", RunState.QUEUED)
    again = realm.command("sync", "absent")  # joins what is there, which needs no Redis
    assert run.id in again.stdout and "joined" in again.stdout
    realm.server.start()
    assert realm.ended(run).point == point
    world.assert_replica_is("absent", point)
    assert worker.process.poll() is None


def test_a_redis_that_has_forgotten_everything_costs_a_delay(realm: Realm, worker: Worker) -> None:
    """Its disk was lost, say. What was queued there is in the catalogue."""
    world = realm.world
    point = prepared(realm, "forgot")
    realm.server.kill()
    realm.command("sync", "forgot", code=1)
    (run,) = world.catalogue.live_runs()
    for file in realm.server.folder.rglob("*.aof*"):
        if file.is_file():
            file.unlink()
    realm.server.start()
    assert realm.redis.dbsize() < 10, "Redis must come back empty"
    assert realm.ended(run).point == point
    world.assert_replica_is("forgot", point)
    assert worker.process.poll() is None
