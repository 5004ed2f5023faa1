"""Reading and writing that give way: storage that answers much more slowly than it did is asked less, and more again
after it.

Halved when it is slow, an eighth more when it is not (as TCP does): several who meet the same storage find their parts
without knowing of one another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from workers.extents import Extents
from workers.gather import fill
from workers.point import Piece, Reader, Writer

#: how much slower than its best a disk must answer to be taken for overloaded
SLOWER = 4.0
#: and at least so many seconds for a request or a MiB: vSphere's own threshold (Storage I/O Control) is 30 ms
LEAST = 0.03
#: of each observation in the mean: some ten decide
WEIGHT = 0.2
#: observations between two changes, so that one has shown before the next
APART = 8
#: the smallest part
LOWEST = 1 / 16
#: what is slow at the smallest part, too, is not slow because of us: its best is forgotten by so much at each change,
#: so that what became slower for good has all of its time again, after some hundred observations
FORGETS = 1.1
#: seconds of one pause at most: a host may take 10 minutes for one answer, and a message has minutes in all
LONGEST = 10.0
#: bytes of a request below which its number counts and not its size
SMALL = 256 << 10
MIB = 1 << 20

T = TypeVar("T", Reader, Writer)


class _Seen:
    """What one kind of work takes: scattered or in a stream. Neither says what the other should take."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self.best = float("inf")
        self.since = 0


class Pace:
    """Which part of the time a disk may be kept busy. No clock: it is told how long things took. For several threads,
    and for all that one process does there: what is slow from a slice's first write on was seen faster before."""

    def __init__(self) -> None:
        self.part = 1.0
        self._lock = threading.Lock()
        self._seen = {True: _Seen(), False: _Seen()}

    def took(self, seconds: float, size: int, requests: int = 1) -> bool:
        """So long, for so many bytes, at so many places of the disk. Whether it was found overloaded just now."""
        cost = seconds / (size / MIB + requests)  # a small one costs about what a MiB does
        with self._lock:
            seen = self._seen[size < requests * SMALL]
            seen.mean = cost if seen.mean is None else (1 - WEIGHT) * seen.mean + WEIGHT * cost
            seen.since += 1
            if seen.since < APART:
                return False
            seen.best = min(seen.best, seen.mean)
            slow = seen.mean > max(LEAST, SLOWER * seen.best)
            if not slow and self.part == 1.0:
                return False
            seen.since = 0
            if slow and self.part == LOWEST:
                seen.best *= FORGETS
            self.part = max(LOWEST, self.part / 2) if slow else min(1.0, self.part + 1 / 8)
            return slow

    def pause(self, seconds: float) -> float:
        """How long to wait after something that took so long."""
        return min(LONGEST, seconds * (1 / self.part - 1))


class _Gentle(Generic[T]):
    """`said` is called once, when the disk was found overloaded for the first time."""

    def __init__(
        self,
        disk: T,
        pace: Pace,
        said: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._disk: T = disk
        self.size = disk.size
        self._pace, self._said, self._clock, self._sleep = pace, said, clock, sleep
        self._told = False

    def close(self) -> None:
        self._disk.close()

    def _after(self, began: float, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing was asked, then nothing is learned: an instant would be the best that there ever was."""
        took, size, requests = self._clock() - began, *_asked(ranges)
        if requests and self._pace.took(took, size, requests) and not self._told:
            self._told = True
            self._said()
        if (pause := self._pace.pause(took)) > 0:
            self._sleep(pause)


class GentleReader(_Gentle[Reader]):
    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._disk.allocated(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        began = self._clock()
        pieces = self._disk.read(batch)
        self._after(began, batch)
        return pieces

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        began = self._clock()
        fill(self._disk, batch, into)
        self._after(began, batch)


class GentleWriter(_Gentle[Writer]):
    def write(self, pieces: Sequence[Piece]) -> None:
        """Of zeroes nothing is learned: a file gives their space back at once, VMware's library sends them all."""
        began = self._clock()
        self._disk.write(pieces)
        sent = all(piece.data is not None for piece in pieces)
        self._after(began, ((piece.offset, piece.length) for piece in pieces) if sent else ())

    def flush(self) -> None:
        self._disk.flush()


def _asked(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(bytes, places): neighbours are one place."""
    size = places = 0
    end = -1
    for offset, length in ranges:
        size, places = size + length, places + (offset != end)
        end = offset + length
    return size, places
