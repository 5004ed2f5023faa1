"""The recovery site's vCenter in memory: a few functions of workers/vsphere are replaced, their callers are real.

Kept is what the protocol leans on: a change version that makes each reconfiguration a compare-and-set, snapshots under
which writes go to a delta, content ids that change with the data, hardware that a snapshot holds fast. The disks are
small files on tmpfs with real descriptors: locks, content ids, refusals and undo files are the file carrier's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import workers.replica
import workers.undo
from workers import faults
from workers.disks.file import Descriptor
from workers.errors import Conflict, NotFound, Refused
from workers.models import Cursor, Disk, HardwareChange, SnapshotNode, VmConfig, VmIdentity, VmState, VmSummary
from workers.replica import CURSOR
from workers.settings import Site
from workers.vsphere import inventory, replica, snapshots
from workers.vsphere.building import (
    DISKS,
    MARK,
    NewDisk,
    ReplicaSpec,
    disk_map,
    disk_places,
    free_place,
    place_of,
    replicated,
)

_DESCRIPTOR = """# Disk DescriptorFile
version=1
CID={cid}
parentCID={parent}
createType="{kind}"
{hint}RW {sectors} VMFS "{flat}"
"""


@dataclass
class Layer:
    """A snapshot: what a revert brings back, and what was written over the frozen disks since."""

    node: SnapshotNode
    notes: dict[str, str]
    disks: list[Disk]
    #: disk id -> offset -> bytes
    written: dict[str, dict[int, bytes]] = field(default_factory=dict)


@dataclass
class Vm:
    identity: VmIdentity
    config: VmConfig
    disks: list[Disk]
    notes: dict[str, str]
    version: int = 1
    power: str = "poweredOff"
    layer: Layer | None = None
    witness: str = ""


class MemoryVcenter:
    """Also the session of each worker: it knows the vCenter's id."""

    def __init__(self, folder: Path, alive: Callable[[], None], site: Site) -> None:
        self.vcenter, self.name = "v-dr", "dr"
        self.site = site
        self.folder = folder
        self.alive = alive
        self.vms: dict[str, Vm] = {}
        #: every cursor that was written, in order
        self.cursors: list[Cursor] = []
        self._ids: dict[str, str] = {}
        self._count = 0
        self._rng = random.Random(1)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in (workers.replica, workers.undo):
            patch.setattr(module, "connect", lambda *_: self)
        for module, names in (
            (inventory, ("find_uuid", "find_vm", "vm_state", "nvram_path")),
            (replica, ("create", "write_cursor", "set_witness", "change_hardware")),
        ):
            for name in names:
                patch.setattr(module, name, self._alive(getattr(self, name)))
        patch.setattr(snapshots, "create", self._alive(self.take_snapshot))
        patch.setattr(snapshots, "remove", self._alive(self.remove_snapshot))

    def _alive(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(session: MemoryVcenter, *args: Any, **given: Any) -> Any:
            assert session is self
            self.alive()
            return call(*args, **given)

        return guarded

    # --- what workers ask -------------------------------------------------------------------------------------

    def find_uuid(self, uuid: str) -> VmSummary | None:
        return next((_summary(vm) for vm in self.vms.values() if vm.identity.instance_uuid == uuid), None)

    def find_vm(self, name: str) -> VmSummary:
        for vm in self.vms.values():
            if vm.identity.name == name:
                return _summary(vm)
        raise NotFound(f"there is no VM {name!r}")

    def nvram_path(self, _moref: str) -> None:
        return None

    def vm_state(self, moref: str) -> VmState:
        vm = self.vms[moref]
        return VmState(
            identity=vm.identity,
            config=vm.config.model_copy(update={"disks": tuple(self._shown(vm, disk) for disk in vm.disks)}),
            power=vm.power,  # type: ignore[arg-type]
            change_version=str(vm.version),
            change_tracking=False,
            consolidation_needed=False,
            snapshots=(vm.layer.node,) if vm.layer is not None else (),
            notes=dict(vm.notes),
            witness=vm.witness,
            vmx=f"[ds1] {vm.identity.name}/{vm.identity.name}.vmx",
        )

    def _shown(self, vm: Vm, disk: Disk) -> Disk:
        """The live disk: under a snapshot it is the delta, with the delta's content id."""
        file = disk.file if vm.layer is None else _delta(disk.file)
        parent = None if vm.layer is None else disk.file
        return disk.model_copy(update={"file": file, "parent": parent, "content_id": self._cid(file)})

    # --- what workers do --------------------------------------------------------------------------------------

    def create(self, spec: ReplicaSpec, *, wait: float) -> replica.Replica:
        for moref, vm in self.vms.items():
            if vm.identity.name == spec.name:
                assert vm.notes[MARK] == spec.mark
                return replica.Replica(moref, ())
        moref = f"vm-{len(self.vms) + 1}"
        places = {disk.id: place_of(disk, spec.config.controllers) for disk in replicated(spec)}
        who = VmIdentity(
            site="dr",
            vcenter=self.vcenter,
            instance_uuid=spec.instance_uuid,
            bios_uuid=spec.bios_uuid,
            moref=moref,
            name=spec.name,
        )
        notes = {**spec.notes, MARK: spec.mark, DISKS: disk_places(places)}
        disks = [self._made(spec.name, disk, spec.new_disks.get(disk.id)) for disk in replicated(spec)]
        self.vms[moref] = Vm(who, spec.config, disks, notes)
        self.cursors.append(Cursor.model_validate_json(notes[CURSOR]))
        faults.at("replica-built")
        return replica.Replica(moref, ())

    def write_cursor(self, moref: str, key: str, text: str, change_version: str, *, wait: float) -> str:
        assert key == CURSOR
        faults.at("cursor-writing")
        vm = self._at(moref, change_version)
        vm.notes[key] = text
        self.cursors.append(Cursor.model_validate_json(text))
        vm.version += 1
        faults.at("cursor-written")
        return str(vm.version)

    def set_witness(self, moref: str, text: str) -> None:
        self.vms[moref].witness = text

    def change_hardware(
        self,
        moref: str,
        changes: Sequence[HardwareChange],
        point: VmConfig,
        change_version: str,
        *,
        made: Mapping[str, NewDisk],
        keep: Collection[str],
        wait: float,
    ) -> str:
        vm = self._at(moref, change_version)
        if vm.power != "poweredOff" or vm.layer is not None:
            raise Refused("the disks of a VM that runs or has a snapshot are not changed")
        removed = [change for change in changes if change.kind == "remove disk"]
        for change in removed:
            self._remove(vm, change.disk, keep=change.disk in keep)
        vm.version += 1
        if removed and len(removed) < len(changes):
            faults.at("disks-removed")
            assert vm.layer is None
        for change in changes:
            if change.kind == "add disk":
                self._add(vm, next(d for d in point.disks if d.id == change.disk), change.capacity, made)
            elif change.kind == "grow disk":
                held = disk_map(self.vm_state(moref))[change.disk]
                self._resize(held.file, change.capacity)
                vm.disks = [
                    d.model_copy(update={"capacity": change.capacity}) if d.id == held.id else d for d in vm.disks
                ]
        vm.version += 1
        return str(vm.version)

    def _remove(self, vm: Vm, source: str, *, keep: bool) -> None:
        held = disk_map(self.vm_state(vm.identity.moref))[source]
        places = json.loads(vm.notes[DISKS])
        del places[source]
        vm.notes[DISKS] = disk_places(places)
        vm.disks = [disk for disk in vm.disks if disk.id != held.id]
        if not keep:
            self.flat(held.file).unlink()
            self._path(held.file).unlink()

    def _add(self, vm: Vm, source: Disk, capacity: int, made: Mapping[str, NewDisk]) -> None:
        places = json.loads(vm.notes[DISKS])
        taken = {*places.values(), *(place_of(disk, vm.config.controllers) for disk in vm.disks)}
        placed = free_place(source.model_copy(update={"capacity": capacity}), vm.config.controllers, taken)
        vm.disks = [*vm.disks, self._made(vm.identity.name, placed, made.get(source.id))]
        vm.notes[DISKS] = disk_places({**places, source.id: place_of(placed, vm.config.controllers)})

    def take_snapshot(self, moref: str, name: str, description: str = "", *, quiesce: bool, wait: float) -> Any:
        vm = self.vms[moref]
        if vm.layer is not None:
            assert vm.layer.node.name == name, "the stand-in keeps one snapshot"
            return None
        self._count += 1
        node = SnapshotNode(moref=f"snapshot-{self._count}", name=name, description=description)
        vm.layer = Layer(node, dict(vm.notes), list(vm.disks))
        for disk in vm.disks:
            self._write_delta(disk.file, self._cid(disk.file))
        vm.version += 1
        return None

    def remove_snapshot(self, moref: str, snapshot: str, *, wait: float) -> None:
        vm = self.vms[moref]
        if vm.layer is None or vm.layer.node.moref != snapshot:
            return
        for disk in vm.disks:
            delta = _delta(disk.file)
            with open(self.flat(disk.file), "r+b") as file:
                for offset, data in vm.layer.written.get(disk.id, {}).items():
                    file.seek(offset)
                    file.write(data)
            Descriptor(self._path(disk.file)).renew_cid(self._cid(delta))
            self._path(delta).unlink()
        vm.layer = None
        vm.version += 1

    # --- what people do ---------------------------------------------------------------------------------------

    def boot(self, moref: str, writes: Sequence[tuple[int, int, bytes]]) -> None:
        """Somebody starts the VM, its guest writes (disk, offset, data), and it is shut down again."""
        vm = self.vms[moref]
        for number, offset, data in writes:
            disk = vm.disks[number % len(vm.disks)]
            offset = min(offset, disk.capacity - len(data))
            if vm.layer is not None:
                vm.layer.written.setdefault(disk.id, {})[offset] = data
                self._write_delta(disk.file, self._fresh())
            else:
                with open(self.flat(disk.file), "r+b") as file:
                    file.seek(offset)
                    file.write(data)
                Descriptor(self._path(disk.file)).renew_cid(self._fresh())

    def revert(self, moref: str) -> None:
        """To the snapshot that there is: disks, hardware and extraConfig are as they were then."""
        vm = self.vms[moref]
        assert vm.layer is not None
        vm.notes, vm.disks = dict(vm.layer.notes), list(vm.layer.disks)
        vm.layer.written.clear()
        for disk in vm.disks:
            self._write_delta(disk.file, self._cid(disk.file))
        vm.version += 1

    def frozen(self, moref: str) -> dict[str, bytes]:
        """Disk id -> the bytes of its base file."""
        return {disk.id: self.flat(disk.file).read_bytes() for disk in self.vms[moref].disks}

    # --- files ------------------------------------------------------------------------------------------------

    def _at(self, moref: str, change_version: str) -> Vm:
        vm = self.vms[moref]
        if str(vm.version) != change_version:
            raise Conflict(f"the VM {moref} is at {vm.version}, not at {change_version}: it was changed meanwhile")
        return vm

    def _path(self, file: str) -> Path:
        return self.folder / file.removeprefix("[ds1] ")

    def flat(self, file: str) -> Path:
        return self._path(file.replace(".vmdk", "-flat.vmdk"))

    def _cid(self, file: str) -> str:
        text = self._path(file).read_text()
        return text.partition("\nCID=")[2][:8]

    def _fresh(self) -> str:
        return f"{self._rng.randrange(1, 0xFFFFFFFD):08x}"

    def _made(self, vm: str, disk: Disk, how: NewDisk | None) -> Disk:
        file = how.attach if how is not None else ""
        if not file:
            self._count += 1
            file = f"[ds1] {vm}/disk-{self._count}.vmdk"
            self._ids[file] = f"copy-{self._count}"
            self._path(file).parent.mkdir(exist_ok=True)
            self._resize(file, disk.capacity, self._fresh())
        return disk.model_copy(update={"id": self._ids[file], "file": file})

    def _resize(self, file: str, capacity: int, cid: str | None = None) -> None:
        given = {"parent": "ffffffff", "kind": "vmfs", "hint": "", "sectors": capacity // 512}
        flat = self.flat(file)
        text = _DESCRIPTOR.format(cid=cid or self._cid(file), flat=flat.name, **given)
        self._path(file).write_text(text)
        with open(flat, "ab") as opened:
            opened.truncate(capacity)

    def _write_delta(self, file: str, cid: str) -> None:
        delta, base = self._path(_delta(file)), self._path(file)
        hint = f'parentFileNameHint="{base.name}"\n'
        given = {"parent": self._cid(file), "kind": "vmfsSparse", "hint": hint, "sectors": 8}
        delta.write_text(_DESCRIPTOR.format(cid=cid, flat=delta.name, **given))


def _delta(file: str) -> str:
    return file.replace(".vmdk", "-000001.vmdk")


def _summary(vm: Vm) -> VmSummary:
    return VmSummary(identity=vm.identity, power=vm.power, template=False, folder="")
