"""A run that finds no free place waits in the queue, with nothing begun, and says for what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tests.integration.world import MIB, World
from workers import backup, replicate, verify
from workers.catalogue import Full
from workers.models import RunState


def test_without_a_place_a_run_waits_in_the_queue(make_world: Callable[..., World]) -> None:
    world = make_world(more=("[limits]", "datastore = 1"))
    world.make_vm("place", 8 * MIB)
    world.scribble("place", 1)
    assert world.catalogue.take_places("another", {"datastore ds1 of prod": 1}, 60) is None
    run = world.request_backup("place")
    for _ in range(world.settings.tuning.attempts + 1):
        report = backup.run(world.here, run.id)
        assert report.outcome == "waiting" and "a place on the datastore ds1 of prod: all 1 are taken" in report.reason
        world.expire_lease(run)
    now = world.catalogue.run(run.id)
    assert now.state is RunState.QUEUED and now.attempts == 0  # that is no failed try
    assert any("datastore ds1 of prod" in reason for reason in now.reasons)
    assert world.state("place").snapshots == () and world.store.runs() == []
    assert world.catalogue.places() == {"datastore ds1 of prod": ["another"]}
    world.catalogue.leave_places("another")
    made = backup.run(world.here, run.id)
    world.keep("place", made)
    assert made.outcome == "succeeded"
    assert world.catalogue.places() == {}
    # A worker that died holds its places until its lease is over, and its run has them again before that.
    sync = world.request_sync("place")
    world.killed_at(sync, "slice.written")
    held = world.catalogue.places()
    assert {holder for holders in held.values() for holder in holders} == {sync.id}
    assert "datastore ds1 of dr" in held
    point = replicate.run(world.here, sync.id).point
    world.assert_replica_is("place", point or "")
    assert world.catalogue.places() == {}
    # So does a verification: it reads all of the replica's disks.
    assert world.catalogue.take_places("another", {"datastore ds1 of dr": 1}, 60) is None
    check, _ = verify.request(world.here, world.pair("place"))
    report = verify.run(world.here, check.id)
    assert report.outcome == "waiting" and "a place on the datastore ds1 of dr: all 1 are taken" in report.reason
    world.expire_lease(check)
    world.catalogue.ask_to_stop(check.id, "a test")
    part, _ = verify.request_part(world.here, world.pair("place"), "slot-1", share=1.0, repair=False)
    report = verify.run(world.here, part.id)  # it would hold up the syncs of this replica for as long as it waits
    assert report.outcome == "nothing new" and "a place on the datastore ds1 of dr" in report.reason
    assert world.catalogue.run(part.id).state is RunState.NOTHING_NEW
    # Unless that went on for too long: then it waits, and nobody who comes later is given the place.
    ago = world.catalogue.now() - timedelta(days=3)
    part, _ = verify.request_part(world.here, world.pair("place"), "slot-2", share=1.0, repair=False, late=ago)
    report = verify.run(world.here, part.id)
    assert report.outcome == "waiting" and "tried again in 0.625 s" in report.reason, "an eighth of a lease"
    world.catalogue.leave_places("another")
    assert world.catalogue.take_places("another", {"datastore ds1 of dr": 1}, 60) == Full("datastore ds1 of dr", None)
    world.expire_lease(part)
    assert verify.run(world.here, part.id).outcome == "verified"
    assert world.catalogue.take_places("another", {"datastore ds1 of dr": 1}, 60) is None
    world.catalogue.leave_places("another")
    check, _ = verify.request(world.here, world.pair("place"))
    assert verify.run(world.here, check.id).outcome == "verified"
    assert world.catalogue.places() == {}
    # A run that is given up needs none any more.
    world.scribble("place", 2)
    world.backup("place")
    last = world.request_sync("place")
    world.killed_at(last, "slice.written")
    assert world.catalogue.places() != {}
    world.give_up(last.id)
    assert world.catalogue.places() == {}
