"""A carrier with a limit: so many bytes a second, for all threads of a process together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from workers.extents import Extents
from workers.gather import fill
from workers.point import Piece, Reader, Writer


class Rate:
    """Hands out time. Who is late does not catch up: an idle second is not spent later."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def wait(self, size: int) -> None:
        """Return when `size` more bytes may have been carried."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self._rate
            pause = self._free - time.monotonic()
        if pause > 0:
            time.sleep(pause)


class SlowReader:
    """A reader behind a limit."""

    def __init__(self, reader: Reader, rate: Rate) -> None:
        self._reader = reader
        self._rate = rate
        self.size = reader.size

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._reader.allocated(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        pieces = self._reader.read(batch)
        self._rate.wait(_carried(pieces))
        return pieces

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        fill(self._reader, batch, into)
        self._rate.wait(len(into))

    def close(self) -> None:
        self._reader.close()


class SlowWriter:
    """A writer behind a limit. Zeroes cost nothing: they are not sent."""

    def __init__(self, writer: Writer, rate: Rate) -> None:
        self._writer = writer
        self._rate = rate
        self.size = writer.size

    def write(self, pieces: Sequence[Piece]) -> None:
        self._rate.wait(_carried(pieces))
        self._writer.write(pieces)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


#: by bytes a second and what is carried; one worker process does one task at a time
_rates: dict[tuple[str, int], Rate] = {}


def rate_of(what: str, bytes_per_second: int | None) -> Rate | None:
    """The process's limit for `what`, e.g. a site; None = as fast as it goes."""
    if bytes_per_second is None:
        return None
    return _rates.setdefault((what, bytes_per_second), Rate(bytes_per_second))


def slow_reader(reader: Reader, rate: Rate | None) -> Reader:
    return reader if rate is None else SlowReader(reader, rate)


def slow_writer(writer: Writer, rate: Rate | None) -> Writer:
    return writer if rate is None else SlowWriter(writer, rate)


def _carried(pieces: Sequence[Piece]) -> int:
    return sum(piece.length for piece in pieces if piece.data is not None)
