"""Workers and pool processes that are killed, stopped or told to end in the midst of a run: the run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import services
from tests.integration.realm import ASKED_ONLY, PATIENCE, Realm, gone
from tests.integration.test_celery_messages import prepared
from tests.integration.world import MIB, flat
from workers.disks.file import FileLock
from workers.errors import DiskBusy
from workers.models import RunState


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm]) -> Realm:
    """Beat and the control worker; those that do the work come and go with the tests."""
    made = make_realm(group=ASKED_ONLY)
    made.workers(None)
    made.beat()
    return made


@pytest.fixture(autouse=True)
def _workers(realm: Realm) -> Iterator[None]:
    with realm.only_for_now():
        yield


@pytest.fixture
def once(tmp_path: Path) -> Path:
    """A fault with this file acts once: who comes to the step next finds it gone."""
    file = tmp_path / "once"
    file.touch()
    return file


def take_locks(realm: Realm, name: str) -> None:
    """The whole-disk lock of each of the replica's disks, at once: nobody holds any part of it."""
    for disk in realm.world.replica_disks(name).values():
        path = flat(realm.world.dr, disk.parent or disk.file)
        with FileLock(path).lock(0, 0, wait=0):
            pass


@pytest.mark.parametrize("step", [pytest.param("slice.synced", marks=pytest.mark.slow), "commit.after"])
def test_a_killed_child_of_the_pool_costs_a_delay(realm: Realm, once: Path, step: str) -> None:
    name = f"child-{step.replace('.', '-')}"
    point = prepared(realm, name)
    worker = realm.worker("dr", fault=f"{step}=kill@{once}")
    run = realm.ended(realm.sync(name))
    assert not once.exists(), "the step was not reached"
    assert worker.process.poll() is None, "the worker must outlive its child"
    assert run.point == point
    realm.world.assert_replica_is(name, point)
    assert realm.world.catalogue.fence(run.target) == run.fence == 2


def test_nothing_survives_a_worker_that_is_killed_in_a_sync_and_another_one_ends_the_run(
    realm: Realm, once: Path
) -> None:
    """Hole 26: its child dies with it, although it was stopped, and its lock on the disk is gone."""
    point = prepared(realm, "whole")
    doomed = realm.worker("dr", fault=f"slice.checked=stop@{once}")
    run = realm.sync("whole")
    child = doomed.stopped_child()
    assert not once.exists() and realm.world.catalogue.run(run.id).state is RunState.RUNNING
    with pytest.raises(DiskBusy):
        take_locks(realm, "whole")
    children = doomed.children()
    assert child in children
    os.kill(doomed.process.pid, signal.SIGKILL)  # the parent alone
    doomed.process.wait()
    services.wait_for(lambda: all(map(gone, children)), "the children's end", PATIENCE)
    take_locks(realm, "whole")
    realm.worker("dr")
    ended = realm.ended(run)
    assert ended.point == point
    realm.world.assert_replica_is("whole", point)


@pytest.mark.parametrize(
    "step",
    [
        "snapshot.after",
        *(pytest.param(step, marks=pytest.mark.slow) for step in ("store.packs-synced", "manifest.after")),
    ],
)
def test_a_worker_that_is_killed_in_a_backup_leaves_a_run_that_ends(realm: Realm, once: Path, step: str) -> None:
    world = realm.world
    name = f"backup-{step.replace('.', '-')}"
    world.make_vm(name, 8 * MIB)
    world.scribble(name, 1)
    doomed = realm.worker("prod", fault=f"{step}=stop@{once}")
    run = realm.backup(name)
    doomed.stopped_child()
    doomed.kill()
    realm.worker("prod")
    ended = realm.ended(run)
    world.held[ended.point] = {key: bytes(data) for key, data in world.log[name].items()}
    world.assert_point_is_readable(name, ended.point)
    uuid = world.state(name).identity.instance_uuid
    assert [point.id for point in world.store.points(uuid)] == [ended.point]
    assert world.state(name).snapshots == (), "the run's snapshot is still there"


def test_a_run_that_kills_every_worker_is_ended_with_a_sentence(realm: Realm) -> None:
    point = prepared(realm, "poison")
    worker = realm.worker("dr", fault="slice.written=kill")
    run = realm.ended(realm.sync("poison"), RunState.FAILED)
    assert run.error is not None and "its worker was lost 3 times in a row" in run.error
    (failure,) = realm.world.catalogue.failures(run=run.id)
    assert (failure.family, failure.message, failure.vm) == ("worker lost", run.error, "poison")
    assert run.attempts >= 3
    assert worker.process.poll() is None
    realm.stop(worker)
    # the next run brings the replica up, whatever the dead ones have written
    realm.worker("dr")
    assert realm.ended(realm.sync("poison")).point == point
    realm.world.assert_replica_is("poison", point)


@pytest.mark.slow
def test_what_a_backup_that_kills_every_worker_left_on_its_vm_is_removed(realm: Realm) -> None:
    """The snapshot was made, but nobody lived to write its name down: it must not grow on a production VM."""
    world = realm.world
    world.make_vm("relic", 8 * MIB)
    realm.worker("prod", fault="snapshot.after=kill")
    run = realm.ended(realm.backup("relic"), RunState.FAILED)
    assert run.error is not None and "its worker was lost" in run.error
    assert len(world.state("relic").snapshots) == 1
    services.wait_for(lambda: world.state("relic").snapshots == (), "the removal of its snapshot", PATIENCE)
    services.wait_for(lambda: world.catalogue.unclean_runs() == [], "the end of the cleaning", PATIENCE)


def test_a_worker_that_is_told_to_end_lets_its_run_come_to_an_end(realm: Realm) -> None:
    """SIGTERM: no new work, what runs has 30 s (worker_soft_shutdown_timeout); here that is enough."""
    world = realm.world
    point = prepared(realm, "term")
    worker = realm.worker("dr")
    worker.ready()
    calls = seals(realm)
    world.dr.fault("CreateSnapshot_Task", TaskMs=3000)
    run = realm.sync("term")
    services.wait_for(lambda: seals(realm) > calls, "the seal's begin", PATIENCE)
    worker.process.terminate()
    ended = realm.ended(run)
    assert (ended.point, ended.attempts) == (point, 1)
    world.assert_replica_is("term", point)
    assert worker.process.poll() is None or worker.said("Soft Shutdown")


def seals(realm: Realm) -> int:
    return int(realm.world.dr.control()["calls"].get("CreateSnapshot_Task", 0))


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_gives_up_what_does_not_come_to_an_end(realm: Realm) -> None:
    """After the 30 s it ends its children and puts the message back."""
    world = realm.world
    point = prepared(realm, "stuck")
    worker = realm.worker("dr")
    worker.ready()
    children = worker.children()
    world.dr.fault("ReconfigVM_Task", DelayMs=120_000)  # vCenter takes its time with the cursor
    run = realm.begun(realm.sync("stuck"))
    worker.process.terminate()
    worker.process.wait(PATIENCE)
    services.wait_for(lambda: all(map(gone, children)), "the children's end", PATIENCE)
    take_locks(realm, "stuck")
    realm.worker("dr")
    assert realm.ended(run).point == point
    world.assert_replica_is("stuck", point)
