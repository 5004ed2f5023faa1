"""A replica's configuration as a specification for vCenter. Decides, and asks nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field
from pyVmomi import vim

from workers.errors import BadInput, NotFound, Refused, Touched
from workers.models import Controller, Disk, Model, Nic, Provisioning, VmConfig, VmState
from workers.vsphere.hardware import CONTROLLERS, NICS, spelled
from workers.vsphere.placement import Place

_device = vim.vm.device

#: Who made this VM, and for what. Kept for its whole life; a VM of the right name without it is not ours.
MARK = "understudy.replica"

#: Source disk id -> the place of the replica's disk ("pvscsi:0:1" = kind, bus, unit), as JSON. A place outlives what
#: changes keys, files and UUIDs, and a revert turns it back together with the hardware that it speaks of.
DISKS = "understudy.disks"

#: units of a controller that all kinds but IDE have (vSphere: 15 disks on SCSI and NVMe, 30 on SATA), and the one
#: that a SCSI controller has for itself
UNITS, SCSI_OWN_UNIT = 15, 7

#: vCenter's IDE controllers are there in every VM, with these keys.
_IDE_KEYS = {0: 200, 1: 201}


class NewDisk(Model):
    """A disk of a replica that is to be made, or attached."""

    provisioning: Provisioning = "thin"
    #: "" = beside the VM's own files
    datastore: str = ""
    #: "[datastore] folder/file.vmdk" that is there already: attached as it is, not made
    attach: str = ""


class ReplicaSpec(Model):
    """A VM to be built: off, change tracking off, never started by the host."""

    name: str
    #: goes into extraConfig `understudy.replica`: realm and pair, so that a repeated creation knows its VM
    mark: str
    config: VmConfig
    datastore: str
    compute: str = ""
    pool: str = ""
    folder: str = ""
    #: source network -> network there; "*" for all others. A network that is not named keeps its name where there is
    #: one of that name. A card without a network, or one that is mapped to "", is built disconnected.
    networks: dict[str, str] = Field(default_factory=dict)
    provisioning: Provisioning = "thin"
    #: source disk id -> how and where its copy is made; the others are made beside the VM, as `provisioning` says
    new_disks: dict[str, NewDisk] = Field(default_factory=dict)
    #: ids or labels of disks that are not replicated
    excluded_disks: tuple[str, ...] = ()
    annotation: str = ""
    #: further extraConfig keys, all "understudy.*"
    notes: dict[str, str] = Field(default_factory=dict)
    #: kept: licences and cloud-init go by it. "" = a new one
    bios_uuid: str = ""
    #: the VM's identity, known before it is built, so that its cursor can name it from the first moment; "" = vCenter's
    instance_uuid: str = ""
    mac: Literal["keep", "generate"] = "keep"


class Built(NamedTuple):
    spec: Any
    notes: tuple[str, ...]


def replicated(spec: ReplicaSpec) -> tuple[Disk, ...]:
    """The disks that the replica gets."""
    out = set(spec.excluded_disks)
    return tuple(d for d in spec.config.disks if d.unprotected is None and d.id not in out and d.label not in out)


def network_for(source: str, networks: Mapping[str, str]) -> str | None:
    """The network that a source network is mapped to, "" for a card that shall be disconnected, None = not mapped."""
    return networks.get(source, networks.get("*"))


def networks_of(spec: ReplicaSpec) -> tuple[list[str], list[str]]:
    """Those that must be there, and those that are taken where they are."""
    mapped = {nic.network: network_for(nic.network, spec.networks) for nic in spec.config.nics}
    return [there for there in mapped.values() if there], [name for name, there in mapped.items() if there is None]


def datastores_of(spec: ReplicaSpec) -> list[str]:
    """All that its disks are made on or attached from, besides the VM's own."""
    made = [spec.new_disks.get(disk.id, NewDisk()) for disk in replicated(spec)]
    names = (disk.attach.partition("]")[0].removeprefix("[") or disk.datastore for disk in made)
    return [name for name in names if name]


def config_spec(spec: ReplicaSpec, place: Place) -> Built:
    config, disks = spec.config, replicated(spec)
    version, notes = _hardware_version(config.hardware_version, place.newest_hardware)
    cards, card_notes = _cards(spec, place)
    boot = vim.vm.BootOptions(efiSecureBootEnabled=True) if config.secure_boot else None
    places = {disk.id: place_of(disk, config.controllers) for disk in disks}
    own = {**spec.notes, MARK: spec.mark, DISKS: disk_places(places)}
    if stray := [key for key in own if not key.startswith("understudy.")]:
        raise BadInput(f"a replica's notes are called understudy.*, not {', '.join(stray)}")
    return Built(
        vim.vm.ConfigSpec(
            name=spelled(spec.name),
            guestId=config.guest_id,
            version=version,
            uuid=spec.bios_uuid or None,
            instanceUuid=spec.instance_uuid or None,
            annotation=spec.annotation or None,
            files=vim.vm.FileInfo(vmPathName=f"[{place.datastore}]"),
            numCPUs=config.cpus,
            numCoresPerSocket=config.cores_per_socket,
            memoryMB=config.memory_mib,
            firmware=config.firmware,
            bootOptions=boot,
            # A disk written past the hypervisor would make a liar of its change tracking.
            changeTrackingEnabled=False,
            extraConfig=options({**_extra_config(config), **own}),
            deviceChange=[*storage(disks, config.controllers, spec.new_disks, spec.provisioning), *cards],
        ),
        notes + card_notes,
    )


def options(values: Mapping[str, str]) -> list[Any]:
    return [vim.option.OptionValue(key=key, value=value) for key, value in values.items()]


def _hardware_version(wanted: str, newest: str) -> tuple[str, tuple[str, ...]]:
    if newest and _number(wanted) > _number(newest):
        return newest, (f"hardware version {newest} instead of {wanted}: the recovery site builds none newer",)
    return wanted, ()


def _number(version: str) -> int:
    digits = version.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


# --- disks ------------------------------------------------------------------------------------------------------


def place_of(disk: Disk, controllers: Iterable[Controller]) -> str:
    controller = next((c for c in controllers if c.key == disk.controller), None)
    if controller is None:
        raise BadInput(f"{disk.label} hangs on a controller that is not in its VM's configuration")
    return f"{controller.kind}:{controller.bus}:{disk.unit}"


def free_place(disk: Disk, controllers: Iterable[Controller], taken: Iterable[str]) -> Disk:
    """The disk where it is on its source or, where another disk's copy is there (that one was moved on the source, its
    copy was not), on the first free unit of the same controller.
    """
    controllers, taken = tuple(controllers), set(taken)
    units = [disk.unit, *(unit for unit in range(UNITS) if unit != SCSI_OWN_UNIT)]
    for unit in units:
        moved = disk.model_copy(update={"unit": unit})
        if place_of(moved, controllers) not in taken:
            return moved
    raise Refused(
        f"there is no free place for {disk.label} on its controller: the replica's disks are where they were when they "
        "were made. Remove the replica to have it built anew"
    )


def disk_places(places: Mapping[str, str]) -> str:
    """The text of the note `DISKS`."""
    return json.dumps(places, separators=(",", ":"))


def disk_map(state: VmState) -> dict[str, Disk]:
    """Source disk id -> the replica's disk. `Touched` when the hardware is not what we built."""
    text = state.notes.get(DISKS)
    if text is None:
        raise Touched(f"{state.identity.name} does not say which disk of its source each of its disks replicates")
    here = {place_of(d, state.config.controllers): d for d in state.config.disks}
    found = {}
    for source, place in json.loads(text).items():
        if place not in here:
            raise Touched(
                f"{state.identity.name} has no disk at {place} any more; it was the copy of the disk {source}"
            )
        found[source] = here[place]
    return found


def storage(
    disks: Iterable[Disk],
    controllers: Iterable[Controller],
    made: Mapping[str, NewDisk],
    otherwise: Provisioning,
    *,
    present: Iterable[Controller] = (),
) -> Iterator[Any]:
    """Specifications of new disks, as `made` says by their ids, and of the controllers that are not `present`."""
    disks, here = tuple(disks), {(c.kind, c.bus): c.key for c in present}
    keys: dict[int, int] = {}
    for number, controller in enumerate(controllers):
        place = (controller.kind, controller.bus)
        if place in here:
            keys[controller.key] = here[place]
        elif controller.kind == "ide":
            keys[controller.key] = _IDE_KEYS[controller.bus]
        elif not here or any(d.controller == controller.key for d in disks):
            keys[controller.key] = -(100 + number)
            yield _added(_controller(controller, keys[controller.key]))
    for number, disk in enumerate(disks):
        if disk.controller not in keys:
            raise BadInput(f"{disk.label} hangs on a controller that is not in its VM's configuration")
        how = made.get(disk.id) or NewDisk(provisioning=otherwise)
        yield _added(_disk(disk, -(1000 + number), keys[disk.controller], how), create=not how.attach)


def _added(device: Any, create: bool = False) -> Any:
    return _device.VirtualDeviceSpec(operation="add", device=device, fileOperation="create" if create else None)


def _controller(controller: Controller, key: int) -> Any:
    device: Any = CONTROLLERS[controller.kind](key=key, busNumber=controller.bus)
    if controller.kind not in ("ide", "sata", "nvme"):
        device.sharedBus = "noSharing"
        device.hotAddRemove = True
    return device


def _disk(disk: Disk, key: int, controller: int, how: NewDisk) -> Any:
    file = how.attach or (f"[{how.datastore}]" if how.datastore else "")
    backing = _device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent")
    if not how.attach:
        original = how.provisioning == "original"
        backing.thinProvisioned = disk.thin if original else how.provisioning == "thin"
        if disk.eager if original else how.provisioning == "eager":
            backing.eagerlyScrub = True
    return _device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=disk.unit,
        capacityInBytes=disk.capacity,
        capacityInKB=disk.capacity // 1024,
        backing=backing,
    )


# --- network cards ----------------------------------------------------------------------------------------------


def _cards(spec: ReplicaSpec, place: Place) -> tuple[list[Any], tuple[str, ...]]:
    cards, notes = [], []
    for number, nic in enumerate(sorted(spec.config.nics, key=lambda nic: nic.key)):
        name = network_for(nic.network, spec.networks)
        if name is None and nic.network in place.networks:
            name = nic.network
            notes.append(f"the network {name} is not mapped: the replica uses the network of the same name")
        backing = place.networks[name] if name else None
        if backing is None:
            if place.spare is None:
                raise NotFound(
                    f"the host for {spec.name} has no network at all, and vCenter builds no network card without one"
                )
            why = "is mapped to nothing" if name == "" else "is not mapped, and there is none of that name"
            notes.append(
                f"the network {nic.network or '(without a name)'} {why}: its card is built disconnected (in "
                f"{place.spare[0]}); connect it on the replica, or map it in the recovery target's networks"
            )
            nic, backing = nic.model_copy(update={"connected": False}), place.spare[1]
        cards.append(_added(_card(nic, -(2000 + number), backing, spec.mac)))
    return cards, tuple(dict.fromkeys(notes))


def _card(nic: Nic, key: int, backing: Any, mac: str) -> Any:
    manual = mac == "keep" and nic.mac
    return NICS["vmxnet3" if nic.kind == "sriov" else nic.kind](
        key=key,
        addressType="manual" if manual else "generated",
        macAddress=nic.mac if manual else None,
        backing=backing,
        wakeOnLanEnabled=True,
        connectable=_device.VirtualDevice.ConnectInfo(
            startConnected=nic.connected, connected=False, allowGuestControl=True
        ),
    )


def _extra_config(config: VmConfig) -> dict[str, str]:
    """The kept settings. A card's PCI slot follows it to its new number: 4000 + n is ethernet<n>."""
    order = {nic.key - 4000: number for number, nic in enumerate(sorted(config.nics, key=lambda nic: nic.key))}
    kept = {}
    for key, value in config.extra_config.items():
        card = re.fullmatch(r"ethernet(\d+)\.pciSlotNumber", key)
        if card is None:
            kept[key] = value
        elif int(card[1]) in order:
            kept[f"ethernet{order[int(card[1])]}.pciSlotNumber"] = value
    return kept
