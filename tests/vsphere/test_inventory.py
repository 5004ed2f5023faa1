from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import MIB, Simulator, config, site_of
from workers.errors import BadInput, NotFound, Refused, Transient, VcenterUnreachable
from workers.vsphere import inventory, power, replica, snapshots
from workers.vsphere import session as module
from workers.vsphere.building import NewDisk
from workers.vsphere.placement import find_place
from workers.vsphere.session import Session


def test_every_vm_with_its_identity_and_folder(simulator: Simulator, session: Session, make_vm: Any) -> None:
    root = session.read(session.content.rootFolder, "childEntity")["childEntity"][0].vmFolder
    root.CreateFolder("Replicas").CreateFolder("Prod")
    top, deep = make_vm("on-top"), make_vm("in/a folder", folder="Replicas/Prod")
    power.power_on(session, top)
    found = {vm.identity.name: vm for vm in inventory.list_vms(session)}
    assert set(found) == {"on-top", "in/a folder"}
    assert (found["on-top"].folder, found["on-top"].power) == ("DC0", "poweredOn")
    assert (found["in/a folder"].folder, found["in/a folder"].power) == ("DC0/Replicas/Prod", "poweredOff")
    assert all((vm.datastores, vm.cluster, vm.tags) == (("ds1",), "cluster1", None) for vm in found.values())
    one = found["in/a folder"].identity
    assert (one.site, one.vcenter, one.moref) == ("prod", simulator.about["instanceUuid"], deep)
    assert one.instance_uuid != one.bios_uuid != ""
    assert inventory.find_vm(session, "in/a folder").identity == one


def test_a_vm_built_again_under_its_name_is_another_vm(session: Session, make_vm: Any) -> None:
    make_vm("again")
    first = inventory.find_vm(session, "again").identity
    replica.destroy(session, first.moref)
    make_vm("again")
    second = inventory.find_vm(session, "again").identity
    assert first.instance_uuid != second.instance_uuid
    assert inventory.find_uuid(session, first.instance_uuid) is None
    again = inventory.find_uuid(session, second.instance_uuid)
    assert again is not None and again.identity == second


def test_a_name_that_is_nearly_right(session: Session, make_vm: Any) -> None:
    make_vm("database-01")
    with pytest.raises(NotFound, match="did you mean database-01"):
        inventory.find_vm(session, "databse-01")
    with pytest.raises(NotFound, match="it has 1 VMs, none with a similar name"):
        inventory.find_vm(session, "x")


def test_a_name_that_two_vms_have(session: Session, make_vm: Any) -> None:
    root = session.read(session.content.rootFolder, "childEntity")["childEntity"][0].vmFolder
    root.CreateFolder("Twins")
    make_vm("twin"), make_vm("twin", folder="Twins")
    with pytest.raises(Refused, match=r"2 VMs .* 'twin'; say which") as caught:
        inventory.find_vm(session, "twin")
    for vm in inventory.list_vms(session):
        assert f"{vm.folder}: {vm.identity.instance_uuid}" in str(caught.value)


def test_all_pages_or_nothing(
    simulator: Simulator, session: Session, make_vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)  # else one page has all of it
    names = {f"page{n}" for n in range(5)}
    for name in names:
        make_vm(name)
    simulator.control(Clear=True)
    assert {vm.identity.name for vm in inventory.list_vms(session)} == names
    assert simulator.calls()["ContinueRetrievePropertiesEx"] >= 2

    simulator.rule("ContinueRetrievePropertiesEx", Skip=1, DropAfter=True)
    assert {vm.identity.name for vm in inventory.list_vms(session)} == names  # begun again

    simulator.rule("ContinueRetrievePropertiesEx", Drop=True, Count=2)
    with pytest.raises(VcenterUnreachable, match="next page"):
        inventory.list_vms(session)

    simulator.rule("ContinueRetrievePropertiesEx", Fault="HostCommunication", Count=2)
    with pytest.raises(Transient):
        inventory.list_vms(session)


def test_a_session_that_ends_between_two_pages(
    simulator: Simulator, session: Session, make_vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)  # else one page has all of it
    for n in range(3):
        make_vm(f"page{n}")
    where = {"Object": {"Type": "Folder", "Value": "group-d1"}, "PrivilegeId": "System.View"}
    simulator.rule("ContinueRetrievePropertiesEx", Fault="NotAuthenticated", Detail=where)
    assert len(inventory.list_vms(session)) == 3


def test_a_vm_that_cannot_be_identified_is_not_left_out(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator knows every VM it lists; vCenter has lost the configuration of one that is out of reach."""
    read_all = session.read_all
    lost = module.Found(session.vm("vm-4711"), {"name": "lost", "runtime.connectionState": "inaccessible"})
    monkeypatch.setattr(session, "read_all", lambda *args: [*read_all(*args), lost])
    with pytest.raises(Transient, match=r"lost \(inaccessible\)"):
        inventory.list_vms(session)


def test_what_is_out_of_sight_is_not_known_rather_than_empty(
    session: Session, make_vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to see hosts or datastores vCenter leaves them out; the simulator has no rights per object."""
    make_vm("seen")
    read_all = session.read_all

    def without(kind: Any) -> Any:
        return lambda *args: [found for found in read_all(*args) if not isinstance(found.ref, kind)]

    for kind, expected in (
        (vim.HostSystem, (("ds1",), None)),
        (vim.ComputeResource, (("ds1",), None)),
        (vim.Datastore, (None, "cluster1")),
    ):
        monkeypatch.setattr(session, "read_all", without(kind))  # vCenter alone knows how to lose it
        (vm,) = inventory.list_vms(session)
        assert (vm.datastores, vm.cluster) == expected


def test_a_host_without_a_cluster_stands_for_itself(binary: Path, tmp_path: Path) -> None:
    alone = Simulator(binary, tmp_path)  # what is added to an inventory stays in it
    with Session("prod", site_of(alone)) as s:
        root = s.read(s.content.rootFolder, "childEntity")["childEntity"][0].hostFolder
        spec = vim.host.ConnectSpec(hostName="alone.example", force=True)
        s.wait(root.AddStandaloneHost_Task(spec, None, True, None))
        places = {str(found.ref): found for found in s.read_all(inventory._PLACE_PATHS)}
        hosts = {f.values["name"]: f.ref for f in places.values() if isinstance(f.ref, vim.HostSystem)}
        assert inventory._cluster(hosts["alone.example"], places) == "alone.example"
        assert {inventory._cluster(host, places) for host in hosts.values()} == {"alone.example", "cluster1"}
    alone.stop()


def test_the_state_of_a_vm_in_one_read(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("state", 4 * MIB, 8 * MIB, annotation="a note", notes={"understudy.cursor": "{}"})
    replica.set_witness(session, moref, "fence 3")
    first = snapshots.create(session, moref, "one", "first", quiesce=False)
    second = snapshots.create(session, moref, "two/2", quiesce=False)
    simulator.control(Clear=True)
    state = inventory.vm_state(session, moref)
    assert simulator.calls() == {"RetrievePropertiesEx": 1}
    assert state.power == "poweredOff" and not state.change_tracking and not state.consolidation_needed
    assert state.notes["understudy.cursor"] == "{}" and state.witness == "fence 3"
    assert [(n.moref, n.name, n.parent) for n in state.snapshots] == [
        (first.moref, "one", None),
        (second.moref, "two/2", first.moref),
    ]
    assert state.host and state.host_build and state.vmx == "[ds1] state/state.vmx"
    assert state.config.annotation == "a note" and state.config.name == "state"
    assert [d.capacity for d in state.config.disks] == [4 * MIB, 8 * MIB]
    for disk in state.config.disks:
        assert disk.parent is not None and disk.file != disk.parent and disk.content_id and disk.unprotected is None
    assert [(n.network, n.mac) for n in state.config.nics] == [("VM Network", "00:50:56:01:02:00")]


def test_a_snapshot_has_its_own_configuration(session: Session, make_vm: Any) -> None:
    moref = make_vm("frozen", 4 * MIB)
    taken = snapshots.create(session, moref, "s", quiesce=False)
    session.wait(session.vm(moref).ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=512, numCPUs=4)))
    frozen = inventory.vm_config(session, moref, taken.moref)
    live = inventory.vm_config(session, moref)
    assert (frozen.memory_mib, live.memory_mib, frozen.cpus, live.cpus) == (256, 512, 2, 4)
    assert frozen.disks[0].file == live.disks[0].parent and frozen.disks[0].parent is None
    assert frozen.nics[0].network == "VM Network"
    with pytest.raises(NotFound):
        inventory.vm_config(session, moref, "snapshot-4711")


def test_where_the_nvram_is(simulator: Simulator, session: Session, make_vm: Any) -> None:
    path = inventory.nvram_path(session, make_vm("nvram"))
    assert path is not None and simulator.file(path).stat().st_size > 0


def test_free_space(simulator: Simulator, session: Session) -> None:
    simulator.control(FreeSpace={"Datastore": "ds2", "Bytes": 123 * MIB})
    assert inventory.datastore_free(session, "ds2") == 123 * MIB
    simulator.control(FreeSpace={"Datastore": "ds2"})
    with pytest.raises(NotFound, match="it has ds1, ds2"):
        inventory.datastore_free(session, "ds3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[ds 1] a/b.vmdk", ("ds 1", "a/b.vmdk")), ("[ds] a b/c].vmdk", ("ds", "a b/c].vmdk"))],
)
def test_a_path_on_a_datastore(text: str, expected: tuple[str, str]) -> None:
    assert inventory.datastore_path(text) == expected


@pytest.mark.parametrize("text", ["a/b.vmdk", "[ds]", "", "ds] a"])
def test_no_path_on_a_datastore(text: str) -> None:
    with pytest.raises(BadInput, match="should look like"):
        inventory.datastore_path(text)


def test_where_a_replica_cannot_go(session: Session, make_vm: Any) -> None:
    for how, sentence in (
        ({"datastore": "ds9"}, "has no datastore 'ds9'; it has ds1, ds2"),
        ({"compute": "nowhere"}, "no cluster or host 'nowhere'"),
        ({"folder": "Nowhere"}, "no folder 'Nowhere'"),
        ({"pool": "nothing"}, "no resource pool 'nothing'"),
        ({"networks": {"*": "Moon"}}, "does not have the network Moon"),
        ({"new_disks": {config(4 * MIB).disks[0].id: NewDisk(datastore="ds8")}}, "has no datastore 'ds8'"),
    ):
        with pytest.raises(NotFound, match=sentence):
            make_vm("placed", **how)
    assert inventory.list_vms(session) == []


def test_a_right_that_is_missing_is_a_sentence(simulator: Simulator, session: Session) -> None:
    where = {"Object": {"Type": "Folder", "Value": "group-d1"}, "PrivilegeId": "System.View"}
    simulator.rule("CreateContainerView", Fault="NoPermission", Detail=where, Count=2)
    with pytest.raises(BadInput, match=r"list the VMs .* privilegeId System\.View.*; give the site's user"):
        inventory.list_vms(session)
    with pytest.raises(BadInput, match="say where 'x' can be built"):
        find_place(session, name="x", datastore="ds1")
