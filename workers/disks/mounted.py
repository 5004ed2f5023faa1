"""The carrier `file` of one disk: its datastore is mounted on this worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from workers.disks.file import Descriptor, FileLock, FileReader, FileWriter
from workers.disks.saving import ReadWriter
from workers.settings.places import CarrierName


class Mounted:
    """Ranges are locked against other workers; the lock is gone with its process, and vCenter does not see it."""

    name: ClassVar[CarrierName] = "file"
    whole: ClassVar[bool] = False

    def __init__(self, descriptor: Path) -> None:
        self.path = descriptor

    def reader(self, *, fresh: bool = False) -> FileReader:
        reader = FileReader(self.path)
        if fresh:
            reader.forget_cached()
        return reader

    @contextmanager
    def hold(self, offset: int, length: int, *, wait: float) -> Iterator[Mounted]:
        with FileLock(Descriptor(self.path).flat).lock(offset, length, wait=wait):
            yield self

    def writer(self, *, holes: bool) -> ReadWriter:
        return FileWriter(self.path, holes=holes)

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        return FileLock(Descriptor(self.path).flat).lock(offset, length, wait=wait)

    def still(self, *, wait: float) -> AbstractContextManager[None]:
        return FileLock(Descriptor(self.path).flat).lock(0, 0, wait=wait)

    def content_id(self) -> str:
        return Descriptor(self.path).cid

    def renew(self, fresh: str) -> None:
        Descriptor(self.path).renew_cid(fresh)

    def capacity(self) -> int:
        return Descriptor(self.path).size
