"""What vSphere refuses is refused here: versions, power states, names, space, locks, passwords."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import MIB, Sim, add, disks, extra, new_disk
from pyVmomi import vim, vmodl


def key(name: str, value: str) -> vim.option.OptionValue:
    return vim.option.OptionValue(key=name, value=value)


def power(vm: Any) -> str:
    return str(vm.runtime.powerState)


def test_a_reconfigure_with_an_old_version_is_refused(sim: Sim) -> None:
    vm = sim.create("r-version")
    old = vm.config.changeVersion
    sim.reconfigure(vm, annotation="1", changeVersion=old)
    assert vm.config.changeVersion != old
    with pytest.raises(vim.fault.ConcurrentAccess):
        sim.reconfigure(vm, annotation="2", changeVersion=old)
    assert vm.config.annotation == "1"


def test_of_two_requests_with_the_same_version_one_wins(sim: Sim) -> None:
    vm = sim.create("r-race")
    moref = vm._moId
    sessions = [sim.login() for _ in range(4)]
    for _ in range(5):
        version, outcomes, gate = vm.config.changeVersion, [], threading.Barrier(4)

        def one(who: str, version: str = version, outcomes: list[str] = outcomes, gate: Any = gate) -> None:
            mine = vim.VirtualMachine(moref, sessions[int(who)]._stub)
            gate.wait()
            task = mine.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=version, extraConfig=[key("who", who)]))
            try:
                sim.wait(vim.Task(task._moId, sim.si._stub))
                outcomes.append(who)
            except vim.fault.ConcurrentAccess:
                pass

        threads = [threading.Thread(target=one, args=(str(n),)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert outcomes == [extra(vm)["who"]]
    for s in sessions:
        s.content.sessionManager.Logout()


def test_every_change_gives_a_new_version(sim: Sim) -> None:
    vm = sim.create("r-bump")
    seen = [vm.config.changeVersion]

    def after(task: Any) -> Any:
        result = sim.wait(task)
        seen.append(vm.config.changeVersion)
        return result

    after(vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="x")))
    snap = after(vm.CreateSnapshot_Task("s", "", False, False))
    after(snap.RevertToSnapshot_Task())
    after(vm.PowerOnVM_Task())
    after(vm.PowerOffVM_Task())
    after(snap.RemoveSnapshot_Task(False))
    assert len(set(seen)) == 7 and seen == sorted(seen)


def test_extra_config_is_replaced_and_deleted_by_the_empty_value(sim: Sim) -> None:
    vm = sim.create("r-extra", extraConfig=[key("a", "1"), key("b", "2")])
    sim.reconfigure(vm, extraConfig=[key("a", "3"), key("c", "4")])
    assert extra(vm) == {"a": "3", "b": "2", "c": "4"} and len(vm.config.extraConfig) == 3
    sim.reconfigure(vm, extraConfig=[key("b", ""), key("never", "")])
    assert extra(vm) == {"a": "3", "c": "4"}


def test_power_states(sim: Sim) -> None:
    vm = sim.create("r-power")
    with pytest.raises(vim.fault.InvalidPowerState):
        sim.wait(vm.PowerOffVM_Task())
    sim.wait(vm.PowerOnVM_Task())
    assert sim.read(vm, "runtime.bootTime")["runtime.bootTime"] is not None
    for refused in (vm.PowerOnVM_Task, vm.Destroy_Task):
        with pytest.raises(vim.fault.InvalidPowerState):
            sim.wait(refused())
    for refused in (vm.UnregisterVM, vm.MarkAsTemplate):
        with pytest.raises(vim.fault.InvalidPowerState):
            refused()
    sim.wait(vm.PowerOffVM_Task())
    assert sim.read(vm, "runtime.bootTime") == {}
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ShutdownGuest()
    vm.MarkAsTemplate()
    with pytest.raises(vim.fault.InvalidState):
        sim.wait(vm.PowerOnVM_Task())
    with pytest.raises(vmodl.fault.NotSupported):
        sim.reconfigure(vm, memoryMB=128)
    sim.reconfigure(vm, annotation="a template may have a note")


def test_names_are_unique_in_a_folder(sim: Sim) -> None:
    vm = sim.create("r-name")
    with pytest.raises(vim.fault.DuplicateName) as err:
        sim.create("r-name")
    assert err.value.object == vm
    other = sim.create("r-other")
    with pytest.raises(vim.fault.DuplicateName):
        sim.wait(other.Rename_Task("r-name"))
    with pytest.raises(vim.fault.DuplicateName):
        sim.wait(vm.CloneVM_Task(sim.dc.vmFolder, "r-other", vim.vm.CloneSpec(location=vim.vm.RelocateSpec())))
    sim.wait(other.Rename_Task("r-renamed"))
    assert (other.name, other.config.name, other.summary.config.name) == ("r-renamed",) * 3


def test_a_vm_made_again_is_another_instance(sim: Sim) -> None:
    first = sim.create("r-again")
    ids = (first.config.instanceUuid, first.config.uuid)
    sim.wait(first.Destroy_Task())
    second = sim.create("r-again")
    assert {second.config.instanceUuid, second.config.uuid}.isdisjoint(ids)
    given = sim.create("r-given", uuid="42000000-0000-4000-8000-000000000001")
    assert given.config.uuid == "42000000-0000-4000-8000-000000000001"


def test_a_wrong_password_is_refused(sim: Sim) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        sim.login(password="wrong")
    with pytest.raises(vim.fault.InvalidLogin):
        sim.login(user="someone")


def test_a_full_datastore_refuses_thick_disks(sim: Sim) -> None:
    store = sim.all(vim.Datastore)["slow"]
    sim.control(freeSpace={"datastore": "slow", "bytes": 5 * MIB})
    assert store.summary.freeSpace == 5 * MIB
    thick = [
        add(vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")),
        add(new_disk(3 * MIB, unit=0, thin=False), file="create"),
        add(new_disk(3 * MIB, unit=1, thin=False), file="create"),
    ]
    files = vim.vm.FileInfo(vmPathName="[slow]")
    with pytest.raises(vim.fault.NoDiskSpace) as err:
        sim.create("r-full", files=files, deviceChange=thick)
    assert err.value.datastore == "slow" and "r-full" not in sim.all(vim.VirtualMachine)
    assert not (sim.folder / "slow" / "r-full").exists() and store.summary.freeSpace == 5 * MIB
    vm = sim.create("r-full", files=files, deviceChange=thick[:2])
    assert store.summary.freeSpace == 2 * MIB
    with pytest.raises(vim.fault.NoDiskSpace):
        sim.reconfigure(vm, deviceChange=[add(new_disk(3 * MIB, unit=1, controller=1000, thin=False), file="create")])
    sim.reconfigure(vm, deviceChange=[add(new_disk(30 * MIB, unit=1, controller=1000), file="create")])  # thin
    sim.wait(vm.Destroy_Task())
    assert store.summary.freeSpace == 5 * MIB
    sim.control(freeSpace={"datastore": "slow"})
    assert store.summary.freeSpace > 5 * MIB


def test_a_disk_of_a_running_vm_is_locked(sim: Sim) -> None:
    owner, other = sim.create("r-owner"), sim.create("r-thief")
    name = disks(owner)[0].backing.fileName
    sim.reconfigure(other, deviceChange=[add(new_disk(0, unit=1, controller=1000, file=name))])
    sim.wait(owner.PowerOnVM_Task())
    with pytest.raises(vim.fault.FileLocked):
        sim.wait(other.PowerOnVM_Task())
    sim.wait(owner.PowerOffVM_Task())
    sim.wait(other.PowerOnVM_Task())
    sim.wait(other.PowerOffVM_Task())


def test_a_worker_may_attach_a_frozen_disk_and_the_base_waits_for_it(sim: Sim) -> None:
    source, worker = sim.create("r-source"), sim.create("r-worker")
    sim.wait(worker.PowerOnVM_Task())
    snap = sim.snapshot(source, "s")
    name = disks(snap)[0].backing.fileName
    sim.reconfigure(
        worker, deviceChange=[add(new_disk(0, unit=1, controller=1000, file=name, mode="independent_nonpersistent"))]
    )
    sim.wait(snap.RemoveSnapshot_Task(False))
    assert disks(source)[0].backing.parent is not None  # not folded: somebody else has the base open
    sim.reconfigure(worker, deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="remove", device=disks(worker)[1])])
    sim.wait(source.ConsolidateVMDisks_Task())
    assert disks(source)[0].backing.parent is None
    sim.wait(worker.PowerOffVM_Task())


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        pytest.param(
            {"files": vim.vm.FileInfo(vmPathName="[nowhere]")}, vim.fault.InvalidDatastorePath, id="datastore"
        ),
        pytest.param({"guestId": "amiga"}, vmodl.fault.InvalidArgument, id="guest"),
        pytest.param(
            {"deviceChange": [add(vim.vm.device.VirtualVmxnet3(
                key=-1, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="nowhere")))]},
            vim.fault.InvalidDeviceSpec, id="network",
        ),
    ],
)  # fmt: skip
def test_a_bad_spec_makes_no_vm(sim: Sim, spec: dict[str, Any], fault: Any) -> None:
    with pytest.raises(fault):
        sim.create("r-bad", **spec)
    assert "r-bad" not in sim.all(vim.VirtualMachine) and not (sim.folder / "fast" / "r-bad").exists()
    sim.wait(sim.create("r-bad").Destroy_Task())


def test_a_vm_needs_a_name(sim: Sim) -> None:
    with pytest.raises(vim.fault.InvalidName):
        sim.create("")


def test_what_is_gone_is_not_found(sim: Sim) -> None:
    vm = sim.create("r-gone")
    snap = sim.snapshot(vm, "s")
    sim.wait(snap.RemoveSnapshot_Task(False))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snap.RemoveSnapshot_Task(False)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.QueryChangedDiskAreas(snap, 2000, 0, "*")
    sim.wait(vm.Destroy_Task())
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.PowerOnVM_Task()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        sim.read(vm, "name")


def test_a_running_vm_gets_processors_and_memory_only_with_hot_add(sim: Sim) -> None:
    vm = sim.create("r-hot", cpuHotAddEnabled=True)
    sim.wait(vm.PowerOnVM_Task())
    with pytest.raises(vim.fault.InvalidPowerState):
        sim.reconfigure(vm, memoryMB=256)
    sim.reconfigure(vm, numCPUs=2, memoryMB=64)
    assert (vm.config.hardware.numCPU, vm.config.hardware.memoryMB) == (2, 64)
    sim.wait(vm.PowerOffVM_Task())
    sim.reconfigure(vm, memoryMB=256)


def test_an_instance_uuid_is_given_once(sim: Sim) -> None:
    uuid = "52000000-0000-4000-8000-00000000000a"
    first, second = sim.create("r-id1", instanceUuid=uuid), sim.create("r-id2", instanceUuid=uuid)
    assert first.config.instanceUuid == uuid != second.config.instanceUuid


def test_what_would_lose_bytes_is_refused(sim: Sim) -> None:
    vm = sim.create("r-bytes")
    manager = sim.content.virtualDiskManager
    name = disks(vm)[0].backing.fileName
    with pytest.raises(vmodl.fault.NotSupported):
        sim.wait(manager.CopyVirtualDisk_Task(name, sim.dc, "[fast] r-bytes/copy.vmdk", sim.dc))
    with pytest.raises(vim.fault.FileLocked):
        sim.wait(manager.DeleteVirtualDisk_Task(name, sim.dc))
    folder = sim.dc.vmFolder.CreateFolder("r-folder")
    inside = sim.wait(folder.CreateFolder("r-inner").Destroy_Task())
    assert inside is None and folder.childEntity == []
    sim.wait(folder.MoveIntoFolder_Task([vm]))
    with pytest.raises(vmodl.fault.NotSupported, match="not empty"):
        sim.wait(folder.Destroy_Task())
    assert sim.all(vim.VirtualMachine)["r-bytes"] == vm


def test_moving_files_is_not_modelled_and_refused(sim: Sim) -> None:
    vm = sim.create("r-move")
    with pytest.raises(vmodl.fault.NotSupported):
        sim.wait(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=sim.all(vim.Datastore)["slow"])))
    host = next(h for h in sim.all(vim.HostSystem).values() if h != vm.runtime.host)
    sim.wait(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=host)))
    assert sim.read(vm, "runtime.host")["runtime.host"] == host
