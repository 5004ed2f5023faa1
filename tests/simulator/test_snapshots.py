"""Snapshots freeze disks, hardware and configuration; a revert brings all of them back, and nothing else."""

from __future__ import annotations

import pytest
from conftest import MIB, Sim, add, disks, edit, extra, new_disk, remove
from pyVmomi import vim, vmodl


def names(vm: object) -> list[str]:
    """The live disk's file and those it stands on."""
    found, backing = [], disks(vm)[0].backing
    while backing is not None:
        found.append(backing.fileName.rsplit("/", 1)[1])
        backing = backing.parent
    return found


def tree(vm: object) -> object:
    def walk(nodes: list[object]) -> dict[str, object]:
        return {n.name: walk(n.childSnapshotList) for n in nodes}  # type: ignore[attr-defined]

    return walk(vm.snapshot.rootSnapshotList) if vm.snapshot else None  # type: ignore[attr-defined]


def key(name: str, value: str) -> vim.option.OptionValue:
    return vim.option.OptionValue(key=name, value=value)


def test_the_base_is_frozen_and_a_child_takes_the_writes(sim: Sim) -> None:
    vm = sim.create("s-freeze")
    sim.write(vm, 0, b"A" * 100)
    inode = sim.path(disks(vm)[0]).stat().st_ino
    snap = sim.snapshot(vm, "first", description="why")
    assert names(vm) == ["s-freeze-000001.vmdk", "s-freeze.vmdk"]
    frozen = disks(snap)[0]
    assert frozen.backing.fileName == "[fast] s-freeze/s-freeze.vmdk" and sim.path(frozen).stat().st_ino == inode
    sim.write(vm, 0, b"B" * 100)
    assert sim.path(frozen).read_bytes().startswith(b"A" * 100) and sim.bytes(vm).startswith(b"B" * 100)
    text = sim.descriptor(disks(vm)[0]).read_text()
    assert "CID=fffffffe\nparentCID=fffffffe\n" in text and 'parentFileNameHint="s-freeze.vmdk"' in text
    assert "VMFSSPARSE" in text  # a real delta is no raw disk
    node = vm.snapshot.rootSnapshotList[0]
    assert (node.name, node.description, node.snapshot, vm.snapshot.currentSnapshot) == ("first", "why", snap, snap)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
def test_removing_any_snapshot_of_a_chain_keeps_every_other_content(sim: Sim, order: tuple[int, ...]) -> None:
    vm = sim.create(f"s-chain-{''.join(map(str, order))}")
    inode = sim.path(disks(vm)[0]).stat().st_ino
    snaps, contents = [], []
    for n in range(3):
        sim.write(vm, n * 70_000, bytes([65 + n]) * 1000)
        sim.write(vm, 3 * MIB, bytes([n]) * 4096)  # the first write there is zeroes over a hole
        contents.append(sim.bytes(vm))
        snaps.append(sim.snapshot(vm, str(n)))
    sim.write(vm, 0, b"live")
    live = sim.bytes(vm)
    left = [0, 1, 2]
    for n in order:
        sim.wait(snaps[n].RemoveSnapshot_Task(False))
        left.remove(n)
        assert sim.bytes(vm) == live
        for k in left:
            assert sim.path(disks(snaps[k])[0]).read_bytes() == contents[k]
    assert names(vm) == [f"{vm.name}.vmdk"] and vm.snapshot is None
    assert sim.path(disks(vm)[0]).stat().st_ino == inode
    assert sorted(p.suffix for p in sim.path(disks(vm)[0]).parent.iterdir()) == [
        ".log", ".nvram", ".vmdk", ".vmdk", ".vmx", ".vmxf"
    ]  # fmt: skip


def test_zeroes_written_over_data_survive_consolidation(sim: Sim) -> None:
    vm = sim.create("s-zero")
    sim.write(vm, 0, b"X" * MIB)
    snap = sim.snapshot(vm, "s")
    live = sim.path(disks(vm)[0])
    with live.open("r+b") as f:  # a hole in the child, as UNMAP leaves it
        f.truncate(0)
        f.truncate(4 * MIB)
    sim.wait(snap.RemoveSnapshot_Task(False))
    assert sim.bytes(vm) == bytes(4 * MIB)


def test_a_revert_and_a_snapshot_make_a_branch(sim: Sim) -> None:
    vm = sim.create("s-tree")
    sim.write(vm, 0, b"1")
    one = sim.snapshot(vm, "one")
    sim.write(vm, 0, b"2")
    two = sim.snapshot(vm, "two")
    sim.write(vm, 0, b"lost")
    sim.wait(one.RevertToSnapshot_Task())
    assert sim.bytes(vm)[:1] == b"1" and vm.snapshot.currentSnapshot == one
    sim.write(vm, 0, b"3")
    three = sim.snapshot(vm, "three")
    assert tree(vm) == {"one": {"two": {}, "three": {}}}
    sim.wait(two.RevertToSnapshot_Task())
    assert sim.bytes(vm)[:1] == b"2"
    sim.wait(one.RemoveSnapshot_Task(False))  # its file has two children: it stays, and nobody loses anything
    assert tree(vm) == {"two": {}, "three": {}}
    assert [sim.path(disks(s)[0]).read_bytes()[:1] for s in (two, three)] == [b"2", b"3"]
    sim.wait(three.RemoveSnapshot_Task(False))
    sim.wait(two.RemoveSnapshot_Task(False))
    assert sim.bytes(vm)[:1] == b"2" and names(vm) == ["s-tree.vmdk"]


def test_remove_children_and_remove_all(sim: Sim) -> None:
    vm = sim.create("s-children")
    snaps = [sim.snapshot(vm, n) for n in "abc"]
    sim.write(vm, 5, b"live")
    sim.wait(snaps[1].RemoveSnapshot_Task(True))
    assert tree(vm) == {"a": {}} and vm.snapshot.currentSnapshot == snaps[0]
    sim.snapshot(vm, "d")
    sim.wait(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None and vm.rootSnapshot == [] and sim.bytes(vm)[5:9] == b"live"
    assert names(vm) == ["s-children.vmdk"]


def test_a_revert_restores_hardware_and_configuration_but_not_custom_attributes(sim: Sim) -> None:
    vm = sim.create("s-revert", annotation="at S", extraConfig=[key("cursor", "A")])
    field = sim.content.customFieldsManager.AddCustomFieldDef("witness", vim.VirtualMachine)
    sim.content.customFieldsManager.SetField(vm, field.key, "first")
    sim.write(vm, 0, b"at S")
    snap = sim.snapshot(vm, "S")
    version = vm.config.changeVersion
    sim.write(vm, 0, b"later")
    sim.reconfigure(
        vm, annotation="later", numCPUs=4, memoryMB=128, extraConfig=[key("cursor", "B"), key("new", "x")],
        deviceChange=[add(new_disk(MIB, unit=1, controller=1000), file="create")],
    )  # fmt: skip
    added = disks(vm)[1].backing.fileName
    sim.content.customFieldsManager.SetField(vm, field.key, "second")
    assert (snap.config.annotation, snap.config.hardware.numCPU, len(disks(snap))) == ("at S", 1, 1)
    assert extra(snap) == {"cursor": "A"}  # a deep copy: the live VM's changes do not show

    sim.wait(snap.RevertToSnapshot_Task())
    assert (vm.config.annotation, vm.config.hardware.numCPU, vm.config.hardware.memoryMB) == ("at S", 1, 64)
    assert extra(vm) == {"cursor": "A"} and len(disks(vm)) == 1 and sim.bytes(vm)[:5] == b"at S\0"
    assert sim.path(added).exists()  # detached, not deleted
    assert [(v.key, v.value) for v in vm.customValue] == [(field.key, "second")]
    assert vm.config.changeVersion != version and vm.config.changeVersion > version
    assert names(vm)[-1] == "s-revert.vmdk" and sim.path("[fast] s-revert/s-revert.vmdk").read_bytes()[:4] == b"at S"


def test_revert_to_current_and_without_one(sim: Sim) -> None:
    vm = sim.create("s-current")
    with pytest.raises(vim.fault.NotFound):
        sim.wait(vm.RevertToCurrentSnapshot_Task())
    sim.snapshot(vm, "s")
    sim.write(vm, 0, b"gone")
    sim.wait(vm.RevertToCurrentSnapshot_Task())
    assert sim.bytes(vm)[:4] == bytes(4)


def test_a_removed_disk_comes_back_by_a_revert(sim: Sim) -> None:
    vm = sim.create("s-back", sizes=(MIB, MIB))
    sim.write(vm, 7, b"seven", disk=1)
    snap = sim.snapshot(vm, "s")
    sim.reconfigure(vm, deviceChange=[remove(disks(vm)[1], destroy=True)])
    assert len(disks(vm)) == 1
    sim.wait(snap.RevertToSnapshot_Task())
    assert len(disks(vm)) == 2 and sim.bytes(vm, 1)[7:12] == b"seven"


@pytest.mark.parametrize("mode", ["independent_persistent", "independent_nonpersistent"])
def test_independent_disks_stand_outside(sim: Sim, mode: str) -> None:
    vm = sim.create(f"s-{mode[12:]}")
    sim.reconfigure(vm, deviceChange=[add(new_disk(MIB, unit=1, controller=1000, mode=mode), file="create")])
    snap = sim.snapshot(vm, "s")
    assert disks(vm)[1].backing.parent is None and disks(vm)[0].backing.parent is not None
    assert disks(vm)[1].backing.fileName == disks(snap)[1].backing.fileName
    sim.write(vm, 0, b"B", disk=1)
    sim.write(vm, 0, b"B")
    sim.wait(snap.RevertToSnapshot_Task())
    assert (sim.bytes(vm)[:1], sim.bytes(vm, 1)[:1]) == (b"\0", b"B")


def test_a_disk_under_a_snapshot_is_attached_elsewhere_to_be_read_alone(sim: Sim) -> None:
    vm, worker = sim.create("s-frozen"), sim.create("s-worker")
    file = disks(vm)[0].backing.fileName
    sim.snapshot(vm, "one")
    writing = new_disk(0, unit=1, controller=1000, file=file, mode="independent_persistent")
    with pytest.raises(vim.fault.FileFault, match="read-only"):
        sim.reconfigure(worker, deviceChange=[add(writing)])
    reading = new_disk(0, unit=1, controller=1000, file=file, mode="independent_nonpersistent")
    sim.reconfigure(worker, deviceChange=[add(reading)])
    assert disks(worker)[1].backing.fileName == file
    sim.reconfigure(worker, deviceChange=[remove(disks(worker)[1])])


def test_no_extension_under_a_snapshot(sim: Sim) -> None:
    vm = sim.create("s-extend")
    snap = sim.snapshot(vm, "s")
    disk = disks(vm)[0]
    disk.capacityInKB, disk.capacityInBytes = 8192, 8 * MIB
    with pytest.raises(vim.fault.InvalidDeviceOperation, match="has snapshots"):
        sim.reconfigure(vm, deviceChange=[edit(disk)])
    sim.wait(snap.RemoveSnapshot_Task(False))
    disk = disks(vm)[0]
    disk.capacityInKB, disk.capacityInBytes = 8192, 8 * MIB
    sim.reconfigure(vm, deviceChange=[edit(disk)])
    assert sim.path(disks(vm)[0]).stat().st_size == 8 * MIB


def test_refused_snapshots(sim: Sim) -> None:
    vm = sim.create("s-refused", sizes=(MIB,))
    with pytest.raises(vim.fault.InvalidName):
        sim.snapshot(vm, "")
    vm.MarkAsTemplate()
    with pytest.raises(vmodl.fault.NotSupported, match="templates have no snapshots"):
        sim.snapshot(vm, "s")
    vm.MarkAsVirtualMachine(sim.pool)
    for n in range(32):
        sim.snapshot(vm, str(n))
    with pytest.raises(vim.fault.TooManySnapshotLevels):
        sim.snapshot(vm, "one too many")
    sim.wait(vm.RemoveAllSnapshots_Task())
    assert names(vm) == ["s-refused.vmdk"]


def test_memory_snapshots_bring_the_power_back(sim: Sim) -> None:
    vm = sim.create("s-memory")
    sim.wait(vm.PowerOnVM_Task())
    hot, cold = sim.snapshot(vm, "hot", memory=True), sim.snapshot(vm, "cold")
    states = {
        n.name: n.state for n in (vm.snapshot.rootSnapshotList[0], *vm.snapshot.rootSnapshotList[0].childSnapshotList)
    }
    assert states == {"hot": "poweredOn", "cold": "poweredOff"}
    sim.wait(cold.RevertToSnapshot_Task())
    assert vm.runtime.powerState == "poweredOff"
    sim.wait(hot.RevertToSnapshot_Task())
    assert vm.runtime.powerState == "poweredOn"
    sim.wait(hot.RevertToSnapshot_Task(suppressPowerOn=True))
    assert vm.runtime.powerState == "poweredOff"
    sim.reconfigure(
        vm, deviceChange=[add(new_disk(MIB, unit=1, controller=1000, mode="independent_persistent"), file="create")]
    )
    sim.wait(vm.PowerOnVM_Task())
    with pytest.raises(vim.fault.MemorySnapshotOnIndependentDisk):
        sim.snapshot(vm, "no", memory=True)
    sim.wait(vm.PowerOffVM_Task())


def test_a_removal_may_leave_the_delta_behind(sim: Sim) -> None:
    vm = sim.create("s-left")
    snap = sim.snapshot(vm, "s")
    sim.write(vm, 0, b"live")
    sim.control(leaveUnconsolidated={"vm": "s-left", "count": 1})
    sim.wait(snap.RemoveSnapshot_Task(False))
    assert vm.snapshot is None and sim.read(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is True
    assert names(vm) == ["s-left-000001.vmdk", "s-left.vmdk"]
    sim.wait(vm.ConsolidateVMDisks_Task())
    assert sim.read(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is False
    assert names(vm) == ["s-left.vmdk"] and sim.bytes(vm)[:4] == b"live"


def test_a_parent_written_under_its_child_stops_the_power_on(sim: Sim) -> None:
    vm = sim.create("s-cid")
    snap = sim.snapshot(vm, "s")
    base = sim.descriptor(disks(snap)[0])
    base.write_text(base.read_text().replace("CID=fffffffe", "CID=12345678", 1))
    with pytest.raises(vim.fault.GenericVmConfigFault, match="modified since the child was created"):
        sim.wait(vm.PowerOnVM_Task())
    assert vm.runtime.powerState == "poweredOff"


def test_the_files_of_a_vm_are_listed(sim: Sim) -> None:
    vm = sim.create("s-layout")
    snap = sim.snapshot(vm, "s")
    sim.write(vm, 0, b"x" * 70_000)
    layout = vm.layoutEx
    by_key = {f.key: f for f in layout.file}
    chain = [by_key[unit.fileKey[1]].name for unit in layout.disk[0].chain]
    assert chain == ["[fast] s-layout/s-layout-flat.vmdk", "[fast] s-layout/s-layout-000001-flat.vmdk"]
    assert [s.key for s in layout.snapshot] == [snap]
    delta = sim.read(vm, "layoutEx.file")["layoutEx.file"]
    assert {f.name: f.size for f in delta}["[fast] s-layout/s-layout-000001-flat.vmdk"] >= 70_000
    assert {"config", "nvram", "log", "snapshotData", "diskDescriptor", "diskExtent"} <= {f.type for f in layout.file}
