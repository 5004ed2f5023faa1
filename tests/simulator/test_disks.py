"""Disks are files with content, and their descriptors say who has written them."""

from __future__ import annotations

import os
import re

import pytest
from conftest import MIB, Sim, add, disks, edit, new_disk, remove
from pyVmomi import vim, vmodl


def test_a_new_disk_is_a_sparse_file_of_its_capacity_with_a_descriptor(sim: Sim) -> None:
    vm = sim.create("d-new", sizes=(64 * MIB, 4 * MIB))
    first, second = disks(vm)
    assert sim.path(first).stat().st_size == 64 * MIB == first.capacityInBytes == first.capacityInKB * 1024
    assert sim.path(first).stat().st_blocks == 0
    text = sim.descriptor(first).read_text()
    assert re.search(r'^CID=fffffffe$\n^parentCID=ffffffff$\n^createType="vmfs"$', text, re.M)
    assert f'RW {64 * MIB // 512} VMFS "d-new-flat.vmdk"' in text
    uuid = re.search(r'ddb.uuid = "([^"]+)"', text)
    assert uuid and uuid[1].replace(" ", "").replace("-", "") == first.backing.uuid.replace("-", "")
    assert first.backing.uuid.startswith("6000c29") and first.backing.uuid != second.backing.uuid
    assert first.backing.thinProvisioned is True
    assert [d.key for d in (first, second)] == [2000, 2001]


def test_the_content_id_follows_the_descriptor(sim: Sim) -> None:
    vm = sim.create("d-cid")
    disk = disks(vm)[0]
    before = disk.backing.contentId
    assert before.endswith("fffffffe")
    file = sim.descriptor(disk)
    file.write_text(file.read_text().replace("CID=fffffffe", "CID=0badcafe", 1))
    assert disks(vm)[0].backing.contentId == before[:-8] + "0badcafe"
    by_view = sim.read(vm, "config.hardware.device")["config.hardware.device"]
    assert [d.backing.contentId for d in by_view if d.key == 2000] == [before[:-8] + "0badcafe"]


def test_add_extend_detach_attach_destroy(sim: Sim) -> None:
    vm = sim.create("d-life")
    sim.reconfigure(vm, deviceChange=[add(new_disk(2 * MIB, unit=1, controller=1000), file="create")])
    disk = disks(vm)[1]
    sim.write(vm, 1 * MIB, b"kept", disk=1)
    disk.capacityInKB = 8 * MIB // 1024
    disk.capacityInBytes = 8 * MIB
    sim.reconfigure(vm, deviceChange=[edit(disk)])
    disk = disks(vm)[1]
    assert (disk.capacityInBytes, sim.path(disk).stat().st_size) == (8 * MIB, 8 * MIB)
    assert f"RW {8 * MIB // 512} VMFS" in sim.descriptor(disk).read_text()
    name, uuid = disk.backing.fileName, disk.backing.uuid

    sim.reconfigure(vm, deviceChange=[remove(disk)])
    assert len(disks(vm)) == 1 and sim.path(name).exists()
    sim.reconfigure(vm, deviceChange=[add(new_disk(0, unit=1, controller=1000, file=name))])
    disk = disks(vm)[1]
    assert (disk.backing.uuid, disk.capacityInBytes) == (uuid, 8 * MIB)
    assert sim.bytes(vm, 1)[MIB : MIB + 4] == b"kept"

    sim.reconfigure(vm, deviceChange=[remove(disk, destroy=True)])
    assert not sim.path(name).exists() and not sim.descriptor(name).exists()


def test_an_edit_keeps_the_place_of_the_device(sim: Sim) -> None:
    vm = sim.create("d-order", sizes=(MIB, MIB, MIB))
    disk = disks(vm)[0]
    disk.capacityInBytes, disk.capacityInKB = 2 * MIB, 2 * MIB // 1024
    disk.deviceInfo = None  # a client may leave out what it does not change
    sim.reconfigure(vm, deviceChange=[edit(disk)])
    assert [d.key for d in disks(vm)] == [2000, 2001, 2002]


def test_a_disk_is_not_made_smaller(sim: Sim) -> None:
    vm = sim.create("d-small")
    disk = disks(vm)[0]
    disk.capacityInKB = disk.capacityInBytes = 0
    disk.capacityInKB = 1024
    with pytest.raises(vmodl.fault.InvalidArgument, match="cannot be made smaller"):
        sim.reconfigure(vm, deviceChange=[edit(disk)])
    assert sim.path(disks(vm)[0]).stat().st_size == 4 * MIB


def test_a_file_that_exists_is_not_overwritten_by_create(sim: Sim) -> None:
    vm = sim.create("d-exists")
    sim.write(vm, 0, b"precious")
    name = disks(vm)[0].backing.fileName
    with pytest.raises(vim.fault.FileAlreadyExists):
        sim.reconfigure(vm, deviceChange=[add(new_disk(MIB, unit=1, controller=1000, file=name), file="create")])
    assert sim.bytes(vm).startswith(b"precious")
    with pytest.raises(vim.fault.FileNotFound):
        sim.reconfigure(vm, deviceChange=[add(new_disk(MIB, unit=1, controller=1000, file="[fast] no/no.vmdk"))])


def test_a_refused_request_leaves_nothing_behind(sim: Sim) -> None:
    vm = sim.create("d-atomic")
    files = sorted(p.name for p in sim.path(disks(vm)[0]).parent.iterdir())
    version = vm.config.changeVersion
    good = add(new_disk(MIB, unit=1, controller=1000), file="create")
    bad = add(new_disk(MIB, unit=0, controller=1000), file="create")  # the unit is taken
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        sim.reconfigure(vm, annotation="half", deviceChange=[good, bad])
    assert (len(disks(vm)), vm.config.annotation, vm.config.changeVersion) == (1, None, version)
    assert sorted(p.name for p in sim.path(disks(vm)[0]).parent.iterdir()) == files


def test_no_two_devices_share_a_place(sim: Sim) -> None:
    vm = sim.create("d-place", sizes=(MIB, MIB))
    first, second = disks(vm)
    drive = vim.vm.device.VirtualCdrom(
        key=-5, controllerKey=1000, unitNumber=1, backing=vim.vm.device.VirtualCdrom.RemotePassthroughBackingInfo()
    )
    raw = vim.vm.device.VirtualDisk(
        key=-6, controllerKey=1000, unitNumber=0, capacityInKB=1024,
        backing=vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName="", deviceName="naa.600", compatibilityMode="physicalMode", diskMode="independent_persistent"
        ),
    )  # fmt: skip
    moved = vim.vm.device.VirtualDisk(key=first.key, controllerKey=1000, unitNumber=1, backing=first.backing)
    own = new_disk(MIB, unit=7, controller=1000)
    twice = [add(new_disk(MIB, unit=3, controller=1000), file="create") for _ in range(2)]
    late = [add(new_disk(MIB, unit=1, controller=1000), file="create"), remove(second)]
    for number, changes in ((0, [add(drive)]), (0, [add(raw)]), (0, [edit(moved)]), (0, [add(own, file="create")])):
        with pytest.raises(vim.fault.InvalidDeviceSpec) as refused:
            sim.reconfigure(vm, deviceChange=changes)
        assert refused.value.deviceIndex == number
    with pytest.raises(vim.fault.InvalidDeviceSpec) as refused:
        sim.reconfigure(vm, deviceChange=twice)
    assert refused.value.deviceIndex == 1
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        sim.reconfigure(vm, deviceChange=late)
    assert [d.unitNumber for d in disks(vm)] == [0, 1]
    sim.reconfigure(vm, deviceChange=[remove(second), edit(moved), twice[0]])
    assert sorted(d.unitNumber for d in disks(vm)) == [1, 3]


def test_a_clone_has_the_content_and_new_identities(sim: Sim) -> None:
    vm = sim.create("c-src", sizes=(4 * MIB, 2 * MIB), extraConfig=[vim.option.OptionValue(key="k", value="v")])
    sim.write(vm, 12345, b"content")
    sim.write(vm, 54321, b"second", disk=1)
    task = vm.CloneVM_Task(sim.dc.vmFolder, "c-dst", vim.vm.CloneSpec(location=vim.vm.RelocateSpec()))
    clone = sim.wait(task)
    assert (sim.bytes(clone), sim.bytes(clone, 1)) == (sim.bytes(vm), sim.bytes(vm, 1))
    for path in ("config.uuid", "config.instanceUuid"):
        assert sim.read(vm, path) != sim.read(clone, path)
    assert {d.backing.uuid for d in disks(vm)}.isdisjoint(d.backing.uuid for d in disks(clone))
    assert disks(clone)[0].backing.fileName == "[fast] c-dst/c-dst.vmdk"
    assert {o.key: o.value for o in clone.config.extraConfig} == {"k": "v"}
    assert [d.backing.fileName for d in disks(vm)] == ["[fast] c-src/c-src.vmdk", "[fast] c-src/c-src_1.vmdk"]


def test_a_linked_clone_stands_on_the_snapshot(sim: Sim) -> None:
    vm = sim.create("l-src")
    sim.write(vm, 0, b"base")
    snap = sim.snapshot(vm, "s")
    sim.write(vm, 0, b"live")
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(diskMoveType="createNewChildDiskBacking"), snapshot=snap)
    clone = sim.wait(vm.CloneVM_Task(sim.dc.vmFolder, "l-dst", spec))
    assert sim.bytes(clone).startswith(b"base")
    assert disks(clone)[0].backing.parent.fileName == "[fast] l-src/l-src.vmdk"
    assert 'parentFileNameHint="/vmfs/volumes/fast/l-src/l-src.vmdk"' in sim.descriptor(disks(clone)[0]).read_text()
    sim.wait(snap.RemoveSnapshot_Task(False))  # the base must stay as it is while the clone lives
    assert sim.path("[fast] l-src/l-src.vmdk").read_bytes().startswith(b"base")
    assert sim.bytes(vm).startswith(b"live") and sim.bytes(clone).startswith(b"base")
    sim.wait(clone.Destroy_Task())
    sim.wait(vm.ConsolidateVMDisks_Task())
    assert disks(vm)[0].backing.fileName == "[fast] l-src/l-src.vmdk" and sim.bytes(vm).startswith(b"live")


def test_a_disk_without_a_vm(sim: Sim) -> None:
    manager = sim.content.virtualDiskManager
    (sim.folder / "fast" / "loose").mkdir()
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(capacityKb=2048, diskType="thin", adapterType="lsiLogic")
    name = "[fast] loose/loose.vmdk"
    sim.wait(manager.CreateVirtualDisk_Task(name, sim.dc, spec))
    assert sim.path(name).stat().st_size == 2 * MIB
    with pytest.raises(vim.fault.FileAlreadyExists):
        sim.wait(manager.CreateVirtualDisk_Task(name, sim.dc, spec))
    sim.wait(manager.DeleteVirtualDisk_Task(name, sim.dc))
    assert not sim.path(name).exists()


def test_destroy_removes_the_files_but_not_a_detached_disk(sim: Sim) -> None:
    vm = sim.create("d-destroy", sizes=(MIB, MIB))
    sim.snapshot(vm, "s")
    folder = sim.path(disks(vm)[0]).parent
    sim.wait(vm.Destroy_Task())
    assert not folder.exists()

    vm = sim.create("d-keep", sizes=(MIB, MIB))
    kept = disks(vm)[1].backing.fileName
    folder = sim.path(kept).parent
    sim.reconfigure(vm, deviceChange=[remove(disks(vm)[1])])
    sim.wait(vm.Destroy_Task())
    assert sorted(os.listdir(folder)) == ["d-keep_1-flat.vmdk", "d-keep_1.vmdk"]


def test_a_raw_device_mapping_can_be_seen(sim: Sim) -> None:
    vm = sim.create("d-rdm")
    backing = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="", deviceName="naa.600", compatibilityMode="physicalMode", diskMode="independent_persistent"
    )
    raw = vim.vm.device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=3, capacityInKB=1024, backing=backing)
    sim.reconfigure(vm, deviceChange=[add(raw)])
    assert [type(d.backing).__name__.rsplit(".", 1)[1] for d in disks(vm)] == [
        "FlatVer2BackingInfo",
        "RawDiskMappingVer1BackingInfo",
    ]
    sim.reconfigure(vm, annotation="later")  # the stock code would fall over it
    sim.snapshot(vm, "s")
    assert len(disks(vm)) == 2
