"""From Beat's tick to a replica: dispatch, queues, backup, the sync that it sets off, results; in real processes."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests import services
from tests.integration.realm import LOOK, PATIENCE, Realm
from tests.integration.world import MIB, PASSWORD
from workers.models import RunKind, RunState, Trigger


def ticks(control: services.Program) -> int:
    """How many ticks of dispatch the control worker has done."""
    log = control.log.read_text(errors="replace")
    return sum("Task understudy.dispatch" in line and "succeeded" in line for line in log.splitlines())


def more_ticks(control: services.Program, count: int) -> None:
    wanted = ticks(control) + count
    services.wait_for(lambda: ticks(control) >= wanted, f"{count} more ticks", PATIENCE)


def test_a_tick_puts_one_message_per_due_vm_on_its_sites_queue_and_no_other_tick_adds_one(
    make_realm: Callable[..., Realm],
) -> None:
    realm = make_realm(vms=["due-*"], group=('backup = { every = "1d", jitter = "none" }',))
    world = realm.world
    names = [f"due-{number}" for number in range(4)]
    for name in names:
        world.make_vm(name, 4 * MIB)
    (control,) = realm.workers(None)
    realm.beat()
    services.wait_for(lambda: realm.queued_work().get("data.prod"), "the first messages", PATIENCE)
    more_ticks(control, 3)
    realm.beat()  # a second one, elsewhere
    more_ticks(control, 4)

    work = realm.queued_work()
    assert list(work) == ["data.prod"]
    assert sorted(message.kwargs["vm"] for message in work["data.prod"]) == names
    runs = {run.id: run for run in world.catalogue.live_runs()}
    assert sorted(message.kwargs["run"] for message in work["data.prod"]) == sorted(runs)
    assert {(run.kind, run.trigger, run.fence) for run in runs.values()} == {(RunKind.BACKUP, Trigger.SCHEDULE, 1)}
    for message in work["data.prod"]:
        assert message.task == "understudy.backup.run" and message.args == []
        assert f"vm={message.kwargs['vm']} run={message.kwargs['run']}" in message.kwargsrepr
        told = message.raw.decode() + json.dumps(message.kwargs)
        assert PASSWORD not in told and str(world.folder) not in told

    realm.workers("prod")
    for message in work["data.prod"]:
        report = realm.client.AsyncResult(message.id).get(**LOOK)
        assert (report["vm"], report["outcome"]) == (message.kwargs["vm"], "succeeded")
        assert world.catalogue.run(message.kwargs["run"]).point == report["point"]
    # what the backups set off waits for a worker of the other site
    services.wait_for(lambda: len(realm.queued_work().get("data.dr", ())) == 4, "the syncs' messages", PATIENCE)
    more_ticks(control, 2)
    assert {queue: len(messages) for queue, messages in realm.queued_work().items()} == {"data.dr": 4}


def test_the_main_job_runs_by_itself(make_realm: Callable[..., Realm]) -> None:
    """Beat -> dispatch -> backup -> sync, first in full, then what changed; nobody asks for anything."""
    realm = make_realm(vms=["main"], group=('backup = { every = "2s", jitter = "none" }',))
    world = realm.world
    world.make_vm("main", 8 * MIB)
    world.scribble("main", 1)
    realm.workers(None, "prod", "dr")
    beat = realm.beat()
    pair = world.pair("main")

    def synced(since: str | None) -> str | None:
        """The replica's point, when its data are younger than `since`."""
        found = world.catalogue.sync_point(pair.id)
        return found.point if found is not None and (since is None or found.point > since) else None

    first = services.wait_for(lambda: synced(None), "the first sync point", PATIENCE)
    world.scribble("main", 2, busy=True)
    # The second point from here on was begun after the writing; the next may have been under way.
    newest = max(point.id for point in world.store.points(pair.source))
    later = f"{int(newest.split('-')[0]) + 1:08d}-~"
    services.wait_for(lambda: synced(later), "a sync point of the new data", PATIENCE)
    realm.stop(beat)

    def at_rest() -> bool:
        """No run, and none to come: the sync that a backup sets off is asked for a moment after the backup's end."""
        known = world.catalogue.sync_point(pair.id)
        newest = world.store.points(pair.source)[-1].id
        return not world.catalogue.live_runs() and known is not None and known.point == newest

    services.wait_for(at_rest, "the end of the last runs", PATIENCE)
    held = world.catalogue.sync_point(pair.id)
    assert held.point > first
    world.held[held.point] = {key: bytes(data) for key, data in world.log["main"].items()}
    world.assert_replica_is("main", held.point)
    runs = world.catalogue.runs(vm="main", limit=1000)
    assert {run.state for run in runs} <= {RunState.SUCCEEDED, RunState.NOTHING_NEW}, [run.error for run in runs]
    assert {(run.kind, run.trigger) for run in runs} == {
        (RunKind.BACKUP, Trigger.SCHEDULE),
        (RunKind.SYNC, Trigger.AFTER_BACKUP),
    }
    slots = [(run.target, run.slot) for run in runs]
    assert len(set(slots)) == len(slots), "a slot had two runs"
    assert world.catalogue.failures() == []
    for file in world.folder.glob("*.log"):
        assert PASSWORD not in file.read_text(), file
    assert PASSWORD.encode() not in (world.folder / "catalogue.db").read_bytes()
    modes = [disk.mode for point in world.store.points(pair.source) for disk in point.disks]
    assert modes[0] == "full" and set(modes[1:]) <= {"delta", "compare"} and "delta" in modes

    realm.ask("understudy.sync", vm="main").get(**LOOK)  # the last backup may have found the sync before it alive
    services.wait_for(lambda: not world.catalogue.live_runs(), "the end of this sync", PATIENCE)
    (line,) = json.loads(realm.command("status", "--json").stdout)
    assert (line["vm"], line["state"], line["sync"]["sentence"]) == ("main", "in sync", "")
    assert line["sync_point"]["point"] == line["newest"]["id"]
