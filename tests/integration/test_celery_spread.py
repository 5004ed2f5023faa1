"""One disk and several real workers: they are called, they come, they die, and others come instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import services
from tests.integration.crew import overlapping
from tests.integration.realm import ASKED_ONLY, PATIENCE, Realm
from tests.integration.world import MIB
from workers.models import RunState

TUNING = {"slice_size": "1MiB", "spread": 4, "threads": 1}


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm]) -> Realm:
    """Each process writes 2 MiB a second to the recovery site."""
    made = make_realm(group=ASKED_ONLY, tuning=TUNING, rates={"dr": "2MiB"})
    made.workers(None)
    made.beat()
    return made


@pytest.fixture(autouse=True)
def _around(realm: Realm) -> Iterator[None]:
    with realm.only_for_now():
        yield


def full_vm(realm: Realm, name: str, size: int) -> str:
    realm.world.make_vm(name, size)
    realm.world.write(name, 0, os.urandom(size))
    point = realm.world.backup(name).point
    assert point is not None
    return point


def test_workers_of_a_site_share_a_disk_and_one_is_killed(realm: Realm, tmp_path: Path) -> None:
    """Its slice goes on with another within a lease and a tick; the run is no failed try."""
    world = realm.world
    point = full_vm(realm, "shared", 12 * MIB)
    once = tmp_path / "once"
    once.touch()
    workers = [realm.worker("dr", concurrency=2, fault=f"slice.synced=kill@{once}") for _ in range(2)]
    run = realm.ended(realm.sync("shared"))
    assert not once.exists(), "nobody was killed"
    assert run.point == point and world.catalogue.failures(run=run.id) == []
    world.assert_replica_is("shared", point)
    assert overlapping(world.catalogue.slices(run.id)) >= 3
    assert any(worker.said("understudy.sync.slice") for worker in workers)
    assert run.written == 12 * MIB


@pytest.mark.slow
def test_a_run_that_is_stopped_stops_for_all_of_them(realm: Realm) -> None:
    world = realm.world
    full_vm(realm, "halted", 24 * MIB)
    realm.worker("dr", concurrency=3)
    run = realm.sync("halted")

    def busy() -> bool:
        return len({s.owner for s in world.catalogue.slices(run.id) if s.lease_until is not None}) >= 2

    services.wait_for(busy, "two at work", PATIENCE)
    world.catalogue.ask_to_stop(run.id, "stopped by the test")
    ended = realm.ended(run, RunState.STOPPED)
    assert not all(part.finished for part in world.catalogue.slices(ended.id))
