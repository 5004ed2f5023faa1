"""The one loop that moves bytes: copy(src, dst, extents), by threads that run one batch after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from workers.extents import GRANULE, Extents
from workers.point import BATCH, Digested, Piece, Reader, Writer


class Copied(NamedTuple):
    """`done`: every wanted byte below this offset of the disk has been written (not yet flushed)."""

    done: int
    read: int
    written: int


class _Work:
    """Hands out batches in order, until the end, the deadline or the first error; counts what came of them.

    The first batch is handed out even after the deadline: a message whose time went into getting ready must still
    bring the run forward, or the run would go on for ever.
    """

    def __init__(self, extents: Extents, deadline: float | None, stop: Callable[[], bool]) -> None:
        self._batches = extents.batches(BATCH)
        self._deadline = deadline
        self._stop = stop
        self._lock = threading.Lock()
        self._stopped = self._begun = False
        #: offset of the first batch that was not handed out
        self.next: int | None = None
        self.read = self.written = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        while True:
            with self._lock:
                batch = None if self._stopped else next(self._batches, None)
                if batch is None:
                    return
                late = self._begun and self._deadline is not None and time.monotonic() > self._deadline
                if late or self._stop():
                    self._stopped, self.next = True, batch[0][0]
                    return
                self._begun = True
            yield batch

    def count(self, read: int, written: int) -> None:
        with self._lock:
            self.read += read
            self.written += written

    def stop(self) -> None:
        self._stopped = True


def copy(
    src: Reader,
    dst: Writer,
    extents: Extents,
    *,
    threads: int,
    deadline: float | None = None,
    against: Reader | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Copied:
    """Bring `extents` of `src` to `dst`; with `against` (what `dst` holds now) write only the granules that differ.

    `deadline` (time.monotonic) and `stop` end the handing out of batches; those begun are finished, so `done` is exact.
    Does not flush. The first error of any thread is raised when all have stopped; nothing is known of bytes above
    the last checkpoint then.
    """
    work = _Work(extents, deadline, stop)

    def run() -> None:
        try:
            for batch in work:
                changed = src.read(batch) if against is None else _changed(src, against, batch)
                dst.write(changed)
                work.count(sum(n for _, n in batch), sum(p.length for p in changed))
        except BaseException:
            work.stop()
            raise

    count = max(1, min(threads, -(-extents.total // BATCH)))
    if count == 1:
        run()
    else:
        with ThreadPoolExecutor(count, thread_name_prefix="copy") as pool:
            futures = [pool.submit(run) for _ in range(count)]
            wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.result()
    return Copied(extents.end if work.next is None else work.next, work.read, work.written)


def in_slices(todo: Extents, most: int) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of a disk that hold up to `most` bytes of `todo` each, in order."""
    start = end = held = 0
    for offset, length in todo.cut(most):
        if held and held + length > most:
            yield start, end
            held = 0
        if not held:
            start = offset
        end, held = offset + length, held + length
    if held:
        yield start, end


def _changed(src: Reader, against: Reader, batch: list[tuple[int, int]]) -> list[Piece]:
    """What differs. Where digests prove that it does not, `src` is not read: it may be far away."""
    held = against.read(batch)
    if isinstance(src, Digested):
        batch = src.undecided(held)
        held = list(_within(held, batch))
    return differing(src.read(batch), held) if batch else []


def _within(pieces: Sequence[Piece], ranges: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    """The parts of `pieces` in `ranges`, both in one order."""
    waiting = iter(pieces)
    rest = next(waiting, None)
    for start, length in ranges:
        end = start + length
        while start < end:
            while rest is not None and not rest.offset <= start < rest.offset + rest.length:
                rest = next(waiting, None)
            if rest is None:
                raise ValueError(f"offset {start} is in none of the pieces")
            part = _head(_tail(rest, start - rest.offset), min(end, rest.offset + rest.length) - start)
            yield part
            start += part.length


def differing(new: Sequence[Piece], old: Sequence[Piece]) -> list[Piece]:
    """The granules of `new` whose bytes are not those of `old`. Both cover the same ranges; their cuts may differ."""
    result: list[Piece] = []
    for a, b in _aligned(new, old):
        if a.data is None and b.data is None:
            continue
        unequal = _unequal(a, b)
        if unequal.all():
            result.append(a)
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], unequal.view(np.int8), [0]))))
        for first, last in edges.reshape(-1, 2).tolist():
            start, end = first * GRANULE, min(last * GRANULE, a.length)
            data = None if a.data is None else memoryview(a.data)[start:end]
            result.append(Piece(a.offset + start, end - start, data))
    return result


def _unequal(a: Piece, b: Piece) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Per granule of the piece: do the bytes differ? Zeroes (None) compare as zero bytes."""
    one, two = (np.frombuffer(p.data if p.data is not None else bytes(p.length), np.uint8) for p in (a, b))
    whole = a.length // GRANULE * GRANULE
    rows: np.ndarray[tuple[int], np.dtype[np.bool_]]
    rows = (one[:whole].view(np.uint64) != two[:whole].view(np.uint64)).reshape(-1, GRANULE // 8).any(axis=1)
    if whole < a.length:
        rows = np.append(rows, (one[whole:] != two[whole:]).any())
    return rows


def _aligned(new: Sequence[Piece], old: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Both lists cut at each other's borders, pair by pair."""
    others = iter(old)
    rest: Piece | None = None
    for piece in new:
        while piece.length:
            if rest is None or rest.length == 0:
                rest = next(others)
            if rest.offset != piece.offset:
                raise ValueError(f"comparing offset {piece.offset} with {rest.offset}")
            n = min(piece.length, rest.length)
            yield _head(piece, n), _head(rest, n)
            piece, rest = _tail(piece, n), _tail(rest, n)


def _head(piece: Piece, n: int) -> Piece:
    if n == piece.length:
        return piece
    return Piece(piece.offset, n, None if piece.data is None else memoryview(piece.data)[:n])


def _tail(piece: Piece, n: int) -> Piece:
    return Piece(piece.offset + n, piece.length - n, None if piece.data is None else memoryview(piece.data)[n:])
