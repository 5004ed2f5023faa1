"""The copy loop: judged by the bytes at the destination."""

import os
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.disks.memory import MemoryDisk
from workers.extents import GRANULE, Extents
from workers.point import BATCH, Piece
from workers.transfer import copy, differing


def some(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_copies_exactly_the_extents(threads: int) -> None:
    size = 5 * BATCH + 4096
    old, new = some(size, 1), some(size, 2)
    extents = Extents.of([(0, 4096), (BATCH - 4096, 3 * BATCH), (size - 4096, 4096)])
    target = MemoryDisk(old)
    result = copy(MemoryDisk(new), target, extents, threads=threads)
    expected = bytearray(old)
    for offset, length in extents:
        expected[offset : offset + length] = new[offset : offset + length]
    assert target.content == expected
    assert result.done == extents.end
    assert result.written == result.read == extents.total


def test_against_writes_only_what_differs() -> None:
    size = 40 * GRANULE + 100
    new = bytearray(some(size, 3))
    old = bytearray(new)
    old[5 * GRANULE + 7] ^= 1
    old[size - 1] ^= 1
    target = MemoryDisk(bytes(old))
    result = copy(MemoryDisk(bytes(new)), target, Extents.whole(size), threads=1, against=target)
    assert target.content == new
    assert result.written == GRANULE + 100
    assert result.read == size


def test_a_deadline_says_how_far_it_came() -> None:
    size = 6 * BATCH
    old, new = bytes(size), some(size, 4)

    class Slow(MemoryDisk):
        def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
            time.sleep(0.05)
            return super().read(batch)

    target = MemoryDisk(old)
    result = copy(Slow(new), target, Extents.whole(size), threads=2, deadline=time.monotonic() + 0.08)
    assert 0 < result.done < size
    assert target.content[: result.done] == new[: result.done]
    assert target.content[result.done :] == old[result.done :]
    rest = copy(MemoryDisk(new), target, Extents.whole(size).clip(result.done, size), threads=2)
    assert rest.done == size
    assert target.content == new


def test_a_deadline_that_has_passed_still_lets_one_batch_through() -> None:
    """Else a run whose preparations take all of its time in a task would go on for ever."""
    new = some(3 * BATCH, 5)
    target = MemoryDisk(bytes(len(new)))
    result = copy(MemoryDisk(new), target, Extents.whole(len(new)), threads=2, deadline=time.monotonic() - 60)
    assert result.done == result.written == BATCH
    assert target.content[:BATCH] == new[:BATCH]


@pytest.mark.parametrize("nth", range(4))
def test_the_first_error_of_any_thread_is_raised(nth: int) -> None:
    calls = iter(range(100))

    class Failing(MemoryDisk):
        def write(self, pieces: Sequence[Piece]) -> None:
            if next(calls) == nth:
                raise OSError(5, "injected")
            super().write(pieces)

    with pytest.raises(OSError, match="injected"):
        copy(MemoryDisk(bytes(5 * BATCH)), Failing(bytes(5 * BATCH)), Extents.whole(5 * BATCH), threads=3)


granules = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(granules, st.data())
def test_differing_finds_each_granule_whatever_the_cuts(kinds: list[int], data: st.DataObject) -> None:
    """Kinds: 0 zeroes (as None), 1 equal data, 2 other data."""
    base = os.urandom(GRANULE)
    new = [Piece(i * GRANULE, GRANULE, None if k == 0 else base) for i, k in enumerate(kinds)]
    other = [data.draw(st.integers(0, 2)) for _ in kinds]
    old = [
        Piece(i * GRANULE, GRANULE, bytes(GRANULE) if k == 0 else base if k == 1 else b"x" * GRANULE)
        for i, k in enumerate(other)
    ]
    found = {p.offset // GRANULE + i for p in differing(new, old) for i in range(-(-p.length // GRANULE))}
    content = {0: bytes(GRANULE), 1: base, 2: base}
    content_old = {0: bytes(GRANULE), 1: base, 2: b"x" * GRANULE}
    assert found == {i for i, (a, b) in enumerate(zip(kinds, other, strict=True)) if content[a] != content_old[b]}


def test_a_message_without_time_left_still_brings_the_run_forward() -> None:
    """Else a run whose getting ready takes longer than its time would be queued again for ever."""
    size = 4 * BATCH
    new = some(size, 5)
    target = MemoryDisk(bytes(size))
    result = copy(MemoryDisk(new), target, Extents.whole(size), threads=1, deadline=time.monotonic() - 1)
    assert result.done == BATCH
    assert target.content[:BATCH] == new[:BATCH]


def test_who_lost_the_run_writes_no_further_batch() -> None:
    size = 4 * BATCH
    target = MemoryDisk(bytes(size))
    written: list[int] = []

    class Watched(MemoryDisk):
        def write(self, pieces: Sequence[Piece]) -> None:
            written.append(len(pieces))

    copy(MemoryDisk(some(size, 6)), Watched(target.content), Extents.whole(size), threads=1, stop=lambda: bool(written))
    assert len(written) == 1
