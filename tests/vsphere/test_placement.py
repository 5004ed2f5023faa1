"""Where a replica's disks and cards go, and VMs and disks that are there already."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import MIB, Simulator, config, spec
from workers.errors import Conflict
from workers.models import HardwareChange
from workers.vsphere import building, inventory, replica
from workers.vsphere.session import Session

SOURCE, SECOND = (disk.id for disk in config(MIB, MIB).disks)


def test_disks_go_where_and_as_they_are_told(simulator: Simulator, session: Session, make_vm: Any) -> None:
    source = config(4 * MIB, 8 * MIB, 12 * MIB, 16 * MIB)
    ids = [disk.id for disk in source.disks]
    eager = source.disks[3].model_copy(update={"thin": False, "eager": True})
    moref = make_vm(
        "placed",
        config=source.model_copy(update={"disks": (*source.disks[:3], eager)}),
        new_disks={
            ids[0]: building.NewDisk(datastore="ds2"),
            ids[1]: building.NewDisk(provisioning="thick"),
            ids[2]: building.NewDisk(provisioning="eager", datastore="ds2"),
            ids[3]: building.NewDisk(provisioning="original"),
        },
    )
    found = replica.disk_map(inventory.vm_state(session, moref))
    assert [found[key].file.partition("]")[0] + "]" for key in ids] == ["[ds2]", "[ds1]", "[ds2]", "[ds1]"]
    shown = [(found[key].thin, found[key].eager) for key in ids]
    assert shown == [(True, False), (False, False), (False, True), (False, True)]
    assert all(simulator.file(found[key].file).exists() for key in ids)


def test_an_added_disk_goes_where_it_is_told(session: Session, make_vm: Any) -> None:
    point = config(4 * MIB, 8 * MIB)
    moref = make_vm("adds", config=config(4 * MIB))
    state = inventory.vm_state(session, moref)
    change = HardwareChange(kind="add disk", disk=SECOND, label="Hard disk 2", capacity=8 * MIB)
    made = {SECOND: building.NewDisk(provisioning="eager", datastore="ds2")}
    replica.change_hardware(session, moref, [change], point, state.change_version, made=made)
    added = replica.disk_map(inventory.vm_state(session, moref))[SECOND]
    assert added.file.startswith("[ds2]") and added.eager and added.capacity == 8 * MIB


def test_a_disk_that_is_there_is_attached_with_its_content(
    simulator: Simulator, session: Session, make_vm: Any
) -> None:
    first = make_vm("giver", 4 * MIB)
    file = inventory.vm_state(session, first).config.disks[0].file
    flat = simulator.file(file.replace(".vmdk", "-flat.vmdk"))
    flat.write_bytes(b"seed" * MIB)
    assert inventory.users_of(session, [file, "[ds1] nobody/nothing.vmdk"]) == {file: "giver"}
    devices = session.read(session.vm(first), "config.hardware.device")["config.hardware.device"]
    disk = next(d for d in devices if isinstance(d, vim.vm.device.VirtualDisk))
    detach = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    session.wait(session.vm(first).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[detach])))
    assert inventory.users_of(session, [file]) == {}
    moref = make_vm("taker", new_disks={SOURCE: building.NewDisk(attach=file)})
    taken = replica.disk_map(inventory.vm_state(session, moref))[SOURCE]
    assert taken.file == file and flat.read_bytes() == b"seed" * MIB


@pytest.mark.parametrize(
    ("networks", "wanted", "words"),
    [
        pytest.param({}, ("DR Network", False), "'?Mars'? is not mapped, and there is none of that name", id="nothing"),
        pytest.param({"Mars": "VM Network"}, ("VM Network", True), "", id="by name"),
        pytest.param({"Venus": "DR Network", "*": "VM Network"}, ("VM Network", True), "", id="the default"),
        pytest.param({"Mars": "", "*": "VM Network"}, ("DR Network", False), "is mapped to nothing", id="to nothing"),
        pytest.param({"*": ""}, ("DR Network", False), "is mapped to nothing", id="all to nothing"),
    ],
)
def test_where_a_card_goes(session: Session, networks: dict[str, str], wanted: tuple[str, bool], words: str) -> None:
    built = replica.create(session, spec("card", config=config(4 * MIB, networks=("Mars",)), networks=networks))
    (nic,) = inventory.vm_state(session, built.moref).config.nics
    replica.destroy(session, built.moref)
    assert (nic.network, nic.connected) == wanted
    assert not words or re.search(words, " ".join(built.notes))
    assert words or built.notes == ()


def test_taking_a_vm_over_is_a_compare_and_set(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("taken-over")
    clear = [vim.option.OptionValue(key=key, value="") for key in (building.MARK, building.DISKS)]
    before = inventory.vm_state(session, moref)
    tracking = vim.vm.ConfigSpec(extraConfig=clear, changeTrackingEnabled=True)
    session.wait(session.vm(moref).ReconfigVM_Task(tracking))
    notes = {building.MARK: "r/p", "understudy.cursor": "first"}
    with pytest.raises(Conflict):
        replica.take_over(session, moref, notes, before.change_version, nonce_in="understudy.cursor")
    state = inventory.vm_state(session, moref)
    assert building.MARK not in state.notes
    simulator.rule("ReconfigVM_Task", dropAfter=True)
    replica.take_over(session, moref, notes, state.change_version, nonce_in="understudy.cursor")
    after = inventory.vm_state(session, moref)
    assert after.notes["understudy.cursor"] == "first" and not after.change_tracking
    with pytest.raises(Conflict):
        replica.take_over(
            session, moref, {**notes, "understudy.cursor": "late"}, state.change_version, nonce_in="understudy.cursor"
        )
