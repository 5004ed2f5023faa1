"""A limit holds for all threads together, zeroes are free, and the bytes are those of the carrier."""

from __future__ import annotations

import threading

import pytest

from workers.disks import throttle
from workers.disks.memory import MemoryDisk
from workers.gather import fill
from workers.point import Piece


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)  # a busy machine's clock would judge the machine
    return made


def test_a_reader_and_a_writer_take_their_time(clock: Clock) -> None:
    disk = MemoryDisk(bytes(1 << 20))
    rate = throttle.Rate(1 << 20)
    writer = throttle.slow_writer(disk, rate)
    writer.write([Piece(0, 1 << 19, b"x" * (1 << 19)), Piece(1 << 19, 1 << 19, None)])
    assert clock.now == 0.5, "zeroes are not sent"
    reader = throttle.slow_reader(disk, rate)
    assert reader.read([(0, 4)])[0].data == b"xxxx"
    reader.read([(0, 1 << 18)])
    assert 0.75 <= clock.now < 0.76
    fill(reader, [(0, 1 << 17), (1 << 19, 1 << 17)], memoryview(bytearray(1 << 18)))
    assert 1.0 <= clock.now < 1.01
    assert throttle.slow_reader(disk, None) is disk
    assert throttle.rate_of("site dr", None) is None
    assert throttle.rate_of("site dr", 5) is throttle.rate_of("site dr", 5) is not throttle.rate_of("site dr", 6)


def test_who_was_idle_does_not_catch_up(clock: Clock) -> None:
    rate = throttle.Rate(100)
    rate.wait(100)
    clock.now += 50
    rate.wait(100)
    assert clock.now == 52
