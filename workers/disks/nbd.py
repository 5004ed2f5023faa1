"""The carrier `nbd`: a disk by VMware's own library, which nbdkit brings to a socket (disks/nbdkit.py).

Whoever opens a disk to write it has it alone: VMware's library locks it on its host. So what is held is always the
whole disk, and the lock ends with the process that opened it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, Protocol

import numpy as np

from workers.disks.alone import alone
from workers.disks.carrier import Held
from workers.disks.described import Described, Text
from workers.disks.libnbd import LARGEST, Connection, Request
from workers.disks.nbdkit import Export, Process
from workers.errors import DiskBusy
from workers.extents import Extents
from workers.point import Piece, check
from workers.settings.places import CarrierName

#: seconds between two tries to open a disk that somebody has
_AGAIN = 0.5
#: connections to one server at most
_CONNECTIONS = 4
#: pieces below this size that lie side by side are sent as one request: each request costs VMware's library the same
_SMALL = 256 << 10


class Served(Protocol):
    """What serves a disk at a socket: a `Process` of ours."""

    def client(self, connect: Callable[[str], Connection]) -> Connection: ...

    def error(self, why: str) -> Exception: ...

    def close(self, *, served: bool = False) -> None: ...


class Opened:
    """A disk that is served: the process that does it, and the connections to it."""

    def __init__(self, process: Served) -> None:
        self._process = process
        self._mine = threading.local()
        self._guard = threading.Lock()
        self._threads = 0
        try:
            self._wires = [self._process.client(Connection)]
        except BaseException:
            self._process.close()
            raise
        self.size = self._wires[0].size

    @property
    def wire(self) -> Connection:
        """This thread's connection, where the server lets several work on one disk; VMware's library does not."""
        first = self._wires[0]
        if not first.several or hasattr(self._mine, "wire"):
            return getattr(self._mine, "wire", first)
        with self._guard:
            number = self._threads % _CONNECTIONS
            if number == len(self._wires):
                self._wires.append(self._process.client(Connection))
            self._threads += 1
        self._mine.wire = self._wires[number]
        return self._wires[number]

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """Turn an error number into what VMware's library said."""
        try:
            yield
        except OSError as err:
            raise self._process.error(f"{doing}: {err.strerror or err}") from err

    def close(self) -> None:
        """First the client, then the process: nbdkit ends when its clients have hung up."""
        for wire in self._wires:
            wire.close()
        self._process.close(served=True)


class NbdReader:
    """What the disk holds, over one connection; several threads take turns, each with its whole batch in flight."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.size = opened.size

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        """As VMware's library tells it, which takes a call for each GiB; all of it where it does not."""
        end = self.size if end is None else min(end, self.size)
        with self._opened.told("asking what is allocated"):
            found = self._opened.wire.allocated(start, end)
        return (Extents.whole(self.size) if found is None else found).clip(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        wanted = [Request(offset, length, np.empty(length, np.uint8).data) for offset, length in batch]
        with self._opened.told(f"reading at {batch[0][0] if batch else 0}"):
            self._opened.wire.read(wanted)
        return [Piece(offset, length, memory) for offset, length, memory in wanted]

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        end, wanted = 0, []
        for offset, length in batch:
            wanted.append(Request(offset, length, into[end : end + length]))
            end += length
        with self._opened.told(f"reading at {batch[0][0] if batch else 0}"):
            self._opened.wire.read(wanted)

    def close(self) -> None:
        self._opened.close()


class NbdWriter(NbdReader):
    """A disk that is held. Closing it keeps it held: the lock goes with the holder."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._broken: Exception | None = None

    def write(self, pieces: Sequence[Piece]) -> None:
        check(pieces, self.size)
        with self._opened.told(f"writing at {pieces[0].offset if pieces else 0}"):
            self._opened.wire.write(list(_joined(pieces)))

    def flush(self) -> None:
        """The host has it on its storage. After one failure all later calls fail: what was lost is told only once."""
        if self._broken is not None:
            raise self._broken
        try:
            with self._opened.told("flushing"):
                self._opened.wire.flush()
        except Exception as err:
            self._broken = err
            raise

    def close(self) -> None:
        """The holder closes the disk."""


def _joined(pieces: Sequence[Piece]) -> Iterator[Request]:
    """Small neighbours as one request, up to the largest that VMware's library takes."""
    run: list[bytes | memoryview] = []
    start = total = 0
    for piece in pieces:
        small = piece.data is not None and piece.length < _SMALL
        if run and (not small or piece.offset != start + total or total + piece.length > LARGEST):
            yield Request(start, total, memoryview(b"".join(run)))
            run, total = [], 0
        if piece.data is None:
            yield Request(piece.offset, piece.length, None)
        elif not small:
            yield Request(piece.offset, piece.length, memoryview(piece.data).cast("B"))
        else:
            start = start if run else piece.offset
            run.append(piece.data)
            total += piece.length
    if run:
        yield Request(start, total, memoryview(b"".join(run)))


class Nbd:
    """One disk by VMware's library."""

    name: ClassVar[CarrierName] = "nbd"
    whole: ClassVar[bool] = True

    def __init__(self, export: Export, descriptor: Text, *, frozen: bool = False) -> None:
        """`frozen`: another file stands on this one."""
        self.export = export
        self._descriptor = descriptor
        self._frozen = frozen

    def reader(self, *, fresh: bool = False) -> NbdReader:
        """VMware's library keeps nothing between two openings: what is read is always what the host has."""
        return NbdReader(Opened(Process(self.export, write=False)))

    def hold(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[Held]:
        """Zeroes are written as zeroes: VMware's library has no other way."""
        return alone(self._descriptor, lambda: self._alone(wait), lambda opened, holes: NbdWriter(opened))

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        """Nothing to do: VMware's library lets nobody write a disk while it is open to be read."""
        return nullcontext()

    @contextmanager
    def still(self, *, wait: float) -> Iterator[None]:
        """Opened once, and let go: a host that has the disk open would refuse to snapshot or to change the VM. Who had
        it before is gone then, and who comes later finds his fence lower. A disk under a snapshot is opened to be read:
        that waits for writers too, and to write is refused on vVols and on vSAN."""
        self._alone(wait, write=not self._frozen).close()
        yield

    def _alone(self, wait: float, *, write: bool = True) -> Opened:
        deadline = time.monotonic() + wait
        while True:
            try:
                return Opened(Process(self.export, write=write))
            except DiskBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN)

    def content_id(self) -> str:
        return Described(self._descriptor).cid

    def renew(self, fresh: str) -> None:
        Described(self._descriptor).renew(fresh)

    def capacity(self) -> int:
        return Described(self._descriptor).size
