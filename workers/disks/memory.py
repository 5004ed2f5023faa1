"""A disk in memory: for tests, and for trying things in a REPL. Obeys the same contract as the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from workers.errors import DiskBusy, UnderstudyError
from workers.extents import Extents
from workers.point import Piece, check


class MemoryDisk:
    """Reader, Writer and RangeLock over one bytearray; `written` is what flush has made durable."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.content = bytearray(content)
        self.durable = bytes(content)
        self._locks: list[tuple[int, int]] = []
        self._guard = threading.Lock()

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return Extents.whole(self.size).clip(start, self.size if end is None else end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        for offset, length in batch:
            if offset + length > self.size:
                raise UnderstudyError(f"{offset}+{length} is beyond the disk's {self.size} bytes")
        return [Piece(o, n, bytes(self.content[o : o + n])) for o, n in batch]

    def write(self, pieces: Sequence[Piece]) -> None:
        check(pieces, self.size)
        for piece in pieces:
            data = bytes(piece.length) if piece.data is None else piece.data
            self.content[piece.offset : piece.offset + piece.length] = data

    def flush(self) -> None:
        self.durable = bytes(self.content)

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def lock(self, offset: int, length: int, *, wait: float) -> Iterator[None]:
        mine = (offset, offset + length if length else 1 << 62)
        with self._guard:
            if any(a < mine[1] and mine[0] < b for a, b in self._locks):
                raise DiskBusy(f"the range {mine} is locked")
            self._locks.append(mine)
        try:
            yield
        finally:
            with self._guard:
                self._locks.remove(mine)
