"""The holes that come with what a VM is: reverts, clones, disks that come, go and grow. Judged byte for byte."""

import pytest
from pyVmomi import vim

from tests.integration.world import MIB, World
from workers import replicate
from workers.errors import Foreign, Touched
from workers.replica import CURSOR
from workers.vsphere import replica as vsphere


def test_hole_5_a_revert_takes_the_cursor_back_but_not_the_fence(world: World) -> None:
    """A snapshot of an earlier state is reverted to: cursor, fence and disk list in extraConfig go back with it."""
    world.make_vm("h5", 16 * MIB)
    world.scribble("h5", 1)
    first = world.backup("h5").point
    world.sync("h5")
    replica = world.pair("h5").replica_name
    fence = world.catalogue.fence(replicate.target_of(world.pair("h5").id))
    old = world.cursor("h5")
    # by hand: revert to our seal, and sync again; the fence of the catalogue is the one that counts
    seal = world.state(replica, "dr").snapshots[0]
    world.target.wait(world.target.object(vim.vm.Snapshot, seal.moref).RevertToSnapshot_Task())
    assert world.cursor("h5").fence == old.fence
    world.assert_replica_is("h5", first)
    world.scribble("h5", 2)
    second = world.backup("h5").point
    report = world.sync("h5")
    assert world.catalogue.run(report.run).fence > fence
    assert world.cursor("h5").fence > fence
    world.assert_replica_is("h5", second)


def test_hole_5_a_seal_that_does_not_belong_to_the_cursor_stops_the_pair(world: World) -> None:
    """Somebody put an old cursor back (a re-registered VM): snapshot name and cursor disagree."""
    world.make_vm("h5b", 16 * MIB)
    world.backup("h5b")
    world.sync("h5b")
    old = world.cursor("h5b")
    world.scribble("h5b", 1)
    world.backup("h5b")
    world.sync("h5b")
    replica = world.pair("h5b").replica_name
    state = world.state(replica, "dr")
    vsphere.write_cursor(
        world.target, state.identity.moref, CURSOR, old.model_dump_json(exclude_defaults=True), state.change_version
    )
    world.scribble("h5b", 2)
    point = world.backup("h5b").point
    with pytest.raises(Touched, match="do not belong to its cursor"):
        world.sync("h5b")
    world.sync("h5b", discard=True)
    world.assert_replica_is("h5b", point)


def test_hole_6_independent_disks_are_named_as_not_protected(world: World) -> None:
    """They stand outside snapshots: what they hold can be neither frozen nor undone."""
    world.make_vm("h6", 8 * MIB)
    change = World._new_disk(world.state("h6").config.controllers[0].key, 5, 4 * MIB, -1)
    change.device.backing.diskMode = "independent_persistent"
    world._reconfigure("h6", change)
    world.scribble("h6", 1)
    report = world.backup("h6")
    found = world.store.point(world.state("h6").identity.instance_uuid, report.point)
    assert len(found.disks) == 1
    assert any("independent" in reason for reason in world.catalogue.run(report.run).reasons)
    world.held[report.point] = {found.disks[0].disk.id: world.held[report.point][found.disks[0].disk.id]}
    world.sync("h6")
    world.assert_replica_is("h6", report.point)
    assert len(world.replica_disks("h6")) == 1


def test_hole_18_a_clone_of_a_replica_is_not_a_replica(world: World) -> None:
    world.make_vm("h18", 8 * MIB)
    world.backup("h18")
    world.sync("h18")
    pair = world.pair("h18")
    vm = world.vm(pair.replica_name, "dr")
    folder = world.target.read(vm, "parent")["parent"]
    world.target.wait(
        vm.CloneVM_Task(folder, "elsewhere", vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False))
    )
    world.target.wait(vm.Destroy_Task())
    clone = world.vm("elsewhere", "dr")
    world.target.wait(clone.Rename_Task(pair.replica_name))
    assert CURSOR in world.state(pair.replica_name, "dr").notes
    world.scribble("h18", 1)
    world.backup("h18")
    with pytest.raises(Foreign, match="clone"):
        world.sync("h18")


def test_hole_18_restore_points_hold_nothing_of_ours(world: World) -> None:
    """A backup of a replica must not carry its cursor."""
    world.make_vm("h18b", 8 * MIB)
    option = vim.option.OptionValue(key=CURSOR, value="{}")
    world.source.wait(world.vm("h18b").ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[option])))
    report = world.backup("h18b")
    text = world.store.point(world.state("h18b").identity.instance_uuid, report.point).model_dump_json()
    assert "understudy.cursor" not in text


def test_hole_21_hardware_in_a_half_applied_run(world: World) -> None:
    """B adds and grows disks; the run dies half way; C has neither the added disk nor the same content."""
    world.make_vm("h21", 8 * MIB)
    world.scribble("h21", 1)
    world.backup("h21")
    world.sync("h21")
    world.add_disk("h21", 8 * MIB)
    world.grow_disk("h21", 0, 12 * MIB)
    world.scribble("h21", 2)
    world.backup("h21")
    dead = world.request_sync("h21")
    world.killed_at(dead, "slice.synced")
    world.give_up(dead.id)
    assert len(world.replica_disks("h21")) == 2
    world.remove_disk("h21", 1)
    world.scribble("h21", 3)
    point = world.backup("h21").point
    world.sync("h21")
    world.assert_replica_is("h21", point)


def test_hole_21_a_disk_added_by_a_dead_run_began_as_zeroes(world: World) -> None:
    """A dead run to a point without the disk removed its copy; the next one added it again and died before its data."""
    world.make_vm("h21b", 8 * MIB, 8 * MIB)
    world.scribble("h21b", 1)
    world.backup("h21b")
    world.sync("h21b")
    world.remove_disk("h21b", 1)
    world.backup("h21b")
    dead = world.request_sync("h21b")
    world.killed_at(dead, "own.after")
    world.give_up(dead.id)
    assert len(world.replica_disks("h21b")) == 1
    world.add_disk("h21b", 8 * MIB)
    world.scribble("h21b", 2)
    world.backup("h21b")
    dead = world.request_sync("h21b")
    world.killed_at(dead, "slice.checked")
    world.give_up(dead.id)
    point = world.backup("h21b").point
    world.sync("h21b")
    world.assert_replica_is("h21b", point)
