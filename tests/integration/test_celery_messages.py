"""Messages that vanish, come twice, come late, are called off or fail: the catalogue is the ledger, they only say when
to look into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests import services
from tests.integration.realm import ASKED_ONLY, LOOK, PATIENCE, Message, Realm
from tests.integration.world import MIB
from workers.errors import Touched
from workers.models import Run, RunState


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


def asked(realm: Realm, name: str) -> tuple[Run, Message]:
    """A sync that nobody has begun, and its message, which waits on Redis."""
    run = realm.sync(name)
    (message,) = services.wait_for(lambda: realm.waiting("adhoc.dr"), "the run's message", PATIENCE)
    assert message.kwargs["run"] == run.id
    return run, message


def prepared(realm: Realm, name: str) -> str:
    """A VM whose replica is one point behind. The newest point."""
    world = realm.world
    world.make_vm(name, 8 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.sync(name)
    world.scribble(name, 2)
    point = world.backup(name).point
    assert point is not None
    return point


def synced_once(realm: Realm, run: Run, point: str) -> None:
    """The run ended well, by itself; no other was made, and the fence was raised by none."""
    world = realm.world
    assert realm.ended(run).point == point
    world.assert_replica_is(run.vm, point)
    assert world.catalogue.fence(run.target) == run.fence == 2
    assert len(world.catalogue.runs(target=run.target)) == 2
    assert world.catalogue.sync_point(world.pair(run.vm).id).fence == run.fence


def test_a_lost_message_is_only_a_delay(realm: Realm) -> None:
    point = prepared(realm, "lost")
    run, message = asked(realm, "lost")
    assert realm.redis.lpop("understudy:adhoc.dr") == message.raw
    realm.worker("dr")
    synced_once(realm, run, point)


def test_a_doubled_message_starts_nothing_twice(realm: Realm) -> None:
    point = prepared(realm, "twice")
    run, message = asked(realm, "twice")
    realm.put("adhoc.dr", message)
    realm.put("adhoc.dr", message)
    worker = realm.worker("dr", concurrency=2)
    synced_once(realm, run, point)
    services.wait_for(lambda: done(worker.log.read_text(), message) == 3, "the end of all three copies", PATIENCE)
    synced_once(realm, run, point)
    assert realm.world.catalogue.failures(run=run.id) == []


def done(log: str, message: Message) -> int:
    return sum(f"[{message.id}] succeeded" in line for line in log.splitlines())


def test_a_late_message_of_an_ended_run_disturbs_nobody(realm: Realm) -> None:
    """Also not the run that is alive by then: it is not fenced out, and goes on (hole 8)."""
    world = realm.world
    first_point = prepared(realm, "late")
    first, message = asked(realm, "late")
    worker = realm.worker("dr", concurrency=2)
    synced_once(realm, first, first_point)
    ended = world.catalogue.run(first.id)

    world.scribble("late", 3)
    point = world.backup("late").point
    world.dr.fault("CreateSnapshot_Task", TaskMs=3000)  # the seal takes a while
    second = realm.sync("late")
    realm.begun(second)
    realm.put("adhoc.dr", message)
    services.wait_for(lambda: done(worker.log.read_text(), message) == 2, "the end of the late copy", PATIENCE)
    assert world.catalogue.run(first.id) == ended
    assert realm.ended(second).attempts == 1
    world.assert_replica_is("late", point)
    assert world.catalogue.fence(first.target) == second.fence == 3
    realm.put("adhoc.dr", message)  # and once more, when nothing is alive
    services.wait_for(lambda: done(worker.log.read_text(), message) == 3, "the end of the late copy", PATIENCE)
    assert world.catalogue.run(first.id) == ended and world.catalogue.live_runs() == []
    world.assert_replica_is("late", point)


def test_a_message_for_a_run_that_never_was_is_a_sentence(realm: Realm) -> None:
    """Of a catalogue that was made anew, say."""
    realm.worker("dr")
    message = realm.client.send_task("understudy.sync.run", kwargs={"run": "0" * 16, "vm": "x"}, queue="data.dr")
    failures = realm.world.catalogue.failures
    (failure,) = services.wait_for(lambda: [f for f in failures() if f.task == message.id], "its failure", PATIENCE)
    assert failure.family == "not found" and "the catalogue has no run 0000000000000000" in failure.message


def test_a_message_that_is_called_off_is_told_and_is_only_a_delay(realm: Realm) -> None:
    """Somebody presses "revoke" in Flower: the worker that gets the message drops it."""
    point = prepared(realm, "called-off")
    run, message = asked(realm, "called-off")
    assert realm.redis.lpop("understudy:adhoc.dr") == message.raw
    worker = realm.worker("dr")
    worker.ready()
    assert realm.client.control.revoke(message.id, reply=True, timeout=10)
    realm.put("adhoc.dr", message)
    failures = realm.world.catalogue.failures
    (failure,) = services.wait_for(lambda: failures(run=run.id), "the failure row", PATIENCE)
    assert (failure.family, failure.task, failure.vm) == ("revoked", message.id, "called-off")
    assert realm.client.AsyncResult(message.id).state == "REVOKED"
    synced_once(realm, run, point)


def test_a_run_that_fails_is_one_failure_row_and_a_failed_task(realm: Realm) -> None:
    """The replica runs: a person has to decide. Result, run and failure row say the same sentence."""
    world = realm.world
    prepared(realm, "touched")
    run, message = asked(realm, "touched")
    world.target.wait(world.vm(world.pair("touched").replica_name, "dr").PowerOnVM_Task())
    realm.worker("dr")
    failed = realm.ended(run, RunState.FAILED)
    with pytest.raises(Touched) as told:
        realm.client.AsyncResult(message.id).get(**LOOK)
    (failure,) = world.catalogue.failures(run=run.id)
    assert str(told.value) == failure.message == failed.error
    assert (failure.family, failure.vm, failure.kind) == ("touched", "touched", "sync")
    assert "is running" in failure.message and "Traceback" not in failure.message
    (line,) = [each for each in json.loads(realm.command("status", "--json").stdout) if each["vm"] == "touched"]
    assert line["state"] == "touched" and line["sync"]["sentence"].startswith(str(failed.error))
    assert "`understudy resume` looks at once" in line["sync"]["sentence"]
