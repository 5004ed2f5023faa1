"""The replica VM: build it, write its cursor, change its disks, remove it; each may be repeated after a lost answer.

A powered-off VM of our own is assumed everywhere; the caller has proven that (`vm_state`) before it calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pyVmomi import vim, vmodl

from workers import faults
from workers.errors import BadInput, Conflict, Foreign, Refused, Transient, VcenterUnreachable
from workers.models import HardwareChange, Provisioning, VmConfig, VmState
from workers.vsphere.building import (
    DISKS,
    MARK,
    NewDisk,
    ReplicaSpec,
    config_spec,
    datastores_of,
    disk_map,
    disk_places,
    free_place,
    networks_of,
    options,
    place_of,
    replicated,
    storage,
)
from workers.vsphere.hardware import notes_of, spelled
from workers.vsphere.inventory import vm_state
from workers.vsphere.placement import find_place
from workers.vsphere.refusals import as_error, refused_to, words
from workers.vsphere.session import WAIT, WITNESS, Session

#: What extraConfig is known to hold without trouble; vSphere documents no limit.
CURSOR_LIMIT = 4096

#: vCenter's limit for the value of a custom attribute.
WITNESS_LIMIT = 255

#: How the annotation of each replica begins.
ANNOTATION = "Replica of "

#: Says which change of hardware was made last, so that a repeated one is known as done.
_HARDWARE = "understudy.hardware"


class Replica(NamedTuple):
    moref: str
    #: what differs from the source, in sentences
    notes: tuple[str, ...]


def create(s: Session, spec: ReplicaSpec, *, wait: float = WAIT) -> Replica:
    """Build the replica with empty disks; if it is there already, with this mark, that one is it.

    `Foreign` when another VM has the name. `TaskStillRunning` when vCenter needs longer: call again.
    """
    doing = f"build the VM {spec.name!r} ({s})"
    with refused_to(doing):
        networks, wished = networks_of(spec)
        place = find_place(
            s,
            name=spec.name,
            datastore=spec.datastore,
            datastores=datastores_of(spec),
            compute=spec.compute,
            pool=spec.pool,
            folder=spec.folder,
            networks=networks,
            wished=wished,
        )
        config, notes = config_spec(spec, place)
        held = _ours(s, place.folder, spec)
        if held is not None:
            return Replica(held, (*notes, "the VM had been built before"))
        try:
            built: Any = s.wait(place.folder.CreateVM_Task(config, place.pool, place.host), wait)
        except (vim.fault.DuplicateName, vim.fault.AlreadyExists) as err:
            # An earlier call whose answer was lost, or somebody else, came first.
            held = _ours(s, place.folder, spec)
            if held is None:
                raise as_error(err, doing) from err
            return Replica(held, notes)
    faults.at("replica-built")
    _check(s, built._GetMoId(), spec)
    return Replica(built._GetMoId(), notes)


def _ours(s: Session, folder: Any, spec: ReplicaSpec) -> str | None:
    """The moref of the VM of that name in the folder, when it carries our mark."""
    ref = s.content.searchIndex.FindChild(folder, spelled(spec.name))
    if ref is None:
        return None
    mark = None
    if isinstance(ref, vim.VirtualMachine):
        values = s.read(ref, "config.extraConfig", "config.changeVersion")
        if "config.changeVersion" not in values:
            raise Transient(f"{s} has a VM {spec.name!r} without a configuration: it is being built, or out of reach")
        mark = notes_of(values.get("config.extraConfig")).get(MARK)
    if mark != spec.mark:
        raise Foreign(
            f"{s} already has {'the replica of another pair' if mark else 'something of its own'} called "
            f"{spec.name!r} in that folder; rename or remove it, or give the replica another name"
        )
    _check(s, ref._GetMoId(), spec)
    return str(ref._GetMoId())


def _check(s: Session, moref: str, spec: ReplicaSpec) -> None:
    """vCenter may place devices otherwise than asked: then the map of disks would lie."""
    found = disk_map(vm_state(s, moref))
    for disk in replicated(spec):
        copy = found.get(disk.id)
        if copy is None or copy.capacity < disk.capacity:
            raise Conflict(f"{spec.name} at {s} has no disk for {disk.label} ({disk.capacity} bytes): it was changed")


def take_over(
    s: Session, moref: str, notes: Mapping[str, str], change_version: str, *, nonce_in: str, wait: float = WAIT
) -> None:
    """A VM that is there becomes a replica: our notes (mark, map of disks, cursor) in one compare-and-set.

    `Conflict` when the VM was changed since `change_version`. `nonce_in`: the note that tells this very write from
    others when its answer is lost. Change tracking goes off: disks written past the hypervisor make a liar of it.
    """
    spec = vim.vm.ConfigSpec(changeVersion=change_version, changeTrackingEnabled=False, extraConfig=options(notes))
    doing = f"make the VM {moref} a replica ({s})"
    try:
        s.run(doing, lambda: s.vm(moref).ReconfigVM_Task(spec), wait)
    except (Conflict, VcenterUnreachable) as err:
        with refused_to(doing):
            s.settle(s.vm(moref), wait)
        if _read_back(s, moref, nonce_in)[1] != notes[nonce_in]:
            raise err


# --- the cursor and the witness -----------------------------------------------------------------------------------


def write_cursor(s: Session, moref: str, key: str, text: str, change_version: str, *, wait: float = WAIT) -> str:
    """Write `text` under an extraConfig key if the VM is still at `change_version`; the new change version.

    A compare-and-set: `Conflict` when the VM was changed meanwhile and `text`, which holds a fresh nonce, is not what
    is there. Whoever needs that nothing happened since the write reads `vm_state`. An empty text deletes the key.
    """
    if not key.startswith("understudy.") or len(text.encode()) > CURSOR_LIMIT:
        raise BadInput(
            f"{key} with {len(text.encode())} bytes: a cursor is understudy.* and up to {CURSOR_LIMIT} bytes"
        )
    spec = vim.vm.ConfigSpec(changeVersion=change_version, extraConfig=options({key: text}))
    doing = f"write {key} of the VM {moref} ({s})"
    faults.at("cursor-writing")
    try:
        s.run(doing, lambda: s.vm(moref).ReconfigVM_Task(spec), wait)
    except (Conflict, VcenterUnreachable) as err:
        # The answer to this write, or to an earlier one of the same text, may have been lost: the nonce decides.
        with refused_to(doing):
            s.settle(s.vm(moref), wait)
        version, held = _read_back(s, moref, key)
        if held != text or not text:
            raise err
        return version
    faults.at("cursor-written")
    version, held = _read_back(s, moref, key)
    if held != text:
        raise Conflict(f"{key} of the VM {moref} was written, but something else is read back ({s}): read it again")
    return version


def _read_back(s: Session, moref: str, key: str) -> tuple[str, str]:
    with refused_to(f"read {key} of the VM {moref} back ({s})"):
        values = s.read(s.vm(moref), "config.changeVersion", "config.extraConfig")
    if "config.changeVersion" not in values:
        raise Transient(f"{s} has no configuration of the VM {moref} at the moment; it is out of reach")
    return str(values["config.changeVersion"]), notes_of(values.get("config.extraConfig")).get(key, "")


def release(s: Session, state: VmState, *, wait: float = WAIT) -> None:
    """Take every mark of ours off the VM: it is nobody's replica any more. Its disks and its snapshots stay.

    A compare-and-set as `write_cursor`; a VM without marks is left as it is.
    """
    moref = state.identity.moref
    if state.notes:
        spec = vim.vm.ConfigSpec(
            changeVersion=state.change_version, extraConfig=options(dict.fromkeys(sorted(state.notes), ""))
        )
        if state.config.annotation.startswith(ANNOTATION):
            spec.annotation = "Was kept as a replica by Understudy, and is an ordinary VM now"
        s.run(f"take our marks off {state.identity.name} ({s})", lambda: s.vm(moref).ReconfigVM_Task(spec), wait)
    if state.witness:
        set_witness(s, moref, "")


def content_evidence(state: VmState) -> str:
    """Digest over the disks' identities and contents: equal = nobody wrote to a disk. "" = vCenter gives no evidence.

    vSphere: two disks with the same contentId that are not being written hold the same data.
    """
    if any(not disk.content_id for disk in state.config.disks):
        return ""
    lines = sorted([disk.id, disk.content_id] for disk in state.config.disks)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


def disk_binding(state: VmState) -> str:
    """Digest over the disks' identities alone: a clone's or restored VM's differs."""
    return hashlib.sha256(json.dumps(sorted(d.id for d in state.config.disks)).encode()).hexdigest()[:32]


def set_witness(s: Session, moref: str, text: str) -> None:
    """Write our custom attribute, which a revert of the VM leaves alone; the attribute is made on first use."""
    if len(text) > WITNESS_LIMIT:
        raise BadInput(f"a custom attribute holds {WITNESS_LIMIT} characters, not {len(text)}")
    manager = s.content.customFieldsManager
    with refused_to(f"write the custom attribute {WITNESS} of the VM {moref} ({s})"):
        key = _witness_key(s)
        if key is None:
            try:
                key = manager.AddCustomFieldDef(WITNESS, vim.VirtualMachine).key
            except vim.fault.DuplicateName:
                key = _witness_key(s)  # another worker made it meanwhile
        manager.SetField(s.vm(moref), key, text)


def _witness_key(s: Session) -> int | None:
    fields = s.read(s.content.customFieldsManager, "field").get("field") or ()
    return next((f.key for f in fields if f.name == WITNESS), None)


# --- hardware ---------------------------------------------------------------------------------------------------


def change_hardware(
    s: Session,
    moref: str,
    changes: Sequence[HardwareChange],
    point: VmConfig,
    change_version: str,
    *,
    provisioning: Provisioning = "thin",
    made: Mapping[str, NewDisk] | None = None,
    keep: Collection[str] = (),
    wait: float = WAIT,
) -> str:
    """Remove, add and grow disks, so that the replica's follow `point`, the source's configuration; the change version.

    Changes name disks by their ids on the source. An added disk is empty: also one that is removed in the same list.
    How and where one is made says `made` by its id; else it is beside the VM, as `provisioning` says. Of a removed disk
    that `keep` names the files stay.
    A compare-and-set as `write_cursor`; `Refused` while the VM runs or has snapshots.
    """
    with refused_to(f"wait for what is under way at the VM {moref} ({s})"):
        s.settle(s.vm(moref), wait)  # an earlier change whose answer was lost may still be at work
    state = vm_state(s, moref)
    token = _token(changes, change_version)
    last = state.notes.get(_HARDWARE, "")
    if last == token or not changes:
        return state.change_version
    _may_change(s, state, change_version, resumed=last == f"{token}-removed")
    removed = [c for c in changes if c.kind == "remove disk"]
    others = [c for c in changes if c.kind != "remove disk"]
    # In two steps, because a disk may be replaced by another one in the same place.
    if removed and last != f"{token}-removed":
        said = f"{token}-removed" if others else token
        _reconfigure(s, state, removed, point, said, ({}, provisioning), wait, keep)
        state = vm_state(s, moref)
        faults.at("disks-removed")
    if others:
        _reconfigure(s, state, others, point, token, (made or {}, provisioning), wait)
        state = vm_state(s, moref)
    disk_map(state)
    return state.change_version


def _token(changes: Sequence[HardwareChange], change_version: str) -> str:
    return hashlib.sha256(json.dumps([change_version, *(c.model_dump() for c in changes)]).encode()).hexdigest()[:32]


def _may_change(s: Session, state: VmState, change_version: str, *, resumed: bool) -> None:
    name = state.identity.name
    if not resumed and state.change_version != change_version:
        raise Conflict(f"{name} at {s} was changed meanwhile: read it again before its disks are changed")
    if state.power != "poweredOff":
        raise Refused(f"{name} at {s} is {state.power}: the disks of a replica are changed only while it is off")
    if state.snapshots:
        names = ", ".join(node.name for node in state.snapshots)
        raise Refused(f"{name} at {s} has snapshots ({names}): a revert would undo a change of its disks; remove them")


def _reconfigure(
    s: Session,
    state: VmState,
    changes: Sequence[HardwareChange],
    point: VmConfig,
    token: str,
    made: tuple[Mapping[str, NewDisk], Provisioning],
    wait: float,
    keep: Collection[str] = (),
) -> None:
    places: dict[str, str] = json.loads(state.notes.get(DISKS, "{}"))
    here = disk_map(state)
    taken = {*places.values(), *(place_of(disk, state.config.controllers) for disk in state.config.disks)}
    devices: list[Any] = []
    added = []
    for change in changes:
        disk = here.get(change.disk)
        if change.kind == "add disk":
            new = next((d for d in point.disks if d.id == change.disk), None)
            if new is None:
                raise BadInput(f"{change.label} is to be added but is not in the configuration of the point")
            new = free_place(new.model_copy(update={"capacity": change.capacity}), point.controllers, taken)
            taken.add(place_of(new, point.controllers))
            added.append(new)
            places[change.disk] = place_of(new, point.controllers)
        elif disk is None:
            raise Conflict(f"{state.identity.name} at {s} has no disk for {change.label}: read it again")
        elif change.kind == "remove disk":
            devices.append(_edited(s, state, disk.key, "remove", keep=change.disk in keep))
            del places[change.disk]
        elif change.capacity < disk.capacity:
            raise BadInput(f"{change.label} cannot shrink from {disk.capacity} to {change.capacity}: remove and add it")
        else:
            devices.append(_edited(s, state, disk.key, "edit", capacity=change.capacity))
    devices += storage(added, point.controllers, *made, present=state.config.controllers)
    spec = vim.vm.ConfigSpec(
        changeVersion=state.change_version,
        deviceChange=devices,
        extraConfig=options({DISKS: disk_places(places), _HARDWARE: token}),
    )
    what = ", ".join(f"{c.kind} {c.label}" for c in changes)
    s.run(f"{what} of {state.identity.name} ({s})", lambda: s.vm(state.identity.moref).ReconfigVM_Task(spec), wait)


def _edited(
    s: Session, state: VmState, key: int, operation: str, *, capacity: int | None = None, keep: bool = False
) -> Any:
    with refused_to(f"read the disks of {state.identity.name} ({s})"):
        devices = s.read(s.vm(state.identity.moref), "config.hardware.device")["config.hardware.device"]
    device = next((d for d in devices if d.key == key), None)
    if device is None:
        raise Conflict(f"{state.identity.name} at {s} has lost the device {key}: read it again")
    if capacity is not None:
        device.capacityInBytes, device.capacityInKB = capacity, capacity // 1024
    files = "destroy" if operation == "remove" and not keep else None
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device, fileOperation=files)


def destroy(s: Session, moref: str, *, wait: float = WAIT) -> None:
    """Remove a replica and its files; one that is gone is fine. `Foreign` for a VM without our mark."""
    vm = s.vm(moref)
    with refused_to(f"remove the VM {moref} ({s})"):
        try:
            values = s.read(vm, "name", "config.extraConfig")
            if MARK not in notes_of(values.get("config.extraConfig")):
                raise Foreign(
                    f"{values.get('name', moref)} at {s} was not built by Understudy and is not removed by it"
                )
            s.wait(vm.Destroy_Task(), wait)
        except vmodl.fault.ManagedObjectNotFound as err:
            if err.obj is not None and err.obj._GetMoId() != moref:
                raise Conflict(f"{s}: {words(err)} while the VM {moref} was removed: look again") from err
