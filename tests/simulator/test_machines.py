"""What a running VM, its guest and its files show; what survives an unregistration and a restart."""

from __future__ import annotations

import base64
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GRAIN, MIB, REPO, Sim, add, change_id, disks, edit, extra
from pyVmomi import vim, vmodl


def key(name: str, value: str) -> vim.option.OptionValue:
    return vim.option.OptionValue(key=name, value=value)


def locks(sim: Sim, vm: Any) -> list[Path]:
    return sorted(sim.path(disks(vm)[0]).parent.glob(".lck-*"))


def test_the_inventory_starts_without_vms(start: Callable[..., Sim]) -> None:
    sim = start("-hosts", "3", "-clusters", "2", "-networks", "VM Network,DR Network,bubble", "-dc", "Berlin")
    assert sim.all(vim.VirtualMachine) == {}
    assert sorted(sim.all(vim.Network)) == ["DR Network", "VM Network", "bubble"]
    assert sorted(sim.all(vim.Datastore)) == ["fast", "slow"]
    assert (len(sim.all(vim.HostSystem)), sorted(sim.all(vim.ClusterComputeResource))) == (6, ["cluster1", "cluster2"])
    assert list(sim.all(vim.Datacenter)) == ["Berlin"]
    store = sim.all(vim.Datastore)["fast"]
    assert (store.summary.type, store.info.url) == ("NFS", str(sim.folder / "fast"))
    host = next(iter(sim.all(vim.HostSystem).values()))
    assert len(host.network) == 3 and len(host.datastore) == 2


def test_powering_on_writes_the_disks(sim: Sim) -> None:
    vm = sim.create("m-power")
    before = disks(vm)[0].backing.contentId
    sim.wait(vm.PowerOnVM_Task())
    booted = disks(vm)[0].backing.contentId
    assert (
        booted != before and vm.guestHeartbeatStatus == "green" and vm.guest.toolsRunningStatus == "guestToolsRunning"
    )
    sim.wait(vm.PowerOffVM_Task())
    assert disks(vm)[0].backing.contentId == booted and vm.guestHeartbeatStatus == "gray"
    log = (sim.path(disks(vm)[0]).parent / "vmware.log").read_text()
    assert "poweredOn" in log and "poweredOff" in log


def test_a_running_vm_has_lock_files_beside_its_live_disks(sim: Sim) -> None:
    vm = sim.create("m-lock", sizes=(MIB, MIB))
    assert locks(sim, vm) == []
    sim.wait(vm.PowerOnVM_Task())
    inode = sim.path(disks(vm)[0]).stat().st_ino
    named = [int.from_bytes(bytes.fromhex(p.name.removeprefix(".lck-")), "little") for p in locks(sim, vm)]
    assert inode in named and len(named) == 2
    snap = sim.snapshot(vm, "s")
    frozen = sim.path(disks(snap)[0]).stat().st_ino
    named = [int.from_bytes(bytes.fromhex(p.name.removeprefix(".lck-")), "little") for p in locks(sim, vm)]
    assert frozen not in named and sim.path(disks(vm)[0]).stat().st_ino in named
    sim.wait(vm.PowerOffVM_Task())
    assert locks(sim, vm) == []


def test_the_guest_writes_only_while_it_runs(sim: Sim) -> None:
    vm = sim.create("m-write", sizes=(MIB, 2 * MIB))
    with pytest.raises(ValueError, match="not powered on"):
        sim.control(guestWrite={"vm": "m-write", "disk": 0, "offset": 0, "hex": "41"})
    sim.wait(vm.PowerOnVM_Task())
    before = disks(vm)[1].backing.contentId
    sim.control(guestWrite={"vm": "m-write", "disk": 1, "offset": GRAIN, "hex": "4142", "repeat": 3})
    assert sim.bytes(vm, 1)[GRAIN : GRAIN + 6] == b"ABABAB" and disks(vm)[1].backing.contentId != before
    sim.wait(vm.PowerOffVM_Task())
    before = disks(vm)[0].backing.contentId
    sim.control(guestWrite={"vm": "m-write", "disk": 0, "offset": 0, "hex": "43", "force": True, "keepCid": True})
    assert disks(vm)[0].backing.contentId == before
    for bad, why in (
        ({"vm": "nobody", "disk": 0, "offset": 0, "hex": "41"}, "no VM"),
        ({"vm": "m-write", "disk": 9, "offset": 0, "hex": "41"}, "no disk 9"),
        ({"vm": "m-write", "disk": 0, "offset": MIB, "hex": "41", "force": True}, "do not fit"),
    ):
        with pytest.raises(ValueError, match=why):
            sim.control(guestWrite=bad)


def test_the_guest_can_be_told_what_to_say(sim: Sim) -> None:
    vm = sim.create("m-guest")
    sim.control(guest={"vm": "m-guest", "ip": "10.9.8.7", "host": "web1", "heartbeat": "yellow"})
    assert vm.guest.ipAddress is None
    sim.wait(vm.PowerOnVM_Task())
    assert (vm.guest.ipAddress, vm.guest.hostName, vm.guestHeartbeatStatus) == ("10.9.8.7", "web1", "yellow")
    sim.control(guest={"vm": "m-guest", "stubborn": True})
    vm.ShutdownGuest()
    assert vm.runtime.powerState == "poweredOn"
    sim.control(guest={"vm": "m-guest", "tools": False})
    with pytest.raises(vim.fault.ToolsUnavailable):
        vm.ShutdownGuest()
    sim.control(guest={"vm": "m-guest", "tools": True, "stubborn": False})
    vm.RebootGuest()
    assert vm.runtime.powerState == "poweredOn"
    vm.ShutdownGuest()
    assert vm.runtime.powerState == "poweredOff" and vm.guest.ipAddress is None


def test_a_customised_guest_has_its_address_after_power_on(sim: Sim) -> None:
    nic = vim.vm.device.VirtualVmxnet3(
        key=-5, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="DR Network")
    )
    vm = sim.create("m-custom", deviceChange=[add(nic)])
    spec = vim.vm.customization.Specification(
        identity=vim.vm.customization.LinuxPrep(
            hostName=vim.vm.customization.FixedName(name="h1"), domain="example"
        ),
        globalIPSettings=vim.vm.customization.GlobalIPSettings(),
        nicSettingMap=[vim.vm.customization.AdapterMapping(adapter=vim.vm.customization.IPSettings(
            ip=vim.vm.customization.FixedIp(ipAddress="10.1.2.3"), subnetMask="255.255.255.0"))],
    )  # fmt: skip
    sim.wait(vm.CustomizeVM_Task(spec))
    with pytest.raises(vim.fault.CustomizationPending):
        sim.wait(vm.CustomizeVM_Task(spec))
    for _ in range(2):
        sim.wait(vm.PowerOnVM_Task())
        assert (vm.guest.ipAddress, vm.guest.hostName) == ("10.1.2.3", "h1")
        sim.wait(vm.PowerOffVM_Task())


def test_network_cards(sim: Sim) -> None:
    nic = vim.vm.device.VirtualVmxnet3(
        key=-5, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    )
    manual = vim.vm.device.VirtualE1000e(
        key=-6, macAddress="00:50:56:00:00:01",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
    )  # fmt: skip
    vm = sim.create("m-nic", deviceChange=[add(nic), add(manual)])

    def cards() -> list[Any]:
        return [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]

    assert [c.key for c in cards()] == [4000, 4001]
    assert cards()[0].macAddress.startswith("00:50:56:") and cards()[1].macAddress == "00:50:56:00:00:01"
    card = cards()[0]
    mac = card.macAddress
    card.backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="DR Network")
    card.connectable.connected = card.connectable.startConnected = False
    sim.reconfigure(vm, deviceChange=[edit(card)])
    assert (cards()[0].backing.deviceName, cards()[0].macAddress) == ("DR Network", mac)
    assert cards()[0].connectable.startConnected is False
    assert sorted(n.name for n in vm.network) == ["DR Network", "VM Network"]
    clone = sim.wait(vm.CloneVM_Task(sim.dc.vmFolder, "m-nic2", vim.vm.CloneSpec(location=vim.vm.RelocateSpec())))
    copied = [d.macAddress for d in clone.config.hardware.device if isinstance(d, vim.vm.device.VirtualEthernetCard)]
    assert copied[0] != mac and copied[1] == "00:50:56:00:00:01"


def test_custom_attributes_have_one_value(sim: Sim) -> None:
    manager = sim.content.customFieldsManager
    field = manager.AddCustomFieldDef("m-field", vim.VirtualMachine)
    assert field.key > 0
    vm = sim.create("m-attr")
    for value in ("1", "2"):
        manager.SetField(vm, field.key, value)
    assert [(v.key, v.value) for v in vm.customValue] == [(field.key, "2")] == [(v.key, v.value) for v in vm.value]
    assert field.key in [f.key for f in vm.availableField]
    with pytest.raises(vmodl.fault.InvalidArgument):
        manager.SetField(vm, 999, "x")


def test_nvram_is_there_and_can_be_read_by_those_who_may(sim: Sim) -> None:
    vm, other = sim.create("m-nvram"), sim.create("m-nvram2")
    content = (sim.folder / "fast" / "m-nvram" / "m-nvram.nvram").read_bytes()
    assert len(content) > 4096 and content != (sim.folder / "fast" / "m-nvram2" / "m-nvram2.nvram").read_bytes()
    url = f"https://{sim.address}/folder/m-nvram/m-nvram.nvram?dcPath=DC0&dsName=fast"
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=sim.trust), urllib.request.ProxyHandler({})
    )

    def get(**headers: str) -> bytes:
        with opener.open(urllib.request.Request(url, headers=headers)) as answer:
            return bytes(answer.read())

    assert get(Authorization="Basic " + base64.b64encode(b"robot:secret").decode()) == content
    assert get(Cookie=sim.si._stub.cookie.split(";")[0]) == content
    for headers in (
        {},
        {"Authorization": "Basic " + base64.b64encode(b"robot:wrong").decode()},
        {"Cookie": "vmware_soap_session=x"},
    ):
        with pytest.raises(urllib.error.HTTPError) as err:
            get(**headers)
        assert err.value.code == 401
        err.value.close()
    clone = sim.wait(vm.CloneVM_Task(sim.dc.vmFolder, "m-nvram3", vim.vm.CloneSpec(location=vim.vm.RelocateSpec())))
    assert (sim.folder / "fast" / clone.name / f"{clone.name}.nvram").read_bytes() == content
    assert other.name == "m-nvram2"


def test_an_unregistered_vm_comes_back_with_hardware_and_snapshots(sim: Sim) -> None:
    field = sim.content.customFieldsManager.AddCustomFieldDef("m-reg", vim.VirtualMachine)
    vm = sim.create("m-reg", sizes=(4 * MIB, MIB), annotation="note", extraConfig=[key("understudy.x", "y")])
    sim.content.customFieldsManager.SetField(vm, field.key, "lost")
    sim.write(vm, 0, b"old")
    sim.snapshot(vm, "s")
    sim.write(vm, 0, b"new")
    moref, uuid, path = vm._moId, vm.config.instanceUuid, vm.config.files.vmPathName
    vm.UnregisterVM()
    assert "m-reg" not in sim.all(vim.VirtualMachine) and sim.descriptor("[fast] m-reg/m-reg.vmdk").exists()
    with pytest.raises(vim.fault.FileNotFound):
        sim.wait(sim.dc.vmFolder.RegisterVM_Task("[fast] no/no.vmx", "no", False, sim.pool))
    vm = sim.wait(sim.dc.vmFolder.RegisterVM_Task(path, "m-other", False, sim.pool))
    with pytest.raises(vim.fault.AlreadyExists):
        sim.wait(sim.dc.vmFolder.RegisterVM_Task(path, "m-twice", False, sim.pool))
    assert (vm.name, vm.config.instanceUuid, vm.config.annotation) == ("m-other", uuid, "note")
    assert vm._moId != moref and extra(vm) == {"understudy.x": "y"} and vm.customValue == []
    assert [d.capacityInBytes for d in disks(vm)] == [4 * MIB, MIB] and sim.bytes(vm)[:3] == b"new"
    sim.wait(vm.snapshot.currentSnapshot.RevertToSnapshot_Task())
    assert sim.bytes(vm)[:3] == b"old"
    sim.wait(vm.PowerOnVM_Task())
    sim.wait(vm.PowerOffVM_Task())
    sim.wait(vm.Destroy_Task())
    assert not (sim.folder / "fast" / "m-reg").exists()


def test_a_restart_keeps_certificate_identity_and_files(start: Callable[..., Sim], tmp_path: Path) -> None:
    first = start(folder=tmp_path / "vc", name="one")
    first.create("m-file")
    first.stop()
    second = start(folder=tmp_path / "vc", name="one")
    for fact in ("thumbprint", "thumbprintSha256", "instanceUuid"):
        assert first.facts[fact] == second.facts[fact]
    assert second.content.about.instanceUuid == second.facts["instanceUuid"]
    assert second.all(vim.VirtualMachine) == {}  # the inventory is lost, the VM can be registered again
    vm = second.wait(second.dc.vmFolder.RegisterVM_Task("[fast] m-file/m-file.vmx", "m-file", False, second.pool))
    assert len(disks(vm)) == 1
    other = start(folder=tmp_path / "other", name="two")
    assert other.facts["instanceUuid"] != first.facts["instanceUuid"]
    printed = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha1", "-in", other.facts["cert"]],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert printed.strip().endswith("=" + other.facts["thumbprint"])


def test_a_killed_vcenter_comes_back_with_its_vms(start: Callable[..., Sim], tmp_path: Path) -> None:
    args = ("-state", str(tmp_path / "state.xml"))
    sim = start(*args, folder=tmp_path / "vc", name="one")
    folder = sim.dc.vmFolder.CreateFolder("replicas")
    field = sim.content.customFieldsManager.AddCustomFieldDef("witness", vim.VirtualMachine)
    vm, off = sim.create("m-on", cbt=True), sim.create("m-off", extraConfig=[key("k", "v")])
    sim.wait(folder.MoveIntoFolder_Task([off]))
    sim.content.customFieldsManager.SetField(off, field.key, "epoch 7")
    sim.write(off, 0, b"at S")
    snap = sim.snapshot(off, "S")
    sim.write(off, 0, b"live")
    sim.wait(vm.PowerOnVM_Task())
    sim.snapshot(vm, "1")
    old_id = change_id(sim.snapshot(vm, "2"))
    version = off.config.changeVersion
    morefs = {v._moId: n for n, v in sim.all(vim.VirtualMachine).items()}
    sim.stop(kill=True)

    again = start(*args, folder=tmp_path / "vc", name="one")
    assert {v._moId: n for n, v in again.all(vim.VirtualMachine).items()} == morefs
    vm, off = (again.all(vim.VirtualMachine)[n] for n in ("m-on", "m-off"))
    assert (vm.runtime.powerState, off.runtime.powerState) == ("poweredOn", "poweredOff") and locks(again, vm)
    assert off.parent.name == "replicas" and off.config.changeVersion == version and extra(off) == {"k": "v"}
    assert [(v.key, v.value) for v in off.customValue] == [(field.key, "epoch 7")]
    assert off.snapshot.currentSnapshot._moId == snap._moId and again.bytes(off)[:4] == b"live"
    again.wait(off.snapshot.currentSnapshot.RevertToSnapshot_Task())
    assert again.bytes(off)[:4] == b"at S"
    assert again.content.customFieldsManager.AddCustomFieldDef("next", vim.VirtualMachine).key > field.key
    assert again.create("m-new")._moId not in morefs
    three = again.snapshot(vm, "3")  # tracking does not survive: a new generation
    assert str(change_id(three)).split("/")[0] != str(old_id).split("/")[0]
    with pytest.raises(vim.fault.FileFault):
        again.areas(vm, three, str(old_id))


def test_the_build_does_nothing_twice_and_needs_no_home(binary: Path, tmp_path: Path) -> None:
    before = binary.stat().st_mtime_ns
    subprocess.run(
        [REPO / "deploy/simulator/build.sh", binary], check=True, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path
    )
    assert binary.stat().st_mtime_ns == before
