"""Disks of odd sizes, and disks that change places. Judged byte for byte."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from tests.integration.world import MIB, World
from workers import backup
from workers.errors import Refused
from workers.settings import VmOverride


def test_sizes_that_are_no_multiple_of_anything(world: World) -> None:
    """Of neither change tracking's grain nor a granule; the last bytes count like the others."""
    first, second = 5 * MIB + 3 * 1024, 64 * 1024 + 1024
    world.make_vm("odd", first, second)
    world.scribble("odd", 1, longest=30_000)
    world.write("odd", first - 1, b"!")
    world.write("odd", second - 700, b"?" * 700, 1)
    point = world.backup("odd").point
    world.assert_point_is_readable("odd", point)
    world.sync("odd")
    world.assert_replica_is("odd", point)
    world.write("odd", first - 1, b"\0")
    world.grow_disk("odd", 1, second + 7 * 1024)
    world.write("odd", second + 7 * 1024 - 1, b"#", 1)
    point = world.backup("odd").point
    world.assert_point_is_readable("odd", point)
    world.sync("odd")
    world.assert_replica_is("odd", point)
    world.write("odd", first - 5000, b"z" * 5000)
    point = world.backup("odd").point
    world.sync("odd")
    world.assert_replica_is("odd", point)


def move(world: World, name: str, number: int, unit: int) -> None:
    """As a person in vSphere: the disk's place on its controller."""
    key = world.disks(name)[number].key
    device = next(d for d in world.vm(name).config.hardware.device if d.key == key)
    device.unitNumber = unit
    world._reconfigure(name, vim.vm.device.VirtualDeviceSpec(operation="edit", device=device))


def test_a_new_disk_where_another_one_was(world: World) -> None:
    """The replica's copies stay where they are; a new disk must not need the place of one of them."""
    world.make_vm("moved", 8 * MIB, 8 * MIB, powered_on=False)
    world.scribble("moved", 1)
    world.backup("moved")
    world.sync("moved")
    move(world, "moved", 0, 5)  # its place is taken by a new disk
    world.add_disk("moved", 4 * MIB)
    assert sorted(d.unit for d in world.disks("moved")) == [0, 1, 5]
    world.scribble("moved", 2)
    point = world.backup("moved").point
    world.sync("moved")
    world.assert_replica_is("moved", point)
    world.scribble("moved", 3)
    point = world.backup("moved").point
    world.sync("moved")
    world.assert_replica_is("moved", point)


def test_a_vm_without_disks_is_a_sentence(world: World) -> None:
    world.make_vm("none")
    with pytest.raises(Refused, match="has no disk") as refused:
        world.backup("none")
    assert not str(refused.value).rstrip().endswith(":")
    assert world.state("none").snapshots == ()


def test_what_a_sync_does_not_carry_over_is_said(world: World) -> None:
    world.make_vm("said", 4 * MIB, powered_on=False)
    world.backup("said")
    world.sync("said")
    world.source.wait(world.vm("said").ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=1024)))
    world.backup("said")
    group = world.settings.groups["all"]
    group = group.model_copy(update={"overrides": {"said": VmOverride(excluded_disks=("Hard disk3",))}})
    world.here = type(world.here)(world.settings.model_copy(update={"groups": {"all": group}}), world.catalogue)
    reasons = world.catalogue.run(world.sync("said").run).reasons
    assert any("1024 MiB of memory, the replica 512" in reason for reason in reasons)
    assert any("'Hard disk3'" in reason for reason in reasons)


def test_a_vm_that_moves_while_it_is_backed_up_is_compared_all_the_same(world: World) -> None:
    """Change tracking is doubted for what was seen at the snapshot, also by a later message that finds nothing odd."""
    world.make_vm("vmotion", 8 * MIB)
    world.backup("vmotion")
    world.write("vmotion", 0, b"1" * 4096)
    run = world.request_backup("vmotion")
    world.killed_at(run, "slices.planned")
    assert world.catalogue.claim(run.id, "another host", 60)
    # as if the parent's host had been another one when this run's first message looked
    memory = world.catalogue.run(run.id).memory
    (disk,) = world.disks("vmotion")
    world.catalogue.remember(run.id, "another host", host_build="older", modes=memory["modes"])
    world.expire_lease(run)
    report = backup.run(world.here, run.id)
    world.keep("vmotion", report)
    found = world.store.point(world.state("vmotion").identity.instance_uuid, str(report.point))
    assert found.host_build == "older"
    assert [d.mode for d in found.disks if d.disk.id == disk.id] == ["compare"]
    world.assert_point_is_readable("vmotion", report.point)
