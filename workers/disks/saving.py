"""A disk that is written, whose old content goes to an undo file first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workers.disks.undo_file import UndoFile
from workers.extents import Extents
from workers.point import BATCH, Piece, Reader, Writer


class ReadWriter(Reader, Writer, Protocol):
    """A disk that is written where it is."""


class Saving:
    """Its user holds the lock on the range [start, end) of the disk, and opened the undo file after he got it."""

    def __init__(self, disk: ReadWriter, undo: UndoFile, start: int, end: int) -> None:
        self._disk = disk
        self._undo = undo
        self._saved = undo.covered.clip(start, end)
        self.size = disk.size

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._disk.allocated(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        return self._disk.read(batch)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Ranges that an earlier record covers are left out: what they hold now may be half of a later state."""
        fresh = Extents.of([(piece.offset, piece.length) for piece in pieces]) - self._saved
        for batch in fresh.batches(BATCH):
            self._undo.save(self._disk.read(batch))
        self._disk.write(pieces)

    def flush(self) -> None:
        self._disk.flush()

    def close(self) -> None:
        self._undo.close()
        self._disk.close()
