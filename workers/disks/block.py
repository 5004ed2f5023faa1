"""A disk as a block device of this machine: read and written like a flat file, without one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from workers.disks.file import FileReader, FileWriter, open_direct, open_file
from workers.errors import Refused


class BlockReader(FileReader):
    """A device that holds at least `capacity` bytes."""

    def __init__(self, device: Path, capacity: int) -> None:
        self.path = device
        self.size = capacity
        self._fd = open_file(device, os.O_RDONLY)
        _check(self._fd, device, capacity)


class BlockWriter(FileWriter):
    """The same, to be written by whoever holds it."""

    def __init__(self, device: Path, capacity: int, *, holes: bool) -> None:
        self.path = device
        self.size = capacity
        self._holes = holes
        self._fd = open_file(device, os.O_RDWR)
        _check(self._fd, device, capacity)
        self._direct = open_direct(device)
        self._mine = threading.local()
        self._broken = None


def _check(fd: int, device: Path, capacity: int) -> None:
    if (found := os.lseek(fd, 0, os.SEEK_END)) < capacity:
        os.close(fd)
        raise Refused(f"the device {device} has {found} bytes, its disk {capacity}: it is another disk's; not used")
