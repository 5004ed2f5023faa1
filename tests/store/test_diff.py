"""What differs: by comparing steps, and by what segments say of their origin; against what the test knows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.store.disks import VM, MemoryDisk, backup, noise
from workers.extents import GRANULE, Extents
from workers.store import Store
from workers.store import diff as diffing
from workers.store.diff import GENERATIONS, Steps, compare
from workers.store.layout import SEGMENT
from workers.store.maps import GRANULES, MOST_CHANGES, Maps

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


def life(store: Store, points: int) -> list[MemoryDisk]:
    """A disk of two segments that changes a little before each of its backups, around their border too."""
    disk, states = MemoryDisk(SEGMENT + 8 * (1 << 20)), []
    disk.put(0, noise(1 << 20, 0))
    disk.put(SEGMENT - (1 << 19), noise(1 << 20, 1))
    for number in range(points):
        if number:
            before = disk.copy()
            disk.put(number * 20 * GRANULE, noise(2 * GRANULE, 10 + number))
            disk.put(SEGMENT - GRANULE, noise(2 * GRANULE, 100 + number))
            backup(store, disk, disk.differs(before))
        else:
            backup(store, disk)
        states.append(disk.copy())
    return states


def test_a_segment_says_where_it_differs_from_its_forebears(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no map is read whole: 0.6 s instead of 3 for 1 % of 10 TiB, spread over every segment."""
    states = life(store, GENERATIONS + 2)
    points = store.points(VM)
    forgotten: list[int] = []
    whole = Maps.load_many
    # counted; it loads as ever
    monkeypatch.setattr(Maps, "load_many", lambda maps, names: forgotten.append(len(names)) or whole(maps, names))
    for first in range(len(points)):
        for last in range(first + 1, len(points)):
            forgotten.clear()
            found = store.diff(points[first].disks[0], points[last].disks[0])
            exact = Extents.of([])
            for step in range(first, last):
                exact = exact | states[step + 1].differs(states[step])
            assert found.total == exact.total and not exact - found
            assert bool(forgotten) == (last - first > GENERATIONS)
    forgotten.clear()
    assert store.diff(points[1].disks[0], points[0].disks[0]).total == states[1].differs(states[0]).total
    assert forgotten, "backwards every step is compared"


def test_what_changed_back_counts_as_changed_until_it_is_compared(store: Store) -> None:
    disk = MemoryDisk(8 << 20)
    disk.put(0, noise(1 << 20, 0))
    backup(store, disk)
    original, other = disk.content(0, 256 << 10), noise(256 << 10, 1)
    for content in (other, original):
        disk.put(0, content)
        backup(store, disk, Extents.of([(0, 256 << 10)]))
    first, _, last = (point.disks[0] for point in store.points(VM))
    assert list(store.diff(first, last)) == [(0, 256 << 10)]
    assert not store.diff(last, first), "the chunk was stored once, so both have the same place"


def test_a_forebear_that_was_pruned_leaves_the_comparison(store: Store) -> None:
    states = life(store, 3)
    points = store.points(VM)
    store.retire(VM, points[1].id)
    assert store.prune().maps == 1
    store = Store.open(store.path)
    found = store.diff(points[0].disks[0], points[2].disks[0])
    assert not states[2].differs(states[0]) - found


def test_a_rewritten_segment_lists_no_changes(store: Store) -> None:
    """Whoever changes everything, here and there, is compared: such a list would weigh as much as the map."""
    disk = MemoryDisk(64 << 20)
    backup(store, disk, Extents.of([]))
    disk.put(0, noise(1 << 20, 3))
    backup(store, disk, Extents.of([(0, 1 << 20)]))
    many = [2 * granule * GRANULE for granule in range(MOST_CHANGES + 1)]
    for offset in many:
        disk.put(offset, noise(GRANULE, offset))
    backup(store, disk, Extents.of((offset, GRANULE) for offset in many))
    _, before, after = (point.disks[0] for point in store.points(VM))
    assert store._maps.since(after.segments[0]) is None
    assert diffing.diff(store._maps, before, after).total >= len(many) * GRANULE
