"""A run that is longer than a task: it goes on in many messages, on any worker; what Celery's time limits do to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.app import configuration
from tests import services
from tests.integration.realm import ASKED_ONLY, PATIENCE, Realm
from tests.integration.world import MIB
from workers.models import Run
from workers.run import Here
from workers.settings import seconds


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm]) -> Realm:
    """Slices of 1 s, tasks of 13 s at most; one worker at a run, so that its messages follow one another."""
    tuning = {"slice_time": "1s", "vcenter_wait": "3s", "threads": 1, "spread": 1}
    made = make_realm(group=ASKED_ONLY, tuning=tuning)
    # What the test itself does, it does in one go.
    patient = made.world.settings.tuning.model_copy(update={"slice_time": "4m", "vcenter_wait": "2m"})
    made.world.here = Here(made.world.settings.model_copy(update={"tuning": patient}), made.world.catalogue)
    made.workers(None)
    made.beat()
    return made


@pytest.fixture(autouse=True)
def _around(realm: Realm) -> Iterator[None]:
    with realm.only_for_now():
        yield
    for vcenter in (realm.world.prod, realm.world.dr):
        vcenter.control(clear=True)


def slow(realm: Realm, site: str) -> None:
    """Every look at a VM takes so long that a task's time is up before it has read or written anything: a sync looks
    half a dozen times, a backup more often."""
    vcenter, delay = (realm.world.prod, 200) if site == "prod" else (realm.world.dr, 300)
    vcenter.control(rules=[{"Method": "RetrievePropertiesEx", "DelayMs": delay, "Count": -1}])


def parts(log: str, outcome: str) -> int:
    """How many tasks did a part of a run and ended so. Redis may deliver a message twice: who finds nothing left to do
    for it says how the run stands, and is not counted."""
    ends = [line for line in log.splitlines() if "succeeded in" in line and "another worker has it" not in line]
    return sum(f"'outcome': '{outcome}'" in line for line in ends)


def test_a_long_sync_goes_on_message_by_message(realm: Realm) -> None:
    world = realm.world
    world.make_vm("long", 28 * MIB)
    world.write("long", 0, os.urandom(28 * MIB))
    point = world.backup("long").point
    slow(realm, "dr")
    workers = [realm.worker("dr"), realm.worker("dr")]
    run = realm.ended(realm.sync("long"))
    assert (run.point, run.attempts) == (point, 1)
    world.assert_replica_is("long", point)
    logs = [worker.log.read_text() for worker in workers]
    assert sum(parts(log, "continues") for log in logs) >= 3
    assert sum(parts(log, "succeeded") for log in logs) == 1
    assert run.written == 28 * MIB, "nothing was written twice"
    assert world.catalogue.fence(run.target) == run.fence == 1
    assert world.catalogue.failures(run=run.id) == []


@pytest.mark.slow
def test_a_long_backup_goes_on_message_by_message(realm: Realm) -> None:
    world = realm.world
    world.make_vm("many", *([4 * MIB] * 4))
    world.scribble("many", 1)
    slow(realm, "prod")
    worker = realm.worker("prod")
    run = realm.ended(realm.backup("many"))
    assert parts(worker.log.read_text(), "continues") >= 2
    world.prod.control(clear=True)
    assert run.point is not None
    world.held[run.point] = {key: bytes(data) for key, data in world.log["many"].items()}
    world.assert_point_is_readable("many", run.point)
    assert world.state("many").snapshots == ()
    assert world.catalogue.failures(run=run.id) == []


def test_a_worker_that_is_told_to_end_hands_the_rest_to_another_one(realm: Realm) -> None:
    world = realm.world
    world.make_vm("handed", 28 * MIB)
    world.write("handed", 0, os.urandom(28 * MIB))
    point = world.backup("handed").point
    slow(realm, "dr")
    first = realm.worker("dr")
    run = realm.sync("handed")
    services.wait_for(lambda: began_to_write(realm, run), "the first bytes", PATIENCE)
    first.process.send_signal(signal.SIGTERM)
    services.wait_for(lambda: first.said("Soft Shutdown"), "its shutdown", PATIENCE)
    second = realm.worker("dr")
    ended = realm.ended(run)
    assert ended.point == point
    world.dr.control(clear=True)
    world.assert_replica_is("handed", point)
    assert parts(second.log.read_text(), "succeeded") == 1
    assert world.catalogue.failures(run=run.id) == []


def began_to_write(realm: Realm, run: Run) -> bool:
    found = realm.world.catalogue.slices(run.id)
    return any(part.written for part in found)


def test_a_task_that_hangs_loses_its_process_and_not_its_run(realm: Realm, tmp_path: Path) -> None:
    """Celery's time limit: it is told in a failure row, and another process goes on from the last checkpoint."""
    world = realm.world
    world.make_vm("hangs", 8 * MIB)
    world.scribble("hangs", 1)
    point = world.backup("hangs").point
    once = tmp_path / "once"
    once.touch()
    worker = realm.worker("dr", fault=f"slice.written=stop@{once}")
    run = realm.ended(realm.sync("hangs"))
    assert not once.exists(), "the step was not reached"
    assert run.point == point
    world.assert_replica_is("hangs", point)
    (failure,) = world.catalogue.failures(run=run.id)
    assert (failure.family, failure.vm) == ("time limit", "hangs")
    assert failure.task is not None and "was ended by its time limit" in failure.message
    assert worker.process.poll() is None
    assert world.catalogue.fence(run.target) == run.fence == 1


def test_a_message_comes_again_only_after_its_task_can_not_run_any_more(realm: Realm) -> None:
    for tuning in ({"slice_time": "4m"}, {"slice_time": "3h"}, {"slice_time": "1s", "vcenter_wait": "1h"}):
        settings = realm.world.settings
        conf = configuration(settings.model_copy(update={"tuning": settings.tuning.model_copy(update=tuning)}))
        assert conf["broker_transport_options"]["visibility_timeout"] > 2 * conf["task_time_limit"]
        assert conf["task_time_limit"] >= 2 * seconds(tuning["slice_time"])
        assert "task_soft_time_limit" not in conf
