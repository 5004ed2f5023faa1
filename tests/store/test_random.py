"""Random writes, round after round: every point reads back as it was, every diff covers the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.disks import MemoryDisk, assert_content, backup, noise
from workers.extents import EMPTY, GRANULE, Extents
from workers.models import RestorePoint
from workers.store import Store, maps, write
from workers.store.layout import BLOCK, SEGMENT

#: around the border of two map segments, so that both and the cut between them are exercised
BASE = SEGMENT - 40 * BLOCK
SIZE = SEGMENT + 40 * BLOCK + 512


class Write(NamedTuple):
    granule: int
    count: int
    kind: str
    seed: int


writes = st.builds(
    Write,
    st.integers(0, 80 * 64),
    st.one_of(st.integers(1, 3), st.integers(1, 200)),
    st.sampled_from(["noise", "noise", "zero", "repeat"]),
    st.integers(0, 5),
)
scattered = st.builds(
    lambda start, step, seed: [Write(start + i * step, 1, "noise", seed) for i in range(200)],
    st.integers(0, 64),
    st.integers(2, 12),
    st.integers(0, 5),
)
rounds = st.lists(st.one_of(st.lists(writes, max_size=8), scattered), min_size=1, max_size=6)


def change(disk: MemoryDisk, written: list[Write]) -> Extents:
    """Does the writes; returns what a change tracker would report: at 64 KiB, also where nothing changed."""
    touched = []
    for granule, count, kind, seed in written:
        offset = BASE + granule * GRANULE
        length = min(count * GRANULE, SIZE - offset)
        if length <= 0:
            continue
        content = {"noise": noise(length, seed), "zero": bytes(length), "repeat": b"again..." * (length // 8)}[kind]
        disk.put(offset, content)
        touched.append((offset, length))
    return Extents.of(touched).align(64 << 10, SIZE)


@pytest.mark.usefixtures("kind_of_store")
@pytest.mark.parametrize(("parts", "blobs"), [(32, 64), (3, 2)], ids=["as in production", "repacks all the time"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=rounds, threads=st.sampled_from([1, 3]), told=st.booleans())
def test_rounds(
    script: list[list[Write]], threads: int, told: bool, parts: int, blobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`told`: what differs is known to the granule, amid what may have changed."""
    monkeypatch.setattr(maps, "PARTS", parts)
    monkeypatch.setattr(write, "SCRAP_BLOBS", blobs)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        disk = MemoryDisk(SIZE)
        history: list[tuple[RestorePoint, MemoryDisk]] = []
        for written in script:
            reported = change(disk, written)
            known = disk.differs(history[-1][1]) if told and history else EMPTY
            point, made = backup(store, disk, reported, threads=threads, exact=known)
            if history:
                last, before = history[-1]
                truth = disk.differs(before)
                found = store.diff(last.disks[0], point.disks[0])
                assert not truth - found
                if not sum(segment.rewritten for segment in made):
                    assert found == truth
                assert made[0].differing | made[1].differing == truth
            history.append((point, disk.copy()))
        for point, then in history:
            assert_content(store, point, then)
            for other, state in history:
                assert not then.differs(state) - store.diff(other.disks[0], point.disks[0])
        assert store.verify(deep=True) == []
