"""The diff of two lines of steps, against the same question asked granule by granule."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from workers.store.diff import Steps, compare
from workers.store.maps import GRANULES

#: starts of steps at both ends of a segment, where ranks within a block reach beyond the other side
_starts = st.sets(st.integers(1, 70) | st.integers(GRANULES - 70, GRANULES - 1), max_size=12)
_values = st.lists(st.sampled_from([0, 1 << 32, 2 << 32]), min_size=13, max_size=13)


def steps(starts: set[int], values: list[int]) -> Steps:
    begins = [0, *sorted(starts)]
    return Steps(np.array([*begins, GRANULES], np.uint32), np.array(values[: len(begins)], np.uint64))


def contents(line: Steps) -> dict[int, int]:
    """Granule -> what it holds, at both ends of the segment."""
    held = {}
    for granule in (*range(80), *range(GRANULES - 80, GRANULES)):
        step = int(np.searchsorted(line.starts, granule, side="right")) - 1
        place = int(line.places[step])
        held[granule] = place and place + granule - int(line.starts[step])
    return held


@given(_starts, _values, _starts, _values)
@example({GRANULES - 3}, [0] * 13, {GRANULES - 5, GRANULES - 4, GRANULES - 3}, [0, 1 << 32, 2 << 32, *[0] * 10])
def test_it_is_what_a_comparison_granule_by_granule_says(
    a: set[int], of_a: list[int], b: set[int], of_b: list[int]
) -> None:
    left, right = steps(a, of_a), steps(b, of_b)
    starts, ends = compare(left, right)
    assert (starts[1:] >= ends[:-1]).all() and (starts < ends).all()
    one, other = contents(left), contents(right)
    for granule in one:
        found = bool(((starts <= granule) & (granule < ends)).any())
        assert found == (one[granule] != other[granule]), granule
