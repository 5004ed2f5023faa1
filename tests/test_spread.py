"""How many workers a run is worth, and how its disks are cut for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import spread
from workers.extents import Extents
from workers.transfer import in_slices

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("total", "free", "workers", "expected"),
    [
        pytest.param(50 * MIB, 1, 4, 1, id="an increment of 50 MiB stays in one task"),
        pytest.param(500 * MIB, 4, 4, 1, id="half a GiB less a little is not worth two"),
        pytest.param(512 * MIB, 4, 4, 2, id="256 MiB for each"),
        pytest.param(4 * GIB, 16, 4, 4, id="a first sync of 4 GiB"),
        pytest.param(4 * GIB, 2, 4, 2, id="no more than there are slices"),
        pytest.param(4 * GIB, 16, 1, 1, id="off"),
        pytest.param(0, 0, 4, 1, id="nothing to do"),
    ],
)
def test_how_many_workers_a_run_is_worth(total: int, free: int, workers: int, expected: int) -> None:
    assert spread.worth(total, free, most=GIB, workers=workers) == expected


@pytest.mark.parametrize(
    ("total", "workers", "expected"),
    [
        pytest.param(100 * MIB, 4, 128 * MIB, id="one slice"),
        pytest.param(4 * GIB, 4, 256 * MIB, id="four for each worker"),
        pytest.param(100 * GIB, 4, GIB, id="a checkpoint each GiB at the latest"),
        pytest.param(100 * MIB, 1, GIB, id="one worker"),
    ],
)
def test_how_a_disk_is_cut(total: int, workers: int, expected: int) -> None:
    assert spread.slice_bytes(total, most=GIB, workers=workers) == expected


@given(total=st.integers(1, 64 * GIB // 4096), most=st.integers(1, 4096), workers=st.integers(1, 64))
def test_every_byte_is_in_one_slice_and_none_is_longer_than_asked(total: int, most: int, workers: int) -> None:
    most, total = most * MIB, total * 4096
    size = spread.slice_bytes(total, most=most, workers=workers)
    assert 0 < size <= most
    if total // size < 2000:
        cut = list(in_slices(Extents.whole(total), size))
        assert [start for start, _ in cut] == [0, *(end for _, end in cut[:-1])] and cut[-1][1] == total
        assert max(end - start for start, end in cut) <= size
