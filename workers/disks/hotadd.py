"""The carrier `hotadd`: the disk is attached to the worker's own VM and is a block device there.

The attachment is the lock: a host lets one VM have a disk that is written. Between the processes of one machine a
file's lock decides; it is gone with its process, and whoever gets it next takes off what was left attached.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar, Protocol

from workers.disks.alone import alone
from workers.disks.block import BlockReader, BlockWriter
from workers.disks.carrier import Held
from workers.disks.described import Described, Text
from workers.errors import CarrierFailed, ConfigError, DiskBusy, UnderstudyError
from workers.settings.places import CarrierName

#: where Linux names disks by their ids, and its SCSI hosts
BY_ID = Path("/dev/disk/by-id")
_HOSTS = Path("/sys/class/scsi_host")
#: seconds until a disk that was attached must show as a device
APPEARS = 60.0


class Slot(Protocol):
    """A place on the worker's VM for one disk."""

    file: str

    def attach(self, *, write: bool) -> str:
        """The disk's UUID."""

    def detach(self) -> None:
        """Its files stay. Nothing happens when it is not attached."""


class Hotadd:
    """One disk by the worker's own VM."""

    name: ClassVar[CarrierName] = "hotadd"
    whole: ClassVar[bool] = True

    def __init__(self, slot: Slot, descriptor: Text, *, site: str, devices: Path = BY_ID) -> None:
        self._slot = slot
        self._descriptor = descriptor
        self._site = site
        self._devices = devices

    def reader(self, *, fresh: bool = False) -> _Attached:
        """Each attachment is a new device, of which this machine remembers nothing."""
        return _Attached(self._slot, self._site, self._devices, self.capacity(), write=False, wait=APPEARS)

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        """Nothing to do: a host lets nobody write a disk that a running VM has."""
        return nullcontext()

    def hold(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[Held]:
        return alone(
            self._descriptor,
            lambda: self._attached(wait),
            lambda attached, holes: BlockWriter(attached.device, attached.size, holes=holes),
        )

    @contextmanager
    def still(self, *, wait: float) -> Iterator[None]:
        """Attached once, and taken off: a disk that a VM has can be neither frozen nor changed."""
        self._attached(wait).close()
        yield

    def _attached(self, wait: float) -> _Attached:
        return _Attached(self._slot, self._site, self._devices, self.capacity(), write=True, wait=wait)

    def content_id(self) -> str:
        return Described(self._descriptor).cid

    def renew(self, fresh: str) -> None:
        Described(self._descriptor).renew(fresh)

    def capacity(self) -> int:
        return Described(self._descriptor).size


class _Attached(BlockReader):
    """A disk from its attachment to its detachment; readable in between."""

    def __init__(self, slot: Slot, site: str, devices: Path, capacity: int, *, write: bool, wait: float) -> None:
        self._slot = slot
        self._fd = -1
        self._lock = _lock(site, slot.file, wait)
        try:
            self.device = _device(devices, slot.attach(write=write), slot.file)
            super().__init__(self.device, capacity)
        except BaseException:
            with suppress(UnderstudyError, OSError):  # the first error is to be told; the next user takes it off
                self._off()
            raise

    def close(self) -> None:
        """A second time does nothing."""
        super().close()
        if self._lock is not None:
            self._off()

    def _off(self) -> None:
        """Forgotten by this machine first, then detached. What could not be detached is told by the file of the lock,
        so that whoever comes next tries again."""
        if (device := getattr(self, "device", None)) is not None:
            _forget(device)
        lock, self._lock = self._lock, None
        try:
            self._slot.detach()
            if lock is not None:
                os.ftruncate(lock, 0)
        finally:
            if lock is not None:
                os.close(lock)


# --- this machine's devices ---------------------------------------------------------------------------------------


def _device(devices: Path, uuid: str, file: str) -> Path:
    """The device with this disk's UUID; waits until the kernel has seen it."""
    link = devices / f"wwn-0x{uuid.replace('-', '').lower()}"
    deadline = time.monotonic() + APPEARS
    pause = 0.01
    while not link.exists():
        if time.monotonic() > deadline:
            raise CarrierFailed(
                f"{file} was attached to this worker's VM and does not show as {link}; set disk.EnableUUID = TRUE for "
                "that VM, and see whether udev runs in it"
            )
        if pause > 0.1:
            _scan()
        time.sleep(pause)
        pause = min(1.0, pause * 2)
    return link.resolve()


def _scan() -> None:
    """Ask the kernel to look at its SCSI hosts: it is told of new disks, but not by every kind of controller."""
    for host in _HOSTS.glob("*/scan"):
        with suppress(OSError):
            host.write_text("- - -\n")


def _forget(device: Path) -> None:
    """Have the kernel drop the device, so that its name and cache do not pass to the next disk."""
    with suppress(OSError):
        if stat.S_ISBLK(device.stat().st_mode):
            (Path("/sys/block") / device.name / "device" / "delete").write_text("1\n")


# --- this machine's locks -----------------------------------------------------------------------------------------


def locks() -> Path:
    return Path(tempfile.gettempdir()) / f"understudy-hotadd-{os.getuid()}"


def _lock(site: str, file: str, wait: float) -> int | None:
    """The descriptor of the locked file that says what is attached."""
    locks().mkdir(mode=0o700, exist_ok=True)
    if locks().lstat().st_uid != os.getuid():  # whoever owns it could have us write to any file, by a link
        raise ConfigError(f"{locks()} belongs to somebody else; remove it")
    path = locks() / hashlib.sha256(f"{site} {file}".encode()).hexdigest()[:32]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as err:
            if time.monotonic() > deadline:
                os.close(fd)
                raise DiskBusy(f"{file} is attached to this worker's VM for another task; it is tried again") from err
        time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"site": site, "file": file}).encode(), 0)
    return fd


def detach_left_behind(site: str, slot: Callable[[str], Slot]) -> list[str]:
    """Take off what dead processes of this machine left attached; sentences of what was done. One that can not be taken
    off does not keep the others attached: its error is raised at the end."""
    done: list[str] = []
    first: UnderstudyError | None = None
    for path in sorted(locks().glob("*")) if locks().exists() else []:
        with open(path, "r+b") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                said = json.loads(opened.read() or b"{}")
            except (BlockingIOError, ValueError):
                continue  # somebody is at it
            if said.get("site") != site:
                continue
            try:
                slot(str(said["file"])).detach()
            except UnderstudyError as err:
                first = first or err
                continue
            opened.truncate(0)
            done.append(f"detached {said['file']} from this worker's VM, where a process that died had left it")
    if first is not None:
        raise first
    return done
