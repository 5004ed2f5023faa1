"""Another VM's disks, attached to the worker's own VM while they are read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from pyVmomi import vim, vmodl

from workers.errors import ConfigError, DiskBusy, DiskLocked, Refused
from workers.vsphere.refusals import as_error, refused_to
from workers.vsphere.session import WAIT, Session

_device = vim.vm.device
#: units of a SCSI controller; 7 is the controller itself
_UNITS = [unit for unit in range(16) if unit != 7]
#: where Linux says which machine it is
_PRODUCT = Path("/sys/class/dmi/id/product_uuid")


def own_uuid() -> str | None:
    """The BIOS UUID of the machine that this is, if it may be read (by root only)."""
    try:
        return _PRODUCT.read_text().strip().lower() or None
    except OSError:
        return None


def own_vm(s: Session, uuid: str | None) -> str:
    """The moref of the VM with this BIOS UUID. Raises `ConfigError`."""
    if uuid is None:
        raise ConfigError(
            f"this worker does not know which VM it is ({_PRODUCT} can not be read); say it in sites.{s.name}.hotadd.vm"
        )
    try:
        plain = UUID(uuid)
    except ValueError as err:
        raise ConfigError(f"sites.{s.name}.hotadd.vm = {uuid!r} is no UUID: give the VM's BIOS UUID") from err
    # From SMBIOS 2.6 on the first three parts stand the other way round in the guest than in vCenter.
    with refused_to(f"look for the worker's own VM ({s})"):
        for wanted in (plain, UUID(bytes=plain.bytes_le)):
            if (found := s.content.searchIndex.FindByUuid(None, str(wanted), True, False)) is not None:
                return str(found._GetMoId())
    raise ConfigError(f"{s} has no VM with the BIOS UUID {uuid}: this worker is no VM of that vCenter")


class OwnVm:
    """The worker's VM as a place for one disk more: workers.disks.hotadd.Slot."""

    def __init__(self, s: Session, moref: str, file: str) -> None:
        self.file = file
        self._session = s
        self._moref = moref

    def attach(self, *, write: bool) -> str:
        """Attach the disk; its UUID, by which the guest finds it. One that is attached already is taken off first: the
        caller holds this machine's lock for it, so it was left behind.

        What is only read is attached so that nothing written to it would stay, what is written so that snapshots of the
        worker do not touch it (VMware, "Virtual Disk Transport Methods").
        """
        self.detach()
        self._add("independent_persistent" if write else "independent_nonpersistent")
        found = self._found()
        uuid = str(getattr(found.backing, "uuid", None) or "") if found is not None else ""
        if not uuid:
            raise Refused(f"{self._session} gives no UUID for {self.file}, so this worker can not find its device")
        return uuid

    def _add(self, mode: str) -> None:
        """At a free place. Another process of this worker may take it first: then at the next one."""
        while True:
            place = self._free_place()
            disk = _device.VirtualDisk(
                key=-1,
                controllerKey=place[0],
                unitNumber=place[1],
                backing=_device.VirtualDisk.FlatVer2BackingInfo(fileName=self.file, diskMode=mode),
            )
            try:
                return self._reconfigure("attach", _device.VirtualDeviceSpec(operation="add", device=disk))
            except Refused:
                if place not in self._taken(self._devices()):
                    raise

    def detach(self) -> None:
        """The disk's files stay: `fileOperation` is left unset, for "destroy" would delete them."""
        found = self._found()
        if found is not None:
            self._reconfigure("detach", _device.VirtualDeviceSpec(operation="remove", device=found))

    def _devices(self) -> list[Any]:
        with refused_to(f"read the devices of the worker's VM ({self._session})"):
            vm = self._session.vm(self._moref)
            return list(self._session.read(vm, "config.hardware.device").get("config.hardware.device") or [])

    def _found(self) -> Any:
        disks = (d for d in self._devices() if isinstance(d, _device.VirtualDisk))
        return next((d for d in disks if getattr(d.backing, "fileName", None) == self.file), None)

    @staticmethod
    def _taken(devices: list[Any]) -> set[tuple[int, int]]:
        return {(d.controllerKey, d.unitNumber) for d in devices if d.controllerKey is not None}

    def _free_place(self) -> tuple[int, int]:
        devices = self._devices()
        used = self._taken(devices)
        for controller in (d for d in devices if isinstance(d, _device.VirtualSCSIController)):
            for unit in _UNITS:
                if (controller.key, unit) not in used:
                    return controller.key, unit
        raise DiskBusy(
            "the worker's own VM has no free place on a SCSI controller; give it another paravirtual SCSI controller, "
            "or let fewer tasks run on it at once"
        )

    def _reconfigure(self, doing: str, change: Any) -> None:
        what = f"{doing} {self.file} {'to' if doing == 'attach' else 'from'} the worker's VM ({self._session})"
        spec = vim.vm.ConfigSpec(deviceChange=[change])
        try:
            self._session.wait(self._session.vm(self._moref).ReconfigVM_Task(spec), WAIT)
        except (vim.fault.FileLocked, vim.fault.CannotAccessFile) as err:
            raise DiskLocked(f"{self.file} is in use by a host or another worker's VM; it is tried again") from err
        except vmodl.MethodFault as err:
            raise as_error(err, what) from err
