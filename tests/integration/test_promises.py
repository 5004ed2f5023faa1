"""What is promised to operators, rule by rule; docs/architecture.md says where each is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.integration.world import MIB, World
from workers import dispatch, replicate, rollback
from workers.models import RunKind, RunState, Trigger
from workers.status import overview


@pytest.fixture
def out_of_reach(world: World) -> Callable[[], None]:
    """From now on the source's vCenter answers nothing and its disks are gone: whoever asks it fails."""

    def cut() -> None:
        world.prod.control(clear=True, rules=[{"Method": "*", "Drop": True, "Count": 1000}])
        os.rename(world.prod.datastores / "ds1", world.prod.datastores / "ds1.away")

    return cut


def test_a_replica_gets_what_the_backups_say_changed_since_its_sync_point(world: World) -> None:
    world.make_vm("p-delta", 16 * MIB)
    world.scribble("p-delta", 1)
    world.backup("p-delta")
    world.sync("p-delta")
    world.write("p-delta", 3 * MIB, b"\1" * 65536)
    point = world.backup("p-delta").point
    report = world.sync("p-delta")
    assert report.written == 65536
    world.assert_replica_is("p-delta", point)


def test_replication_never_asks_the_source(world: World, out_of_reach: Callable[[], None]) -> None:
    """Neither its vCenter nor its disks: production carries the load of the backup, in one pass."""
    world.make_vm("p-source", 16 * MIB)
    world.write("p-source", 0, os.urandom(MIB))
    report = world.backup("p-source")
    point = report.point
    assert report.read <= 2 * MIB
    run = world.request_sync("p-source")
    out_of_reach()
    try:
        assert replicate.run(world.here, run.id).outcome == "succeeded"
        assert world.prod.control()["rules"][0]["Count"] == 1000, "no call came"
    finally:
        world.prod.control(clear=True)
        os.rename(world.prod.datastores / "ds1.away", world.prod.datastores / "ds1")
    world.assert_replica_is("p-source", point)


@pytest.mark.parametrize(
    "when", ["after_backup = true", 'after_backup = false, schedule = { every = "1d", jitter = "none" }']
)
def test_replication_begins_by_itself_after_a_backup_or_by_its_schedule(
    make_world: Callable[..., World], when: str
) -> None:
    world = make_world(group=[f"replicate = {{ {when} }}"])
    name = f"p-auto-{len(when)}"
    world.make_vm(name, 8 * MIB)
    world.backup(name)
    now = world.catalogue.now()
    runs = [run for run in dispatch.dispatch(world.here, now) if run.vm == name]
    assert [(run.kind, run.trigger) for run in runs] == [
        (RunKind.SYNC, Trigger.AFTER_BACKUP if "true" in when else Trigger.SCHEDULE)
    ]
    assert [run for run in dispatch.dispatch(world.here, now) if run.vm == name] == [], "one run a slot"
    assert replicate.run(world.here, runs[0].id).outcome == "succeeded"


def test_what_was_damaged_at_the_source_comes_back_from_an_older_backup(world: World) -> None:
    """The damage is backed up and replicated like any change; what was before it is still there."""
    world.make_vm("p-damage", 8 * MIB)
    world.scribble("p-damage", 1)
    good = world.backup("p-damage").point
    world.write("p-damage", 0, os.urandom(4 * MIB))
    bad = world.backup("p-damage").point
    world.sync("p-damage")
    world.assert_replica_is("p-damage", bad)
    run, _ = rollback.request(world.here, world.pair("p-damage"), good)
    assert replicate.run(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is("p-damage", good)


def test_without_a_new_backup_nothing_is_replicated(make_world: Callable[..., World]) -> None:
    """The scheduled run ends so and touches no disk."""
    world = make_world(group=['replicate = { after_backup = true, schedule = { every = "1h", jitter = "none" } }'])
    world.make_vm("p-nothing", 8 * MIB)
    world.backup("p-nothing")
    world.sync("p-nothing")
    before = {file: file.stat() for file in world.dr.datastores.rglob("*") if file.is_file()}
    later = world.catalogue.now() + timedelta(hours=1)
    (run,) = [run for run in dispatch.dispatch(world.here, later) if run.vm == "p-nothing"]
    assert replicate.run(world.here, run.id).outcome == RunState.NOTHING_NEW
    after = {file: file.stat() for file in world.dr.datastores.rglob("*") if file.is_file()}
    assert {f: (s.st_mtime_ns, s.st_size) for f, s in after.items()} == {
        f: (s.st_mtime_ns, s.st_size) for f, s in before.items()
    }


def test_the_recovery_site_may_have_other_hardware_and_other_networks(world: World) -> None:
    world.make_vm("p-hardware", 8 * MIB)
    point = world.backup("p-hardware").point
    report = world.sync("p-hardware")
    source, replica = world.state("p-hardware"), world.state(world.pair("p-hardware").replica_name, "dr")
    assert source.config.hardware_version != replica.config.hardware_version
    reasons = " ".join(world.catalogue.run(report.run).reasons)
    assert f"{replica.config.hardware_version} instead of {source.config.hardware_version}" in reasons
    assert all(nic.network == "DR Network" for nic in replica.config.nics)
    assert replica.config.disks[0].file.startswith("[ds1]") and replica.power == "poweredOff"
    world.assert_replica_is("p-hardware", point)


def test_the_age_of_a_replica_is_that_of_its_backup(world: World) -> None:
    """Replicating more often than backing up makes nothing younger."""
    world.make_vm("p-age", 8 * MIB)
    world.backup("p-age")
    world.sync("p-age")
    (line,) = overview(world.here, ["p-age"])
    taken = world.store.points(world.state("p-age").identity.instance_uuid)[-1].data_time
    assert line.sync_point is not None and line.sync_point.data_time == taken
    world.sync("p-age")
    (again,) = overview(world.here, ["p-age"])
    assert again.sync_point is not None and again.sync_point.data_time == taken
    assert again.sync is not None and again.sync.lag is not None and again.sync.lag >= (line.sync.lag or 0)


def test_what_is_kept_is_deduplicated_and_compressed(world: World) -> None:
    """So that little has to travel where the store is far away."""
    text = b"".join(b"%08d the same sentence again and again\n" % number for number in range(100_000))
    for name in ("p-one", "p-two"):
        world.make_vm(name, 16 * MIB)
        world.write(name, 0, text)
    first = world.backup("p-one")
    second = world.backup("p-two")
    assert 0 < first.stored < len(text) // 3
    assert second.stored < first.stored // 10
    world.assert_point_is_readable("p-two", second.point)
