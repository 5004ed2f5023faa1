"""The allow-list, from devices as pyVmomi gives them: the simulator has no RDM, no passthrough, no TPM."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from workers.vsphere.hardware import notes_of, vm_config_of

D = vim.vm.device
DISK = D.VirtualDisk


def described(device: Any, label: str) -> Any:
    device.deviceInfo = vim.Description(label=label, summary="")
    return device


def disk(backing: Any, *, controller: int = 1000, label: str = "Hard disk 1", key: int = 2000) -> Any:
    return described(
        DISK(key=key, controllerKey=controller, unitNumber=0, capacityInBytes=1 << 30, backing=backing), label
    )


def flat(**more: Any) -> Any:
    given = {"fileName": "[ds] a/a.vmdk", "diskMode": "persistent", "uuid": "u1", **more}
    return DISK.FlatVer2BackingInfo(**given)


def pvscsi(**more: Any) -> Any:
    return described(
        D.ParaVirtualSCSIController(key=1000, **{"busNumber": 0, "sharedBus": "noSharing", **more}), "SCSI"
    )


def read(*devices: Any, networks: dict[str, str] | None = None, **values: Any) -> Any:
    hardware = vim.vm.VirtualHardware(numCPU=2, numCoresPerSocket=1, memoryMB=1024, device=list(devices))
    base = {"name": "vm", "guestId": "otherGuest64", "version": "vmx-13", "hardware": hardware}
    return vm_config_of({**base, **values}, networks or {})


def test_two_disks_with_one_uuid_are_two_disks() -> None:
    """A disk whose file was copied by hand has its original's UUID; none of the two may stand for both."""
    found = read(pvscsi(), disk(flat()), disk(flat(fileName="[ds] a/copy.vmdk"), label="Hard disk 2", key=2001)).disks
    assert [d.id for d in found] == ["key-2000", "key-2001"]


@pytest.mark.parametrize(
    ("backing", "controller", "sentence"),
    [
        pytest.param(
            DISK.RawDiskMappingVer1BackingInfo(fileName="[ds] a/rdm.vmdk", diskMode="persistent", lunUuid="x"),
            pvscsi(),
            "raw device mapping",
            id="rdm",
        ),
        pytest.param(flat(diskMode="independent_persistent"), pvscsi(), "independent persistent", id="independent"),
        pytest.param(flat(diskMode="independent_nonpersistent"), pvscsi(), "nonpersistent", id="nonpersistent"),
        pytest.param(flat(sharing="sharingMultiWriter"), pvscsi(), "shared by several writers", id="multi-writer"),
        pytest.param(flat(), pvscsi(sharedBus="physicalSharing"), "bus shared with other VMs", id="shared-bus"),
        pytest.param(flat(), pvscsi(sharedBus="virtualSharing"), "bus shared with other VMs", id="virtual-bus"),
        pytest.param(DISK.RawDiskVer2BackingInfo(descriptorFileName="x", deviceName="y"), pvscsi(), "raw", id="raw"),
        pytest.param(DISK.LocalPMemBackingInfo(fileName="x", diskMode="persistent"), pvscsi(), "backing", id="pmem"),
    ],
)
def test_disks_that_cannot_be_protected_are_named(backing: Any, controller: Any, sentence: str) -> None:
    (found,) = read(controller, disk(backing)).disks
    assert found.unprotected is not None and "Hard disk 1" in found.unprotected and sentence in found.unprotected


@pytest.mark.parametrize(
    "backing",
    [
        flat(),
        flat(thinProvisioned=True),
        DISK.SeSparseBackingInfo(fileName="[ds] a/a-000001.vmdk", diskMode="persistent", uuid="u1"),
    ],
)
def test_disks_that_can(backing: Any) -> None:
    (found,) = read(pvscsi(), disk(backing)).disks
    assert (found.id, found.unprotected, found.controller, found.unit, found.capacity) == ("u1", None, 1000, 0, 1 << 30)
    assert found.thin == (backing.__class__ is not DISK.FlatVer2BackingInfo or bool(backing.thinProvisioned))


def test_what_a_snapshot_says_of_a_disk() -> None:
    parent = flat(fileName="[ds] a/a.vmdk")
    backing = flat(fileName="[ds] a/a-000001.vmdk", parent=parent, contentId="c1", changeId="52 de/4", uuid=None)
    (found,) = read(pvscsi(), disk(backing)).disks
    assert found.id == "key-2000"  # vCenter gives no uuid
    assert (found.parent, found.file) == ("[ds] a/a.vmdk", "[ds] a/a-000001.vmdk")
    assert (found.content_id, found.change_id) == ("c1", "52 de/4")


def test_controllers_by_kind_and_bus() -> None:
    config = read(
        D.VirtualIDEController(key=200, busNumber=0),
        D.VirtualIDEController(key=201, busNumber=1),
        pvscsi(),
        D.VirtualLsiLogicSASController(key=1001, busNumber=1, sharedBus="noSharing"),
        D.VirtualLsiLogicController(key=1002, busNumber=2, sharedBus="noSharing"),
        D.VirtualBusLogicController(key=1003, busNumber=3, sharedBus="noSharing"),
        D.VirtualAHCIController(key=15000, busNumber=0),
        D.VirtualNVMEController(key=31000, busNumber=0),
        disk(flat(), controller=201),
    )
    assert [(c.kind, c.key, c.bus) for c in config.controllers] == [
        ("ide", 201, 1),
        ("pvscsi", 1000, 0),
        ("lsilogic-sas", 1001, 1),
        ("lsilogic", 1002, 2),
        ("buslogic", 1003, 3),
        ("sata", 15000, 0),
        ("nvme", 31000, 0),
    ]
    assert config.dropped == ()


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        (D.VirtualTPM(key=11000), "key provider"),
        (D.VirtualPCIPassthrough(key=13000), "belongs to one host"),
        (D.VirtualSCSIPassthrough(key=13001), "belongs to one host"),
        (D.VirtualUSB(key=7001), "USB device"),
        (D.VirtualUSBController(key=7000), "not carried over"),
        (D.VirtualUSBXHCIController(key=14000), "not carried over"),
        (D.VirtualCdrom(key=3000, backing=D.VirtualCdrom.IsoBackingInfo(fileName="[ds] x.iso")), "medium"),
        (D.VirtualFloppy(key=8000), "floppy"),
        (D.VirtualSerialPort(key=9000), "serial port"),
        (D.VirtualParallelPort(key=10000), "parallel port"),
        (D.VirtualHdAudioCard(key=5000), "sound card"),
        (D.VirtualNVDIMM(key=40000), "persistent memory"),
    ],
    ids=lambda value: value.__class__.__name__ if not isinstance(value, str) else None,
)
def test_devices_that_are_left_out_are_named(device: Any, sentence: str) -> None:
    (dropped,) = read(described(device, "The device")).dropped
    assert "The device" in dropped and sentence in dropped


def test_default_devices_are_not_worth_a_sentence() -> None:
    assert (
        read(
            D.VirtualKeyboard(key=600),
            D.VirtualPointingDevice(key=700),
            D.VirtualVideoCard(key=500),
            D.VirtualVMCIDevice(key=12000),
            D.VirtualPCIController(key=100, busNumber=0),
            D.VirtualPS2Controller(key=300, busNumber=0),
            D.VirtualSIOController(key=400, busNumber=0),
        ).dropped
        == ()
    )


def test_network_cards_by_the_names_of_their_networks() -> None:
    card = D.VirtualEthernetCard
    port = vim.dvs.PortConnection(portgroupKey="dvportgroup-7", switchUuid="s")
    unknown = vim.dvs.PortConnection(portgroupKey="dvportgroup-9", switchUuid="s")
    off = D.VirtualDevice.ConnectInfo(startConnected=False, connected=False, allowGuestControl=True)
    config = read(
        D.VirtualVmxnet3(key=4000, macAddress="a", backing=card.NetworkBackingInfo(deviceName="VM%2fNet")),
        D.VirtualE1000e(
            key=4001, macAddress="b", backing=card.DistributedVirtualPortBackingInfo(port=port), connectable=off
        ),
        D.VirtualE1000(
            key=4002,
            macAddress="c",
            backing=card.OpaqueNetworkBackingInfo(opaqueNetworkId="nsx-1", opaqueNetworkType="nsx.LogicalSwitch"),
        ),
        D.VirtualSriovEthernetCard(key=4003, macAddress="d", backing=card.NetworkBackingInfo(deviceName="fast")),
        D.VirtualVmxnet3(key=4004, macAddress="e", backing=card.DistributedVirtualPortBackingInfo(port=unknown)),
        networks={"dvportgroup-7": "production", "nsx-1": "overlay"},
    )
    assert [(n.kind, n.network, n.mac, n.connected) for n in config.nics] == [
        ("vmxnet3", "VM/Net", "a", True),
        ("e1000e", "production", "b", False),
        ("e1000", "overlay", "c", True),
        ("sriov", "fast", "d", True),
        ("vmxnet3", "", "e", True),
    ]
    assert len(config.dropped) == 2
    assert "d becomes a vmxnet3" in config.dropped[0] and "e is on a network whose name" in config.dropped[1]


def test_settings_that_are_left_out_are_named() -> None:
    dropped = read(
        keyId=vim.encryption.CryptoKeyId(keyId="k"),
        cpuAllocation=vim.ResourceAllocationInfo(reservation=500, limit=-1),
        memoryAllocation=vim.ResourceAllocationInfo(reservation=0, limit=-1),
        nestedHVEnabled=True,
        cpuHotAddEnabled=False,
        flags=vim.vm.FlagInfo(vbsEnabled=True),
        managedBy=vim.ext.ManagedByInfo(extensionKey="com.example", type="t"),
        latencySensitivity=vim.LatencySensitivity(level="high"),
    ).dropped
    for word in ("encrypted", "CPU reservation", "nested", "virtualisation based", "com.example", "sensitivity high"):
        assert any(word in sentence for sentence in dropped), word
    assert len(dropped) == 6


def test_firmware_and_secure_boot() -> None:
    config = read(firmware="efi", bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=True), template=True)
    assert (config.firmware, config.secure_boot, config.template) == ("efi", True, True)
    assert (read().firmware, read().secure_boot, read().template) == ("bios", False, False)


def test_advanced_settings() -> None:
    options = [
        vim.option.OptionValue(key=key, value=value)
        for key, value in {
            "disk.EnableUUID": "TRUE",
            "ethernet0.pciSlotNumber": "192",
            "guestinfo.metadata": "x",
            "understudy.cursor": "{}",
            "understudy.gone": "",
            "nvram": "a.nvram",
            "scsi0:0.ctkEnabled": "TRUE",
            "sched.swap.derivedName": "/vmfs/x",
            "pciBridge0.present": "TRUE",
            "acme.secretSauce": "1",
        }.items()
    ]
    config = read(extraConfig=options)
    assert config.extra_config == {
        "disk.EnableUUID": "TRUE",
        "ethernet0.pciSlotNumber": "192",
        "guestinfo.metadata": "x",
    }
    assert config.dropped == ("advanced settings that are left out: acme.secretSauce",)
    assert notes_of(options) == {"understudy.cursor": "{}"}
