"""A reader that its owner keeps open: who was lent it may close it, and nothing happens."""

from __future__ import annotations

from collections.abc import Sequence

from workers.extents import Extents
from workers.gather import fill
from workers.point import Piece, Reader


class Lent:
    """Reads as the reader that it was made of."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.size

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._reader.allocated(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        return self._reader.read(batch)

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        fill(self._reader, batch, into)

    def close(self) -> None:
        """Its owner closes it."""
