"""What is taken for overloaded storage, and what is not; and that nothing stays at the bottom."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from workers.disks.gentle import APART, LEAST, LONGEST, LOWEST, MIB, GentleReader, GentleWriter, Pace
from workers.disks.memory import MemoryDisk
from workers.gather import fill
from workers.point import BATCH, Piece


class Storage(MemoryDisk):
    """Takes so long for each request and each MiB; time passes nowhere else but where somebody waits for it."""

    def __init__(self, request: float, mib: float) -> None:
        super().__init__(bytes(BATCH))
        self.request, self.mib = request, mib
        self.now = self.paused = 0.0
        self.said: list[str] = []

    def _takes(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.now += sum(self.request + self.mib * length / MIB for _, length in ranges)

    def write(self, pieces: Sequence[Piece]) -> None:
        self._takes([(piece.offset, piece.length) for piece in pieces])

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        self._takes(batch)
        return super().read(batch)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.paused += seconds

    def writer(self, pace: Pace) -> GentleWriter:
        return GentleWriter(self, pace, lambda: self.said.append("w"), clock=lambda: self.now, sleep=self.pause)

    def reader(self, pace: Pace) -> GentleReader:
        return GentleReader(self, pace, lambda: self.said.append("r"), clock=lambda: self.now, sleep=self.pause)


STREAM = [Piece(0, BATCH, bytes(BATCH))]
SCATTERED = [Piece(at, 4096, bytes(4096)) for at in range(0, BATCH, 8192)]
ZEROES = [Piece(0, BATCH, None)]


@pytest.mark.parametrize("first", ["stream", "scattered", "nothing", "zeroes"])
def test_other_work_is_not_overload(first: str) -> None:
    """VMware's library at 20 MB/s and a ms for each request: whatever comes after whatever, it is as fast as ever."""
    storage = Storage(0.001, 0.05)
    writer = storage.writer(Pace())
    kinds = {"stream": STREAM, "scattered": SCATTERED, "nothing": [], "zeroes": ZEROES}
    for pieces in (kinds[first], *kinds.values(), kinds[first]):
        for _ in range(5 * APART):
            writer.write(pieces)
    assert (storage.paused, storage.said) == (0, [])


def test_zeroes_that_cost_nothing_are_no_measure() -> None:
    storage = Storage(0.001, 0.05)
    writer = storage.writer(Pace())
    storage.request = storage.mib = 0
    for _ in range(5 * APART):
        writer.write(ZEROES)
    storage.request, storage.mib = 0.001, 0.05
    for _ in range(5 * APART):
        writer.write(STREAM)
    assert storage.paused == 0


@pytest.mark.parametrize("how", ["read", "fill"])
def test_a_reader_gives_way_too(how: str) -> None:
    storage = Storage(0.001, 0.01)
    reader = storage.reader(Pace())

    def look() -> None:
        if how == "read":
            assert len(reader.read([(0, MIB)])) == 1
        else:
            fill(reader, [(0, MIB)], memoryview(bytearray(MIB)))

    for _ in range(2 * APART):
        look()
    assert storage.paused == 0
    storage.mib = 0.5
    for _ in range(4 * APART):
        look()
    assert storage.paused > 10 and storage.said == ["r"]


def test_what_was_seen_before_a_slice_counts_in_it() -> None:
    """A slice that begins under load has nothing of its own to compare with."""
    storage, pace = Storage(0.001, 0.01), Pace()
    for _ in range(10):
        writer = storage.writer(pace)
        for _ in range(APART // 4):
            writer.write(STREAM)
    storage.mib = 0.5
    for _ in range(10):
        writer = storage.writer(pace)
        for _ in range(APART // 4):
            writer.write(STREAM)
    assert pace.part < 1 and storage.paused > 0


def test_what_became_slower_for_good_has_all_of_its_time_again() -> None:
    pace = Pace()
    for _ in range(2 * APART):
        pace.took(0.02, MIB)
    seen = []
    for _ in range(60 * APART):
        pace.took(0.5, MIB)
        seen.append(pace.part)
    assert LOWEST in seen and pace.part == 1.0


def test_no_pause_outlives_a_message() -> None:
    pace = Pace()
    for seconds in (0.02, 30.0):
        for _ in range(8 * APART):
            pace.took(seconds, MIB)
    assert pace.part == LOWEST and pace.pause(600.0) == LONGEST


def test_a_fast_disk_may_become_slower_within_what_storage_may_take() -> None:
    pace = Pace()
    for seconds in (0.0001, 0.9 * LEAST):
        for _ in range(5 * APART):
            pace.took(9 * seconds, 8 * MIB)
    assert pace.part == 1.0
