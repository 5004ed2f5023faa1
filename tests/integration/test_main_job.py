"""Backup and replication between two vCenters, judged byte for byte against the log of what the guest wrote."""

from collections.abc import Callable

import pytest
from pyVmomi import vim

from tests.integration.world import MIB, World, flat
from workers import dispatch, plan
from workers.errors import BadInput, Foreign, NotFound, Refused, Touched, UnderstudyError
from workers.models import RunState
from workers.run import Here


def test_first_sync_increments_and_nothing_new(world: World) -> None:
    world.make_vm("web-01", 32 * MIB, 16 * MIB)
    world.scribble("web-01", 1)
    first = world.backup("web-01")
    world.assert_point_is_readable("web-01", first.point)
    report = world.sync("web-01")
    assert report.outcome == "succeeded"
    world.assert_replica_is("web-01", first.point)
    for seed in range(3):
        world.scribble("web-01", 10 + seed)
        point = world.backup("web-01").point
        world.assert_point_is_readable("web-01", point)
        report = world.sync("web-01")
        assert 0 < report.written < 8 * MIB
        world.assert_replica_is("web-01", point)
    again = world.sync("web-01")
    assert (again.outcome, again.read, again.written) == ("nothing new", 0, 0)
    world.assert_replica_is("web-01", point)
    assert world.catalogue.sync_point(world.pair("web-01").id).point == point


def test_several_points_are_caught_up_in_one_step(world: World) -> None:
    world.make_vm("jump", 16 * MIB)
    world.backup("jump")
    world.sync("jump")
    for seed in range(4):
        world.scribble("jump", seed)
        newest = world.backup("jump").point
    planned = world.plan("jump")
    report = world.sync("jump")
    assert report.point == newest == planned.point
    assert report.written == planned.bytes
    world.assert_replica_is("jump", newest)


def test_the_plan_is_what_the_run_does_and_changes_nothing(world: World) -> None:
    world.make_vm("plan", 16 * MIB, 8 * MIB)
    world.scribble("plan", 1)
    point = world.backup("plan").point
    planned = world.plan("plan")
    assert planned.build_replica and planned.point == point
    assert [d.mode for d in planned.disks] == ["full", "full"]
    with pytest.raises(NotFound):
        world.state(world.pair("plan").replica_name, "dr")
    assert world.sync("plan").written == planned.bytes
    world.write("plan", 0, b"x" * 4096, disk=1)
    world.backup("plan")
    planned = world.plan("plan")
    assert [(d.mode, d.bytes) for d in planned.disks] == [("nothing", 0), ("delta", 4096)]
    assert world.sync("plan").written == 4096
    assert world.plan("plan").nothing_new


def test_disks_are_added_grown_and_removed(world: World) -> None:
    world.make_vm("disks", 16 * MIB, 8 * MIB)
    world.scribble("disks", 1)
    world.backup("disks")
    world.sync("disks")
    world.add_disk("disks", 12 * MIB)
    world.grow_disk("disks", 0, 24 * MIB)
    world.scribble("disks", 2)
    point = world.backup("disks").point
    report = world.sync("disks")
    world.assert_replica_is("disks", point)
    reasons = world.catalogue.run(report.run).reasons
    assert any("grow disk" in r for r in reasons) and any("add disk" in r for r in reasons)
    world.remove_disk("disks", 1)
    world.scribble("disks", 3)
    point = world.backup("disks").point
    world.assert_point_is_readable("disks", point)
    world.sync("disks")
    world.assert_replica_is("disks", point)
    assert len(world.replica_disks("disks")) == 2


def test_lost_change_tracking_means_compare_and_the_reason_is_said(world: World) -> None:
    world.make_vm("cbt", 16 * MIB)
    world.scribble("cbt", 1)
    world.backup("cbt")
    world.sync("cbt")
    world.scribble("cbt", 2)
    world.prod.control(cbt={"VM": "cbt", "Disk": 0, "Reset": True})
    report = world.backup("cbt")
    found = world.store.point(world.state("cbt").identity.instance_uuid, report.point)
    assert found.disks[0].mode == "compare"
    assert "reset" in found.disks[0].reason
    world.assert_point_is_readable("cbt", report.point)
    world.sync("cbt")
    world.assert_replica_is("cbt", report.point)


def test_the_snapshot_is_gone_after_the_backup(world: World) -> None:
    world.make_vm("tidy", 8 * MIB)
    world.backup("tidy")
    assert world.state("tidy").snapshots == ()


def test_a_guest_that_can_not_be_quiesced_gives_a_crash_consistent_point_and_says_so(world: World) -> None:
    world.make_vm("crash", 8 * MIB)
    world.backup("crash")
    world.prod.fault("CreateSnapshot_Task", Fault="ApplicationQuiesceFault", AsTask=True, Object="crash")
    world.scribble("crash", 1)
    report = world.backup("crash")
    found = world.store.point(world.state("crash").identity.instance_uuid, report.point)
    assert found.consistency == "crash-consistent"
    assert any("quiesce" in note for note in found.notes)
    world.sync("crash")
    world.assert_replica_is("crash", report.point)


def test_the_replica_is_the_vm_it_stands_for_and_is_off(world: World) -> None:
    world.make_vm("conf", 8 * MIB, annotation="the web server", firmware="efi")
    world.backup("conf")
    world.sync("conf")
    source, replica = world.state("conf"), world.state(world.pair("conf").replica_name, "dr")
    assert replica.power == "poweredOff"
    assert (replica.config.cpus, replica.config.memory_mib, replica.config.guest_id, replica.config.firmware) == (
        source.config.cpus,
        source.config.memory_mib,
        source.config.guest_id,
        "efi",
    )
    assert replica.identity.bios_uuid == source.identity.bios_uuid
    assert replica.identity.instance_uuid != source.identity.instance_uuid
    assert [s.name for s in replica.snapshots] == [
        plan.seal_name(world.catalogue.realm, world.pair("conf").id, world.plan("conf").point or "")
    ]


def test_retention_keeps_the_last_points_and_what_the_replica_needs(make_world: Callable[..., World]) -> None:
    world = make_world(keep="{ last = 2 }")
    world.make_vm("keep", 8 * MIB)
    world.scribble("keep", 0)
    held = world.backup("keep").point
    world.sync("keep")
    for seed in range(4):
        world.scribble("keep", seed)
        newest = world.backup("keep").point
    uuid = world.state("keep").identity.instance_uuid
    kept = [p.id for p in world.store.points(uuid)]
    assert len(kept) == 3 and kept[0] == held and kept[-1] == newest
    world.store.prune()
    world.sync("keep")
    world.assert_replica_is("keep", newest)
    for point in world.store.points(uuid)[1:]:
        world.assert_point_is_readable("keep", point.id)


# --- trouble ----------------------------------------------------------------------------------------------------


def failed(world: World, name: str, error: type[UnderstudyError], words: str) -> None:
    with pytest.raises(error, match=words):
        world.sync(name)
    run = world.catalogue.runs(vm=name, limit=1)[0]
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert world.catalogue.failures(vm=name, limit=1)[0].message == run.error


def test_a_foreign_vm_with_the_replicas_name_is_left_alone(world: World) -> None:
    world.make_vm("taken", 8 * MIB)
    world.backup("taken")
    world_of_others(world, "taken_replica")
    before = flat(world.dr, world.state("taken_replica", "dr").config.disks[0].file).read_bytes()
    failed(world, "taken", Foreign, "taken_replica is already at site dr")
    assert flat(world.dr, world.state("taken_replica", "dr").config.disks[0].file).read_bytes() == before


def world_of_others(world: World, name: str) -> None:
    """A VM at the recovery site that has nothing to do with us."""
    s = world.target
    centers = s.read_all({vim.Datacenter: ("vmFolder",), vim.ResourcePool: ("name",)})
    folder = next(f.values["vmFolder"] for f in centers if isinstance(f.ref, vim.Datacenter))
    pool = next(f.ref for f in centers if isinstance(f.ref, vim.ResourcePool))
    spec = vim.vm.ConfigSpec(
        name=name,
        guestId="otherGuest64",
        numCPUs=1,
        memoryMB=64,
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=[
            vim.vm.device.VirtualDeviceSpec(
                operation="add",
                device=vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing"),
            ),
            World._new_disk(-1, 0, 4 * MIB, -2),
        ],
    )
    s.wait(folder.CreateVM_Task(spec, pool))


def test_a_vm_created_again_under_the_same_name_is_another_vm(world: World) -> None:
    world.make_vm("again", 8 * MIB)
    world.backup("again")
    world.sync("again")
    world.source.wait(world.vm("again").PowerOffVM_Task())
    world.source.wait(world.vm("again").Destroy_Task())
    world.make_vm("again", 8 * MIB)
    world.scribble("again", 5)
    world.backup("again")
    failed(world, "again", Foreign, "created again under the same name")


def test_a_running_replica_stops_the_pair(world: World) -> None:
    world.make_vm("runs", 8 * MIB)
    world.backup("runs")
    world.sync("runs")
    replica = world.pair("runs").replica_name
    world.target.wait(world.vm(replica, "dr").PowerOnVM_Task())
    world.scribble("runs", 1)
    point = world.backup("runs").point
    failed(world, "runs", Touched, "is running")
    world.target.wait(world.vm(replica, "dr").PowerOffVM_Task())
    failed(world, "runs", Touched, "changed by somebody else")
    assert world.sync("runs", discard=True).outcome == "succeeded"
    world.assert_replica_is("runs", point)


def test_a_foreign_snapshot_on_the_replica_stops_the_pair(world: World) -> None:
    world.make_vm("snap", 8 * MIB)
    world.backup("snap")
    world.sync("snap")
    replica = world.pair("snap").replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.CreateSnapshot_Task(name="before the audit", memory=False, quiesce=False))
    world.scribble("snap", 1)
    point = world.backup("snap").point
    failed(world, "snap", Refused, "before the audit")
    node = next(s for s in world.state(replica, "dr").snapshots if s.name == "before the audit")
    world.target.wait(world.target.object(vim.vm.Snapshot, node.moref).RemoveSnapshot_Task(removeChildren=False))
    world.sync("snap")
    world.assert_replica_is("snap", point)


def test_a_replica_is_never_a_source(world: World) -> None:
    """A pattern such as * matches the replicas too, where both are in one vCenter or the sites' names cross."""
    world.make_vm("mirror", 8 * MIB)
    world.backup("mirror")
    world.sync("mirror")
    dispatch.discover(world.here, "dr")
    both_ways = world.settings.groups["all"].model_copy(update={"source": "dr"})
    groups = {**world.settings.groups, "back": both_ways}
    here = Here(world.settings.model_copy(update={"groups": groups}), world.catalogue)
    assert "mirror_replica" in {vm.identity.name for vm in world.catalogue.inventory("dr")}
    assert "mirror_replica" not in {member.vm.identity.name for member in dispatch.members(here)}


def test_an_unknown_vm_names_what_is_near(world: World) -> None:
    world.make_vm("database-01", 8 * MIB)
    with pytest.raises(NotFound, match="database-01"):
        world.request_backup("databse-01")
    with pytest.raises(BadInput):
        world.request_backup("")


def test_no_space_on_the_datastore_fails_the_run_and_the_next_one_goes_on(world: World) -> None:
    world.make_vm("full", 8 * MIB)
    world.scribble("full", 1)
    point = world.backup("full").point
    world.dr.control(freeSpace={"Datastore": "ds1", "Bytes": 0})
    try:
        with pytest.raises(UnderstudyError, match="space"):
            world.sync("full")
    finally:
        world.dr.control(freeSpace={"Datastore": "ds1"})
    world.sync("full")
    world.assert_replica_is("full", point)
