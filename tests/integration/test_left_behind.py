"""What a run leaves when something refuses at its end: snapshots, old points, firmware settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import invariants
from tests.integration.world import MIB, World
from workers import backup, left_behind, replicate, snapshot_point
from workers.errors import Refused, UnderstudyError
from workers.models import RunState
from workers.settings import Keep
from workers.store import Store
from workers.vsphere import inventory


def test_a_snapshot_that_can_not_be_removed_is_no_success(world: World) -> None:
    """It grows on a production VM: the run says so, its point stays, and the reaper goes on trying."""
    world.make_vm("left", 8 * MIB)
    world.scribble("left", 1)
    world.backup("left")
    run = world.request_backup("left")
    world.prod.fault("RemoveSnapshot_Task", Count=-1, Fault="FileLocked")
    for _ in range(10):
        if not world.catalogue.run(run.id).live:
            break
        try:
            backup.run(world.here, run.id)
        except UnderstudyError:
            pass
        world.expire_lease(run) if world.catalogue.run(run.id).live else None
    ended = world.catalogue.run(run.id)
    assert ended.state is RunState.FAILED
    assert any("is made" in reason and "snapshot" in reason for reason in ended.reasons)
    uuid = world.state("left").identity.instance_uuid
    assert world.catalogue.newest_points()[-1].vm == uuid
    assert [r.id for r in world.catalogue.unclean_runs()] == [run.id]
    world.prod.control(clear=True)
    left_behind.clean_up(world.here, run.id)
    assert world.state("left").snapshots == ()
    assert world.catalogue.unclean_runs() == []


def test_a_snapshot_that_is_removed_late_ends_the_run_well(world: World) -> None:
    world.make_vm("late", 8 * MIB)
    world.backup("late")
    run = world.request_backup("late")
    world.prod.fault("RemoveSnapshot_Task", Fault="FileLocked")
    assert backup.run(world.here, run.id).outcome == "waiting"
    assert world.catalogue.run(run.id).live
    world.expire_lease(run)
    assert backup.run(world.here, run.id).outcome == "succeeded"
    assert world.state("late").snapshots == ()


def test_a_point_that_is_pinned_while_it_is_retired_fails_no_backup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_vm("race", 8 * MIB)
    for _ in range(2):
        world.backup("race")
    here = world.here
    group = world.settings.groups["all"].model_copy(update={"keep": Keep(last=1)})
    here = type(here)(world.settings.model_copy(update={"groups": {"all": group}}), world.catalogue)

    def pinned(self: Store, vm: str, point: str) -> None:
        raise Refused(f"restore point {point} is pinned by somebody, just now")

    monkeypatch.setattr(Store, "retire", pinned)  # the moment between reading the pins and retiring has no step
    report = backup.run(here, world.request_backup("race").id)
    assert report.outcome == "succeeded"
    assert any("just now" in reason for reason in world.catalogue.run(report.run).reasons)


def test_the_catalogue_follows_the_store_again(world: World) -> None:
    """A point was retired, or made, by an execution that died before it could tell the catalogue."""
    world.make_vm("mirror", 8 * MIB)
    old = world.backup("mirror").point
    new = world.backup("mirror").point
    assert old is not None and new is not None
    uuid = world.state("mirror").identity.instance_uuid
    world.store.retire(uuid, old)
    world.catalogue.drop_point("main", uuid, new)
    newest = world.backup("mirror").point
    assert [p.id for p in world.catalogue.points(uuid)] == [new, newest]


def nvram(world: World, name: str, site: str) -> Path:
    s = world.source if site == "prod" else world.target
    file = inventory.nvram_path(s, world.state(name, site).identity.moref)
    assert file is not None
    datastore, _, relative = file.removeprefix("[").partition("] ")
    return (world.prod if site == "prod" else world.dr).datastores / datastore / relative


def test_firmware_settings_follow_the_source_also_after_a_crash(world: World) -> None:
    world.make_vm("nvram", 8 * MIB)
    nvram(world, "nvram", "prod").write_bytes(b"boot entries of the first day")
    world.backup("nvram")
    run = world.request_sync("nvram")
    world.killed_at(run, "create.after")
    replicate.run(world.here, run.id)
    replica = world.pair("nvram").replica_name
    assert nvram(world, replica, "dr").read_bytes() == b"boot entries of the first day"
    nvram(world, "nvram", "prod").write_bytes(b"boot entries of the second day")
    world.backup("nvram")
    world.sync("nvram")
    assert nvram(world, replica, "dr").read_bytes() == b"boot entries of the second day"


def test_firmware_settings_that_can_not_be_read_are_named_and_the_backup_goes_on(world: World) -> None:
    world.make_vm("unread", 8 * MIB)
    file = nvram(world, "unread", "prod")
    file.unlink()
    file.mkdir()
    world.backup("unread")
    notes = [reason for reason in world.catalogue.runs(vm="unread", limit=1)[0].reasons if "NVRAM" in reason]
    assert len(notes) == 1 and f"{file}: Is a directory" in notes[0]
    invariants.check(world, "unread")


def test_a_removal_that_takes_long_is_waited_for_and_is_no_failed_try(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may fail at its end: a run that had ended before would not see that."""
    world.make_vm("long", 8 * MIB)
    world.backup("long")
    run = world.request_backup("long")
    monkeypatch.setattr(snapshot_point, "REMOVAL_WAIT", 0.1)  # less than the removal takes
    world.prod.fault("RemoveSnapshot_Task", TaskMs=3000)
    looks = 0
    while world.catalogue.run(run.id).live:
        looks += 1
        report = backup.run(world.here, run.id)
        assert report.outcome in ("waiting", "succeeded")
        if report.outcome == "waiting":
            assert world.catalogue.run(run.id).attempts == 0
            world.expire_lease(run)  # the pause is over
    assert looks > 1
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED
    assert world.state("long").snapshots == ()
