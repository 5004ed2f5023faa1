"""The seam: a Point can be read, a Target can be written, `sync` brings a target up to a point.

Everything that moves bytes is a `Reader` or a `Writer`. Both carry the offset in each call and may be used by several
threads at once; neither keeps a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from workers.extents import Extents

#: What a worker's thread reads, checks and writes at a time: 8 MiB, of which a worker holds a few per thread.
BATCH = 8 << 20


class Piece(NamedTuple):
    """Bytes of a disk at an offset. `data` is None for zeroes, which are neither stored nor sent."""

    offset: int
    length: int
    data: memoryview | bytes | None


class Reader(Protocol):
    """The frozen content of one disk."""

    #: bytes
    size: int

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        """Where data may be from `start` to `end` (None: the disk's); everything else there reads as zeroes. All of it
        where that is not known."""

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        """The bytes of each (offset, length), in order, covering exactly what was asked; ranges may come in parts.

        The memory of a piece belongs to the caller. Raises `StoreDamaged` when a digest does not match, `OSError`
        of the carrier.
        """

    def close(self) -> None: ...


@runtime_checkable
class Filling(Protocol):
    """A `Reader` that reads into memory that it is given: lone blocks of 4 KiB take less than half the time so."""

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        """As `read`, one after the other in `into`, which has exactly their size."""


@runtime_checkable
class Digested(Protocol):
    """A `Reader` that knows digests of its content, so that what equals it need not be read to be known as equal."""

    def undecided(self, held: Sequence[Piece]) -> list[tuple[int, int]]:
        """Of `held`, what another disk has at the same offsets, the parts that no digest proves to be the same."""


class Writer(Protocol):
    """The content of one disk, writable."""

    size: int

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write each piece at its offset; a piece of zeroes must read as zeroes afterwards (hole or written).

        They ascend and do not overlap: what is under way at once has no order. ValueError where they do (`check`)."""

    def flush(self) -> None:
        """All that was written is on stable storage when this returns; after an error none of it may be counted."""

    def close(self) -> None: ...


def check(pieces: Sequence[Piece], size: int) -> None:
    """ValueError unless they ascend, without overlap, within a disk of `size` bytes."""
    end = 0
    for piece in pieces:
        if piece.offset < end:
            raise ValueError(f"{piece.offset}+{piece.length} begins before {end}, where the one before it ends")
        end = piece.offset + piece.length
    if end > size:
        raise ValueError(f"bytes up to {end} are beyond the disk's {size} bytes")


class RangeLock(Protocol):
    """Keeps every other worker out of a range of a disk, or of the whole disk, until the context ends."""

    def lock(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        """Raises `DiskBusy` with the holder, as far as it can be known, after `wait` seconds."""


class Dated(Protocol):
    """A restore point by what it is chosen by: its manifest, or what the catalogue knows of it."""

    @property
    def id(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def data_time(self) -> datetime: ...
