"""Which places a run needs, and how a writer gives way: by tables, without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.store.disks import disk_model, identity
from workers.disks.gentle import APART, LOWEST, MIB, GentleWriter, Pace
from workers.models import VmConfig, VmState
from workers.places import pause, wanted_of
from workers.point import Piece
from workers.settings import Limits


def state(*files: str, host: str = "esx1") -> VmState:
    disks = tuple(disk_model(MIB, f"d{n}").model_copy(update={"file": file}) for n, file in enumerate(files))
    config = VmConfig(name="a", guest_id="g", hardware_version="vmx-19", cpus=1, memory_mib=64, disks=disks)
    more: dict[str, Any] = {"change_tracking": True, "consolidation_needed": False, "change_version": "1"}
    return VmState(identity=identity(), config=config, power="poweredOff", host=host, **more)


def test_what_a_vm_lies_on() -> None:
    found = wanted_of(Limits(), "prod", state("[ds1] a/a.vmdk", "[ds2] a/a.vmdk", "[ds1] a/b.vmdk"))
    assert found == {
        "vcenter of prod": 32, "host esx1 of prod": 8, "datastore ds1 of prod": 8, "datastore ds2 of prod": 8
    }  # fmt: skip


def test_what_is_not_there_yet_or_has_no_limit() -> None:
    limits = Limits(host=0, vcenter=0, datastore=3)
    assert wanted_of(limits, "dr", None, ("ds1",)) == {"datastore ds1 of dr": 3}
    assert wanted_of(limits, "dr", state("[ds2] a.vmdk", host="")) == {"datastore ds2 of dr": 3}
    assert wanted_of(Limits(host=0, vcenter=0, datastore=0), "dr", state("[ds2] a.vmdk")) == {}


def test_the_first_of_a_line_look_more_often() -> None:
    assert pause(30, None) == 30
    assert [pause(32, ahead) for ahead in (0, 1, 7, 1999)] == [4, 8, 32, 32]


def feed(pace: Pace, seconds: float, count: int) -> None:
    for _ in range(count):
        pace.took(seconds, MIB)


def test_a_pace_halves_under_load_and_comes_back() -> None:
    pace = Pace()
    feed(pace, 0.02, 50)
    assert pace.part == 1.0
    feed(pace, 0.5, 2 * APART)
    assert pace.part in (0.5, 0.25)
    feed(pace, 0.5, 20 * APART)
    assert pace.part == LOWEST
    assert pace.pause(0.1) == pytest.approx(0.1 * 15)
    feed(pace, 0.02, 30 * APART)
    assert pace.part == 1.0 and pace.pause(1.0) == 0


def test_what_is_slow_from_the_first_or_fast_all_the_same_is_left_alone() -> None:
    slow, fast = Pace(), Pace()
    feed(slow, 0.7, 100)  # there is nothing to compare it with: that may be what the storage can do
    feed(fast, 0.0001, 20)
    feed(fast, 0.002, 100)  # twenty times slower, and still nothing to worry about
    assert slow.part == fast.part == 1.0


def test_size_is_taken_into_account() -> None:
    pace = Pace()
    for _ in range(100):
        pace.took(0.02, 4096)
        pace.took(0.16, 8 * MIB)
    assert pace.part == 1.0


class Disk:
    size = 1 << 30

    def __init__(self) -> None:
        self.now, self.takes, self.slept, self.written = 0.0, 0.01, 0.0, 0

    def write(self, pieces: Sequence[Piece]) -> None:
        self.now += self.takes
        self.written += len(pieces)

    def flush(self) -> None: ...
    def close(self) -> None: ...

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_a_writer_gives_way_and_says_so_once() -> None:
    disk, said = Disk(), []
    writer = GentleWriter(disk, Pace(), lambda: said.append("slow"), clock=lambda: disk.now, sleep=disk.sleep)
    piece = Piece(0, MIB, bytes(MIB))
    for _ in range(20):
        writer.write([piece])
    assert (disk.slept, said) == (0, [])
    disk.takes = 1.0
    for _ in range(40):
        writer.write([piece])
    assert disk.slept > 40 and said == ["slow"] and disk.written == 60
