"""Any life of a store with compactions in it, and any map with its places moved."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.disks import VM, MemoryDisk, backup
from tests.store.living import SIZE, History, assert_as_before, scribble
from workers.store import Store, moves, usage
from workers.store.maps import dense, from_dense

events = st.lists(
    st.one_of(
        st.tuples(st.just("backup"), st.integers(0, 50)),
        st.tuples(st.just("full"), st.integers(0, 50)),
        st.tuples(st.just("retire"), st.integers(0, 5)),
        st.tuples(st.just("compact"), st.sampled_from([30, 60, 95])),
        st.tuples(st.just("a slice of compaction"), st.sampled_from([60, 95])),
        st.tuples(st.just("prune"), st.just(0)),
    ),
    max_size=14,
)


@pytest.mark.usefixtures("kind_of_store")
@pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_any_life(examples: int) -> None:
    settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(given(events)(live))()


def live(script: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        disk, history = MemoryDisk(SIZE), History()
        actions: dict[str, Callable[[int], object]] = {
            "compact": lambda below: store.compact(below=below / 100),
            "a slice of compaction": lambda below: store.compact(below=below / 100, seconds=0),
            "prune": lambda _: store.prune(),
        }
        for what, number in [("backup", 0), ("backup", 1), *script, ("compact", 95), ("prune", 0)]:
            if what in ("backup", "full"):
                scribble(disk, number, writes=12)
                mode = "full" if what == "full" else "delta"
                history.append((backup(store, disk, mode=mode)[0], disk.copy()))
            elif what == "retire" and len(history) > 1:
                store.retire(VM, history.pop(number % (len(history) - 1))[0].id)
            elif what in actions:
                actions[what](number)
        assert_as_before(store, history, exact=False)


steps = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 64), st.integers(0, 2)), min_size=1, max_size=30)


@settings(max_examples=20, deadline=None)
@given(steps, st.randoms(use_true_random=False))
def test_equal_places_stay_equal_and_different_ones_differ(
    script: list[tuple[int, int, int]], rng: random.Random
) -> None:
    """The moving of places alone, over maps that no backup would write."""
    places, old = np.zeros(1 << 18, np.uint64), [11, 12, 13]
    for slot, count, pack in script:
        at, first = rng.randrange(0, 200), rng.randrange(0, 64)
        run = np.arange(count, dtype=np.uint64) + np.uint64(first)
        places[at : at + count] = np.uint64((pack + 1) << 32 | slot << 8) + run
    segment = from_dense(places, old)
    used = {
        pack: usage.Used(np.arange(42) * 256, np.zeros(41 * 256, np.bool_), np.ones(41, np.int64)) for pack in old[:2]
    }
    usage.mark_segment(segment, used)
    records: dict[int, list[tuple[int, int, int, bytes]]] = {99: []}
    for pack, mine in used.items():
        for slot in np.flatnonzero(mine.live()).tolist():
            live = mine.granules[slot * 256 : (slot + 1) * 256]
            records[99].append(moves.record(pack, slot, len(records[99]), live))
    with tempfile.TemporaryDirectory() as folder:
        moves.write(Path(folder), 99, "r", records[99])
        tables = moves.load(Path(folder), [99])
    after, before = dense(moves.moved(segment, tables)), dense(segment)
    ids = np.array([0, *moves.moved(segment, tables).packs.tolist()])
    assert not {11, 12} & set(ids.tolist())
    pairs = set(zip(before.tolist(), after.tolist(), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert ((before == 0) == (after == 0)).all()
