"""What the contract of all carriers is tried on: one disk as files, and each carrier's way to it."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.disks.standin import Standin
from tests.disks.test_file import make
from workers.disks.carrier import Carrier
from workers.disks.described import Described
from workers.disks.hotadd import Hotadd
from workers.disks.memory import MemoryDisk
from workers.disks.mounted import Mounted
from workers.disks.nbd import Nbd
from workers.disks.nbdkit import Export
from workers.errors import NotFound, Refused
from workers.settings.places import CarrierName

MIB = 1 << 20
SIZE = 8 * MIB


class FileText:
    """A descriptor that is fetched and put back whole, as through vCenter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = f"[ds1] {path.parent.name}/{path.name}"

    def get(self) -> str:
        try:
            return self.path.read_text("latin-1")
        except FileNotFoundError as err:
            raise NotFound(f"{self.file} is not there") from err

    def put(self, text: str) -> None:
        self.path.write_text(text, "latin-1")


class Looked(FileText):
    """A descriptor that is asked for while its disk may be attached."""

    slot: Plugged

    def get(self) -> str:
        self.slot.look()
        return super().get()


class Plugged:
    """The worker's VM with a place for the disk: what is attached shows as a device, the flat file or a loop device.

    As a host it gives a disk another content id at the first write; that there was one shows when somebody looks.
    """

    def __init__(self, text: FileText, devices: Path, loop: bool) -> None:
        self.file = text.file
        self._text = text
        self._loop = loop
        self._uuid = f"6000C29{abs(hash(text.file)) % (1 << 100):025x}"
        self._link = devices / f"wwn-0x{self._uuid.lower()}"
        self._was: bytes | None = None
        self._flat = text.path.with_name(text.path.stem + "-flat.vmdk")

    def attach(self, *, write: bool) -> str:
        assert not self._link.is_symlink(), "attached twice"
        if write and f'parentFileNameHint="{self._text.path.name}"' in _texts(self._flat.parent):
            raise Refused(f"{self.file} is read-only: a snapshot stands on it, on a vVol or on vSAN")
        self._was = self._flat.read_bytes() if write else None
        self._link.symlink_to(losetup("--find", "--show", str(self._flat)) if self._loop else self._flat)
        return self._uuid

    def look(self) -> None:
        if self._was is not None and self._was != self._flat.read_bytes():
            self._was = None
            FileText.put(
                self._text, re.sub(r"(?m)^CID=.*", f"CID={random.getrandbits(31):08x}", FileText.get(self._text))
            )

    def detach(self) -> None:
        if self._link.is_symlink():
            if self._loop:
                losetup("--detach", str(self._link.readlink()))
            self._link.unlink()
            self.look()


def _texts(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.vmdk") if "-flat" not in path.name)


def losetup(*arguments: str) -> str:
    done = subprocess.run(["losetup", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    return done.stdout.strip()


class InMemory:
    """workers.disks.memory as a carrier."""

    name: ClassVar[CarrierName] = "file"
    whole: ClassVar[bool] = False

    def __init__(self, text: FileText, disk: MemoryDisk) -> None:
        self._text = text
        self._disk = disk

    def reader(self, *, fresh: bool = False) -> MemoryDisk:
        self._text.get()
        return self._disk

    @contextmanager
    def hold(self, offset: int, length: int, *, wait: float) -> Iterator[InMemory]:
        with self._disk.lock(offset, length, wait=wait):
            yield self

    def writer(self, *, holes: bool) -> MemoryDisk:
        Described(self._text).check_base()
        return self._disk

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        return self._disk.lock(offset, length, wait=wait)

    def still(self, *, wait: float) -> AbstractContextManager[None]:
        return self._disk.lock(0, 0, wait=wait)

    def content_id(self) -> str:
        return Described(self._text).cid

    def renew(self, fresh: str) -> None:
        Described(self._text).renew(fresh)

    def capacity(self) -> int:
        return Described(self._text).size


class Bench:
    """A VM's folder on a datastore, and a carrier to each disk in it."""

    def __init__(self, carrier: str, folder: Path) -> None:
        self.carrier = carrier
        self.folder = folder / "ds1" / "vm"
        self.folder.mkdir(parents=True)
        self.devices = folder / "by-id"
        self.devices.mkdir()
        self._memory: dict[str, MemoryDisk] = {}
        if carrier == "nbd":
            login = {"user": "u", "password": "p", "thumbprint": "AA:BB"}
            self.standin = Standin(folder / "vddk", {"ds1": folder / "ds1"}, **login)

    def disk(self, name: str = "a", parent: str = "", *, frozen: bool = False) -> Carrier:
        descriptor = self.folder / f"{name}.vmdk"
        if not descriptor.exists():
            make(self.folder, name, SIZE, parent)
        return self.to(descriptor, frozen=frozen)

    def to(self, descriptor: Path, *, frozen: bool = False) -> Carrier:
        text = FileText(descriptor)
        if self.carrier == "file":
            return Mounted(descriptor)
        if self.carrier == "memory":
            return InMemory(text, self._memory.setdefault(descriptor.stem, MemoryDisk(bytes(SIZE))))
        if self.carrier == "nbd":
            login = {"server": "127.0.0.1", "port": 443, "user": "u", "password": lambda: "p", "thumbprint": "AA:BB"}
            export = Export(self.standin.library, vm="vm-1", file=text.file, run="run-1", **login)
            return Nbd(export, text, frozen=frozen)
        looked = Looked(descriptor)
        looked.slot = Plugged(text, self.devices, self.carrier == "hotadd loop")
        return Hotadd(looked.slot, looked, site=str(self.folder), devices=self.devices, frozen=frozen)

    @property
    def content(self) -> bytes:
        """What the disk "a" holds, past its carrier."""
        return self._memory["a"].durable if self.carrier == "memory" else (self.folder / "a-flat.vmdk").read_bytes()

    def put(self, offset: int, data: bytes) -> None:
        if self.carrier == "memory":
            self._memory["a"].content[offset : offset + len(data)] = data
        else:
            with open(self.folder / "a-flat.vmdk", "r+b") as flat:
                flat.seek(offset)
                flat.write(data)
