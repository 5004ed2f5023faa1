"""Which restore points are kept."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.retention import expired


class P(NamedTuple):
    id: str
    seq: int


def points(*numbers: int) -> list[P]:
    return [P(f"p{number}", number) for number in numbers]


@pytest.mark.parametrize(
    ("numbers", "keep_last", "needed", "gone"),
    [
        pytest.param([], 3, set(), [], id="none"),
        pytest.param([1, 2, 3], 3, set(), [], id="as many as are kept"),
        pytest.param([1, 2, 3, 4, 5], 3, set(), [1, 2], id="the oldest first"),
        pytest.param([5, 3, 1, 4, 2], 3, set(), [1, 2], id="in any order"),
        pytest.param([1, 2, 3, 4, 5], 2, {"p1", "p4"}, [2, 3], id="needed ones stay and do not count"),
        pytest.param([1, 2], 0, set(), [1], id="the newest stays whatever is asked"),
        pytest.param([7], -1, set(), [], id="the only one stays"),
        pytest.param([1, 2, 3], 1, {"of another VM"}, [1, 2], id="unknown needs are nobody's"),
    ],
)
def test_expired(numbers: list[int], keep_last: int, needed: set[str], gone: list[int]) -> None:
    assert expired(points(*numbers), keep_last, needed) == points(*gone)


@given(st.sets(st.integers(0, 1000), max_size=40), st.integers(-1, 50), st.sets(st.integers(0, 1000)), st.randoms())
def test_what_always_holds(numbers: set[int], keep_last: int, needed: set[int], shuffle: random.Random) -> None:
    have = points(*numbers)
    shuffle.shuffle(have)
    gone = expired(have, keep_last, {f"p{number}" for number in needed})
    kept = numbers - {point.seq for point in gone}
    assert not numbers or max(numbers) in kept
    assert numbers & needed <= kept
    assert set(sorted(numbers, reverse=True)[: max(keep_last, 0)]) <= kept
    assert len(kept - needed) <= max(keep_last, 1)
    assert [point.seq for point in gone] == sorted(point.seq for point in gone)
