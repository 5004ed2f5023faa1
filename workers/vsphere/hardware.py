"""A VM's configuration as an allow-list: what is needed to build it again, and a sentence for all that is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast
from urllib.parse import unquote

from pyVmomi import vim

from workers.models import Controller, Disk, Nic, VmConfig

_device = vim.vm.device

#: Leaf paths below a VM's or a snapshot's `config`; all exist since vSphere 6.5.
CONFIG_PATHS = (
    "name",
    "guestId",
    "version",
    "annotation",
    "template",
    "firmware",
    "bootOptions",
    "extraConfig",
    "flags",
    "hardware",
    "keyId",
    "vAppConfig",
    "managedBy",
    "cpuAllocation",
    "memoryAllocation",
    "latencySensitivity",
    "nestedHVEnabled",
    "vPMCEnabled",
    "cpuHotAddEnabled",
    "memoryHotAddEnabled",
    "npivNodeWorldWideName",
)

ControllerKind = Literal["pvscsi", "lsilogic", "lsilogic-sas", "buslogic", "ide", "sata", "nvme"]
NicKind = Literal["vmxnet3", "e1000", "e1000e", "vmxnet2", "pcnet32", "sriov"]

CONTROLLERS: dict[ControllerKind, Any] = {
    "pvscsi": _device.ParaVirtualSCSIController,
    "lsilogic": _device.VirtualLsiLogicController,
    "lsilogic-sas": _device.VirtualLsiLogicSASController,
    "buslogic": _device.VirtualBusLogicController,
    "ide": _device.VirtualIDEController,
    "sata": _device.VirtualAHCIController,
    "nvme": _device.VirtualNVMEController,
}
NICS: dict[NicKind, Any] = {
    "vmxnet3": _device.VirtualVmxnet3,
    "e1000": _device.VirtualE1000,
    "e1000e": _device.VirtualE1000e,
    "vmxnet2": _device.VirtualVmxnet2,
    "pcnet32": _device.VirtualPCNet32,
    "sriov": _device.VirtualSriovEthernetCard,
}

#: Every VM has these from the start; building one brings them along.
_DEFAULT_DEVICES = (
    _device.VirtualIDEController,
    _device.VirtualPS2Controller,
    _device.VirtualPCIController,
    _device.VirtualSIOController,
    _device.VirtualKeyboard,
    _device.VirtualPointingDevice,
    _device.VirtualVideoCard,
    _device.VirtualVMCIDevice,
)

_LEFT_OUT: tuple[tuple[Any, str], ...] = (
    (_device.VirtualTPM, "a virtual TPM needs the key provider of the source; a guest that sealed its keys to it asks"),
    (_device.VirtualPCIPassthrough, "a passed-through PCI device or GPU belongs to one host"),
    (_device.VirtualSCSIPassthrough, "a passed-through SCSI device belongs to one host"),
    (_device.VirtualNVDIMM, "persistent memory is neither backed up nor replicated"),
    (_device.VirtualUSB, "a USB device belongs to one host"),
    (_device.VirtualCdrom, "the CD/DVD drive and its medium"),
    (_device.VirtualFloppy, "the floppy drive and its medium"),
    (_device.VirtualSerialPort, "the serial port"),
    (_device.VirtualParallelPort, "the parallel port"),
    (_device.VirtualSoundCard, "the sound card"),
)

#: Advanced settings that the guest would miss. PCI slots keep the names of network interfaces (ens192).
_EXTRA_KEPT = re.compile(
    r"disk\.EnableUUID|devices\.hotplug|(ethernet|scsi|sata|nvme)\d+\.pciSlotNumber|numa\.(?!autosize).*|cpuid\..*"
    r"|isolation\.tools\..*|tools\.syncTime|time\.synchronize\..*|guestinfo\.(metadata|userdata|vendordata)(\.encoding)?"
    r"|svga\.(vramSize|autodetect)|keyboard\..*|mks\.enable3d|firmware\.quickBoot\.enabled",
    re.IGNORECASE,
)

#: What vSphere writes itself, or what must never travel: left out without a word.
_EXTRA_OURS_OR_VSPHERES = re.compile(
    r"understudy\..*|sched\..*|.*\.ctkEnabled|.*\.pciSlotNumber|pciBridge\d+\..*|nvram|.*\.present|.*\.redo|uuid\..*|vc\.uuid"
    r"|migrate\..*|vmotion\..*|viv\..*|monitor\..*|softPowerOff|tools\..*|toolsInstallManager\..*|vmware\.tools\..*"
    r"|guestOS\..*|guestInfo\..*|numa\..*|cleanShutdown|config\.readOnly|replay\..*|hpet0\..*|vmci0\..*|vmxstats\..*"
    r"|virtualHW\..*|displayName|annotation|hbr_filter\..*|vmxnet3\..*|ehci.*|usb.*|svga\..*",
    re.IGNORECASE,
)


def vm_config_of(values: Mapping[str, Any], networks: Mapping[str, str]) -> VmConfig:
    """From `CONFIG_PATHS` without their prefix. `networks`: portgroup key, opaque id or moref -> name."""
    hardware = values["hardware"]
    boot = values.get("bootOptions")
    devices = list(hardware.device)
    nics = tuple(nics_of(devices, networks))
    extra, unknown = _extra_config(values.get("extraConfig") or ())
    return VmConfig(
        name=unquote(values["name"]),
        guest_id=values["guestId"],
        hardware_version=values["version"],
        cpus=hardware.numCPU,
        cores_per_socket=hardware.numCoresPerSocket or 1,
        memory_mib=hardware.memoryMB,
        firmware="efi" if values.get("firmware") == "efi" else "bios",
        secure_boot=bool(boot is not None and boot.efiSecureBootEnabled),
        annotation=values.get("annotation") or "",
        template=bool(values.get("template")),
        controllers=tuple(controllers_of(devices)),
        disks=tuple(disks_of(devices)),
        nics=nics,
        extra_config=extra,
        dropped=tuple([*_devices_left_out(devices, nics), *_settings_left_out(values), *unknown]),
    )


def controllers_of(devices: list[Any]) -> Iterator[Controller]:
    """All but the two IDE controllers that every VM has and most leave empty."""
    used = {d.controllerKey for d in devices if isinstance(d, _device.VirtualDisk)}
    for device in devices:
        kind = next((k for k, cls in CONTROLLERS.items() if isinstance(device, cls)), None)
        if kind is not None and (kind != "ide" or device.key in used):
            yield Controller(kind=kind, key=device.key, bus=device.busNumber)


def disks_of(devices: list[Any]) -> Iterator[Disk]:
    """A UUID that two disks of the VM share (one's file was copied by hand) names neither: then the device keys do."""
    buses: dict[Any, Any] = {d.key: d for d in devices if isinstance(d, _device.VirtualController)}
    disks = [device for device in devices if isinstance(device, _device.VirtualDisk)]
    times = Counter(getattr(device.backing, "uuid", None) for device in disks)
    for device in disks:
        uuid = getattr(device.backing, "uuid", None)
        yield _disk(device, buses.get(device.controllerKey), uuid if times[uuid] == 1 else None)


def _disk(device: Any, controller: Any, uuid: str | None) -> Disk:
    backing = device.backing
    parent = getattr(backing, "parent", None)
    return Disk(
        id=uuid or f"key-{device.key}",
        key=device.key,
        label=_label(device),
        capacity=device.capacityInBytes or device.capacityInKB * 1024,
        controller=device.controllerKey or 0,
        unit=device.unitNumber or 0,
        mode=getattr(backing, "diskMode", None) or "persistent",
        thin=_thin(backing),
        eager=not _thin(backing) and bool(getattr(backing, "eagerlyScrub", False)),
        file=getattr(backing, "fileName", None) or "",
        content_id=getattr(backing, "contentId", None) or "",
        parent=parent.fileName if parent is not None else None,
        change_id=getattr(backing, "changeId", None) or None,
        unprotected=_unprotected(device, controller),
    )


def _thin(backing: Any) -> bool:
    if isinstance(backing, _device.VirtualDisk.SeSparseBackingInfo):
        return True
    return bool(getattr(backing, "thinProvisioned", False))


def _unprotected(device: Any, controller: Any) -> str | None:
    backing, label = device.backing, _label(device)
    disk = _device.VirtualDisk
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo | disk.RawDiskVer2BackingInfo):
        return f"{label} is a raw device mapping: its data is not on a datastore and cannot be read through a snapshot"
    if not isinstance(backing, disk.FlatVer2BackingInfo | disk.SeSparseBackingInfo | disk.FlatVer1BackingInfo):
        return f"{label} has a backing that cannot be read through a snapshot ({type(backing).__name__})"
    mode = backing.diskMode or "persistent"
    if mode != "persistent":
        return f"{label} is {mode.replace('_', ' ')}: snapshots leave it out; make it dependent to protect it"
    if getattr(backing, "sharing", None) == "sharingMultiWriter":
        return f"{label} is shared by several writers: a snapshot of one VM does not freeze it"
    if getattr(controller, "sharedBus", "noSharing") not in (None, "noSharing"):
        return f"{label} is on a bus shared with other VMs: it cannot be part of a snapshot"
    return None


def nics_of(devices: list[Any], networks: Mapping[str, str]) -> Iterator[Nic]:
    for device in devices:
        kind = next((k for k, cls in NICS.items() if isinstance(device, cls)), None)
        if kind is not None:
            yield Nic(
                kind=kind,
                key=device.key,
                network=_network(device.backing, networks),
                mac=device.macAddress or "",
                connected=bool(device.connectable is None or device.connectable.startConnected),
            )


def _network(backing: Any, networks: Mapping[str, str]) -> str:
    """The network's name; "" when it is not known, which becomes a sentence."""
    card = _device.VirtualEthernetCard
    if isinstance(backing, card.DistributedVirtualPortBackingInfo):
        return networks.get(backing.port.portgroupKey or "", "")
    if isinstance(backing, card.OpaqueNetworkBackingInfo):
        return networks.get(backing.opaqueNetworkId, "")
    if isinstance(backing, card.NetworkBackingInfo):
        moref = backing.network._GetMoId() if backing.network is not None else ""
        return networks.get(moref) or unquote(backing.deviceName or "")
    return ""


def _devices_left_out(devices: list[Any], nics: tuple[Nic, ...]) -> Iterator[str]:
    known = (_device.VirtualDisk, *CONTROLLERS.values(), *NICS.values(), *_DEFAULT_DEVICES)
    for device in devices:
        if isinstance(device, known):
            continue
        why = next((text for cls, text in _LEFT_OUT if isinstance(device, cls)), None)
        yield f"{_label(device)} is left out: {why or 'devices of this kind are not carried over'}"
    for device in devices:
        if isinstance(device, _device.VirtualVmxnet3Vrdma):
            yield f"{_label(device)} becomes a plain vmxnet3: RDMA is not carried over"
    for nic in nics:
        if nic.kind == "sriov":
            yield f"the network card {nic.mac} becomes a vmxnet3: a passed-through (SR-IOV) card belongs to one host"
        if not nic.network:
            yield f"the network card {nic.mac} is on a network whose name vCenter does not give"


def _settings_left_out(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("keyId") is not None:
        yield "the VM is encrypted: what is stored and its replica are not"
    for key, name in (("cpuAllocation", "CPU"), ("memoryAllocation", "memory")):
        share = values.get(key)
        if share is not None and (share.reservation or (share.limit is not None and share.limit >= 0)):
            yield f"the {name} reservation or limit is left out: it is a matter of the site"
    level = getattr(values.get("latencySensitivity"), "level", None)
    if level not in (None, "normal"):
        yield f"latency sensitivity {level} is left out: it is a matter of the site"
    for key, name in (
        ("nestedHVEnabled", "nested virtualisation"),
        ("vPMCEnabled", "virtual CPU performance counters"),
        ("cpuHotAddEnabled", "adding CPUs while it runs"),
        ("memoryHotAddEnabled", "adding memory while it runs"),
        ("npivNodeWorldWideName", "NPIV world wide names"),
        ("vAppConfig", "the vApp options"),
    ):
        if values.get(key):
            yield f"{name}: this setting is left out"
    if getattr(values.get("flags"), "vbsEnabled", False):
        yield "virtualisation based security: this setting is left out"
    if values.get("managedBy") is not None:
        yield f"the VM is managed by {values['managedBy'].extensionKey}: its copy is not"


def _extra_config(options: Any) -> tuple[dict[str, str], list[str]]:
    kept: dict[str, str] = {}
    unknown = []
    for option in options:
        if _EXTRA_KEPT.fullmatch(option.key):
            kept[option.key] = str(option.value)
        elif option.value != "" and not _EXTRA_OURS_OR_VSPHERES.fullmatch(option.key):
            unknown.append(option.key)
    return kept, [f"advanced settings that are left out: {', '.join(sorted(unknown))}"] if unknown else []


def spelled(name: str) -> str:
    """A name as vCenter keeps it: it escapes these three, and takes an escape sequence as it is."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def notes_of(options: Any) -> dict[str, str]:
    """Our own keys. An empty value is a deleted key."""
    return {o.key: str(o.value) for o in options or () if o.key.startswith("understudy.") and o.value != ""}


def _label(device: Any) -> str:
    return cast(str, device.deviceInfo.label) if device.deviceInfo is not None else f"device {device.key}"
