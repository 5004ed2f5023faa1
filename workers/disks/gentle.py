"""A writer that gives way: when a disk answers much more slowly than it did, it is asked less, and more again after it.

Halved when it is slow, an eighth more when it is not (as TCP does): several who meet the same storage find their parts
without knowing of one another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from workers.point import Piece, Writer

#: how much slower than its best a disk must answer to be taken for overloaded
SLOWER = 4.0
#: and at least so many seconds for a MiB: vSphere's own threshold (Storage I/O Control) is 30 ms for a request
LEAST = 0.03
#: of each observation in the mean: some ten writes decide
WEIGHT = 0.2
#: observations between two changes, so that one has shown before the next
APART = 8
#: the smallest part
LOWEST = 1 / 16
MIB = 1 << 20


class Pace:
    """Which part of the time a disk may be kept busy. No clock: it is told how long things took."""

    def __init__(self) -> None:
        self.part = 1.0
        self._mean: float | None = None
        self._best = float("inf")
        self._since = 0

    def took(self, seconds: float, size: int) -> bool:
        """So long, for so many bytes. Whether it was found overloaded just now."""
        cost = seconds / (size / MIB + 1)  # a small write costs about what a MiB does
        self._mean = cost if self._mean is None else (1 - WEIGHT) * self._mean + WEIGHT * cost
        self._since += 1
        if self._since < APART:
            return False
        self._best = min(self._best, self._mean)
        slow = self._mean > max(LEAST, SLOWER * self._best)
        if not slow and self.part == 1.0:
            return False
        self._since = 0
        self.part = max(LOWEST, self.part / 2) if slow else min(1.0, self.part + 1 / 8)
        return slow

    def pause(self, seconds: float) -> float:
        """How long to wait after something that took so long."""
        return seconds * (1 / self.part - 1)


class GentleWriter:
    """`said` is called once, when the disk was found overloaded for the first time."""

    def __init__(
        self,
        writer: Writer,
        said: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._writer, self._said, self._clock, self._sleep = writer, said, clock, sleep
        self._pace = Pace()
        self._lock = threading.Lock()
        self._told = False
        self.size = writer.size

    def write(self, pieces: Sequence[Piece]) -> None:
        began = self._clock()
        self._writer.write(pieces)
        self._after(self._clock() - began, sum(piece.length for piece in pieces if piece.data is not None))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _after(self, took: float, size: int) -> None:
        with self._lock:
            slow = self._pace.took(took, size)
            pause, news = self._pace.pause(took), slow and not self._told
            self._told |= slow
        if news:
            self._said()
        if pause > 0:
            self._sleep(pause)
