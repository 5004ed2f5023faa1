from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import MIB, Simulator, config, site_of, spec
from tests.vsphere.switching import power_off
from workers.errors import BadInput, Conflict, Foreign, NoSpace, Refused, Touched
from workers.models import Controller, Disk, HardwareChange, Nic, VmConfig
from workers.vsphere import building, inventory, power, replica, snapshots
from workers.vsphere.session import Session

SOURCE = "6000c290-0000-0000-0000-000000000000"
SECOND = "6000c291-0000-0000-0000-000000000001"


# --- building -----------------------------------------------------------------------------------------------------


def test_a_replica_is_like_its_source_but_off_and_ours(session: Session, make_vm: Any) -> None:
    source = config(
        4 * MIB,
        8 * MIB,
        networks=("VM Network", "backup"),
        firmware="efi",
        secure_boot=True,
        cores_per_socket=2,
        extra_config={"disk.EnableUUID": "TRUE", "ethernet1.pciSlotNumber": "224"},
    )
    nics = (source.nics[0], source.nics[1].model_copy(update={"connected": False, "kind": "e1000e"}))
    moref = make_vm(
        "like",
        config=source.model_copy(update={"nics": nics}),
        networks={"VM Network": "DR Network", "*": "VM Network"},
        annotation="replica of source",
        notes={"understudy.pair": "p"},
        bios_uuid="564d0000-1111-2222-3333-444455556666",
    )
    state = inventory.vm_state(session, moref)
    built = state.config
    assert state.power == "poweredOff" and not state.change_tracking and state.snapshots == ()
    assert (built.cpus, built.cores_per_socket, built.memory_mib, built.guest_id) == (2, 2, 256, "otherGuest64")
    assert (built.firmware, built.secure_boot, built.annotation) == ("efi", True, "replica of source")
    assert built.hardware_version == "vmx-13"
    assert state.identity.bios_uuid == "564d0000-1111-2222-3333-444455556666"
    assert state.identity.instance_uuid != state.identity.bios_uuid
    assert [(n.kind, n.network, n.mac, n.connected) for n in built.nics] == [
        ("vmxnet3", "DR Network", "00:50:56:01:02:00", True),
        ("e1000e", "VM Network", "00:50:56:01:02:01", False),
    ]
    assert built.extra_config == {"disk.EnableUUID": "TRUE", "ethernet1.pciSlotNumber": "224"}
    assert state.notes["understudy.replica"] == "realm-1/pair-1" and state.notes["understudy.pair"] == "p"
    found = replica.disk_map(state)
    assert {source: disk.capacity for source, disk in found.items()} == {SOURCE: 4 * MIB, SECOND: 8 * MIB}
    assert all(disk.thin and disk.id not in found and disk.parent is None for disk in found.values())


def test_macs_may_be_new_and_disks_thick(session: Session, make_vm: Any) -> None:
    state = inventory.vm_state(session, make_vm("other", mac="generate", provisioning="thick"))
    assert state.config.nics[0].mac not in ("", "00:50:56:01:02:00")
    assert not state.config.disks[0].thin


def test_disks_that_are_left_out(session: Session, make_vm: Any) -> None:
    source = config(4 * MIB, 8 * MIB, 12 * MIB, 16 * MIB)
    disks = (*source.disks[:3], source.disks[3].model_copy(update={"unprotected": "Hard disk 4 is independent"}))
    moref = make_vm("some", config=source.model_copy(update={"disks": disks}), excluded_disks=(SECOND, "Hard disk 3"))
    assert list(replica.disk_map(inventory.vm_state(session, moref))) == [SOURCE]


def test_disks_on_several_controllers_keep_their_places(session: Session, make_vm: Any) -> None:
    controllers = (
        Controller(kind="ide", key=201, bus=1),
        Controller(kind="lsilogic-sas", key=1000, bus=0),
        Controller(kind="pvscsi", key=1001, bus=1),
        Controller(kind="sata", key=15000, bus=0),
        Controller(kind="nvme", key=31000, bus=0),
    )
    places = [(201, 0), (1000, 0), (1000, 8), (1001, 15), (15000, 3), (31000, 2)]
    disks = tuple(
        Disk(
            id=f"disk-{n}", key=n, label=f"d{n}", capacity=(n + 1) * MIB, controller=controller, unit=unit, file="[x] y"
        )
        for n, (controller, unit) in enumerate(places)
    )
    moref = make_vm("places", config=config().model_copy(update={"controllers": controllers, "disks": disks}))
    state = inventory.vm_state(session, moref)
    assert {source: disk.capacity for source, disk in replica.disk_map(state).items()} == {
        f"disk-{n}": (n + 1) * MIB for n in range(6)
    }
    assert json.loads(state.notes[building.DISKS])["disk-2"] == "lsilogic-sas:0:8"


def test_an_older_hardware_version_is_taken_and_said(session: Session) -> None:
    built = replica.create(session, spec("newer", config=config(MIB, hardware_version="vmx-99")))
    (note,) = [note for note in built.notes if "hardware version" in note]
    assert "instead of vmx-99" in note
    assert inventory.vm_state(session, built.moref).config.hardware_version != "vmx-99"
    replica.destroy(session, built.moref)


def test_an_unmapped_network_is_taken_by_name_and_said(session: Session) -> None:
    built = replica.create(session, spec("unmapped"))
    assert built.notes == ("the network VM Network is not mapped: the replica uses the network of the same name",)
    replica.destroy(session, built.moref)


def test_building_twice_gives_one(session: Session, make_vm: Any) -> None:
    first = make_vm("twice/%", 4 * MIB)
    again = replica.create(session, spec("twice/%", 4 * MIB))
    assert again.moref == first and "the VM had been built before" in again.notes
    assert [vm.identity.name for vm in inventory.list_vms(session)] == ["twice/%"]


def test_building_at_the_same_time_gives_one(simulator: Simulator, session: Session) -> None:
    found: list[str] = []

    def build() -> None:
        with Session("dr", site_of(simulator)) as s:
            found.append(replica.create(s, spec("raced")).moref)

    simulator.rule("CreateVM_Task", TaskMs=300, Count=4)
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    replica.destroy(session, found[0])


def test_a_foreign_vm_of_the_name_is_left_alone(session: Session, make_vm: Any) -> None:
    moref = make_vm("taken")
    with pytest.raises(Foreign, match="the replica of another pair called 'taken'"):
        replica.create(session, spec("taken").model_copy(update={"mark": "realm-1/pair-2"}))
    clear = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key=building.MARK, value="")])
    session.wait(session.vm(moref).ReconfigVM_Task(clear))
    with pytest.raises(Foreign, match="something of its own called 'taken'"):
        replica.create(session, spec("taken"))
    with pytest.raises(Foreign, match="not built by Understudy"):
        replica.destroy(session, moref)
    assert inventory.vm_state(session, moref).identity.name == "taken"


def test_no_room(simulator: Simulator, session: Session) -> None:
    simulator.control(FreeSpace={"Datastore": "ds1", "Bytes": MIB})
    with pytest.raises(NoSpace, match="build the VM 'big'"):
        replica.create(session, spec("big", 64 * MIB, provisioning="thick"))
    simulator.control(FreeSpace={"Datastore": "ds1"})
    assert inventory.list_vms(session) == []


def test_notes_are_called_understudy(session: Session) -> None:
    with pytest.raises(BadInput, match="understudy"):
        replica.create(session, spec("notes", notes={"guestinfo.x": "y"}))


def test_a_vm_of_another_host_or_cluster(session: Session, make_vm: Any) -> None:
    hosts = session.read_all({vim.HostSystem: ("name",)})
    name = hosts[0].values["name"]
    assert inventory.vm_state(session, make_vm("pinned", compute=name)).host == name


# --- hardware -----------------------------------------------------------------------------------------------------


def change(kind: Any, disk: str, capacity: int) -> HardwareChange:
    return HardwareChange(kind=kind, disk=disk, label=f"Hard disk {disk[7]}", capacity=capacity)


def grown(point: VmConfig, capacity: int) -> VmConfig:
    return point.model_copy(update={"disks": (point.disks[0].model_copy(update={"capacity": capacity}),)})


def test_disks_are_added_grown_and_removed(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("hardware", 4 * MIB)
    version = inventory.vm_state(session, moref).change_version
    point = config(8 * MIB, 16 * MIB)
    changes = [change("grow disk", SOURCE, 8 * MIB), change("add disk", SECOND, 16 * MIB)]
    version = replica.change_hardware(session, moref, changes, point, version)
    state = inventory.vm_state(session, moref)
    assert state.change_version == version
    found = replica.disk_map(state)
    assert {source: disk.capacity for source, disk in found.items()} == {SOURCE: 8 * MIB, SECOND: 16 * MIB}
    flat = simulator.file(found[SECOND].file.replace(".vmdk", "-flat.vmdk"))
    assert flat.stat().st_size == 16 * MIB

    version = replica.change_hardware(session, moref, [change("remove disk", SECOND, 0)], config(8 * MIB), version)
    assert list(replica.disk_map(inventory.vm_state(session, moref))) == [SOURCE]
    assert not flat.exists()
    assert replica.change_hardware(session, moref, [], config(8 * MIB), version) == version


def test_a_disk_that_is_removed_and_added_again_is_empty(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("replaced", 4 * MIB)
    simulator.control(GuestWrite={"VM": "replaced", "Disk": 0, "Offset": 0, "Hex": "ff" * 512, "Force": True})
    before = inventory.vm_state(session, moref)
    changes = [change("remove disk", SOURCE, 0), change("add disk", SOURCE, 2 * MIB)]
    replica.change_hardware(session, moref, changes, config(2 * MIB), before.change_version)
    after = replica.disk_map(inventory.vm_state(session, moref))[SOURCE]
    assert (after.capacity, after.unit) == (2 * MIB, 0) and after.id != before.config.disks[0].id
    content = simulator.file(after.file.replace(".vmdk", "-flat.vmdk")).read_bytes()
    assert content == bytes(2 * MIB)


def test_a_disk_on_a_controller_that_is_new_too(session: Session, make_vm: Any) -> None:
    moref = make_vm("controller", 4 * MIB)
    point = config(4 * MIB)
    more = Disk(id="new", key=2016, label="Hard disk 2", capacity=MIB, controller=1001, unit=3, file="[x] y")
    point = point.model_copy(
        update={
            "controllers": (*point.controllers, Controller(kind="lsilogic-sas", key=1001, bus=1)),
            "disks": (*point.disks, more),
        }
    )
    version = inventory.vm_state(session, moref).change_version
    added = HardwareChange(kind="add disk", disk="new", label="Hard disk 2", capacity=MIB)
    replica.change_hardware(session, moref, [added], point, version)
    state = inventory.vm_state(session, moref)
    assert replica.disk_map(state)["new"].capacity == MIB
    assert [(c.kind, c.bus) for c in state.config.controllers] == [("pvscsi", 0), ("lsilogic-sas", 1)]


def test_hardware_is_left_alone_in_these_states(session: Session, make_vm: Any) -> None:
    moref = make_vm("refused", 4 * MIB)
    version = inventory.vm_state(session, moref).change_version
    grow = [change("grow disk", SOURCE, 8 * MIB)]
    with pytest.raises(Conflict, match="changed meanwhile"):
        replica.change_hardware(session, moref, grow, config(8 * MIB), "another version")
    with pytest.raises(BadInput, match="cannot shrink"):
        replica.change_hardware(session, moref, [change("grow disk", SOURCE, MIB)], config(MIB), version)
    with pytest.raises(BadInput, match="not in the configuration of the point"):
        replica.change_hardware(session, moref, [change("add disk", SECOND, MIB)], config(MIB), version)
    with pytest.raises(Conflict, match="has no disk for"):
        replica.change_hardware(session, moref, [change("remove disk", SECOND, 0)], config(MIB), version)
    power.power_on(session, moref)
    version = inventory.vm_state(session, moref).change_version
    with pytest.raises(Refused, match="is poweredOn"):
        replica.change_hardware(session, moref, grow, config(8 * MIB), version)
    power_off(session, moref)
    snapshots.create(session, moref, "of an admin", quiesce=False)
    version = inventory.vm_state(session, moref).change_version
    with pytest.raises(Refused, match=r"has snapshots \(of an admin\)"):
        replica.change_hardware(session, moref, grow, config(8 * MIB), version)
    assert inventory.vm_state(session, moref).config.disks[0].capacity == 4 * MIB


def test_a_disk_that_somebody_took_away_is_noticed(session: Session, make_vm: Any) -> None:
    moref = make_vm("stolen", 4 * MIB, 8 * MIB)
    devices = session.read(session.vm(moref), "config.hardware.device")["config.hardware.device"]
    disk = next(d for d in devices if isinstance(d, vim.vm.device.VirtualDisk))
    remove = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    session.wait(session.vm(moref).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[remove])))
    with pytest.raises(Touched, match="has no disk at pvscsi:0:0 any more"):
        replica.disk_map(inventory.vm_state(session, moref))


def test_destroy(simulator: Simulator, session: Session) -> None:
    moref = replica.create(session, spec("gone", 4 * MIB)).moref
    files = simulator.file("[ds1] gone")
    power.power_on(session, moref)
    with pytest.raises(Refused, match="InvalidPowerState"):
        replica.destroy(session, moref)
    power_off(session, moref)
    replica.destroy(session, moref)
    replica.destroy(session, moref)
    assert not files.exists()


def test_a_card_whose_network_nobody_knows(session: Session) -> None:
    source = config(MIB)
    nameless = source.model_copy(update={"nics": (Nic(kind="sriov", key=4000, network="", mac="00:50:56:00:00:01"),)})
    moref = replica.create(session, spec("nameless", config=nameless, networks={"*": "DR Network"})).moref
    (nic,) = inventory.vm_state(session, moref).config.nics
    assert (nic.kind, nic.network) == ("vmxnet3", "DR Network")
    replica.destroy(session, moref)
