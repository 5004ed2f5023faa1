"""A restore point in a second store: only what is missing there is sent, what was sent once is found again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from workers import faults
from workers.errors import Conflict, StoreDamaged
from workers.extents import GRANULE
from workers.faults import InjectedFault
from workers.models import RestorePoint
from workers.store import Store, intake
from workers.store.layout import SEGMENT

MIB = 1 << 20
SIZE = SEGMENT + 64 * MIB


@pytest.fixture
def far(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "far")


def bring(
    source: Store,
    to: Store,
    point: RestorePoint,
    *,
    run: str = "copy-1",
    base: RestorePoint | None = None,
    carried: Callable[[int], None] = lambda count: None,
    until: float | None = None,
) -> int:
    """As a copy does it; returns the bytes that it says were sent."""
    part = point.disks[0]
    before = base.disks[0] if base is not None else None
    there = next((p for p in source.points(VM) if base is not None and p.id == base.id), None)
    todo = source.diff(there.disks[0] if there is not None else None, part)
    sent, names = 0, []
    with to.intake(run, source, carried) as writer:
        for index in range(len(part.segments)):
            while True:
                made = writer.bring(
                    index, there=part, todo=todo, base=before, threads=2, until=until or time.monotonic() + 60
                )
                sent += made.sent
                if made.segment is not None:
                    break
            names.append(made.segment.name)
        disk = part.model_copy(update={"segments": tuple(names)})
        writer.commit(point.model_copy(update={"run": run, "copied_from": source.id, "disks": (disk,)}))
    return sent


@contextmanager
def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that are read below a store, by whoever: the sending side of a link."""
    seen = [0]
    real = os.pread
    below = f"{store.path.resolve()}/"

    def pread(fd: int, length: int, offset: int) -> bytes:
        data = real(fd, length, offset)
        if os.readlink(f"/proc/self/fd/{fd}").startswith(below):
            seen[0] += len(data)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        yield seen


def scattered(source: MemoryDisk, seed: int, count: int = 200) -> None:
    for i in range(count):
        source.put((7919 * (i + seed * 131) % (SIZE // GRANULE)) * GRANULE, noise(GRANULE, seed * 10_000 + i))


def made_disk() -> MemoryDisk:
    source = MemoryDisk(SIZE)
    source.put(0, noise(6 * MIB, 1) + b"text " * 400_000)
    source.put(SEGMENT + MIB, noise(3 * MIB, 2))
    return source


def test_only_what_is_new_is_sent_and_reads_the_same(
    store: Store, far: Store, monkeypatch: pytest.MonkeyPatch, kind_of_store: str
) -> None:
    """Between encrypted stores what the other has from elsewhere is sent, too: its digest there is another one."""
    source = made_disk()
    first, _ = backup(store, source)
    with counted(store, monkeypatch) as full:
        bring(store, far, first)
    assert_content(far, far.point(VM, first.id), source)
    before = source.copy()
    scattered(source, 1)
    source.put(20 * MIB, noise(2 * MIB, 5))
    if kind_of_store == "plain":
        source.put(30 * MIB, noise(MIB, 1))  # what is there already
    source.put(0, bytes(MIB))
    second, made = backup(store, source)
    fresh = sum(segment.stored for segment in made)
    store.close()
    again = Store.open(store.path)
    with counted(again, monkeypatch) as sent:
        bring(again, far, second, run="copy-2", base=far.point(VM, first.id))
    assert_content(far, far.point(VM, second.id), source)
    assert_content(far, far.point(VM, first.id), before)
    assert sent[0] <= 1.1 * fresh < full[0] / 1.5, (sent, fresh, full)
    # The copy's maps say of a difference just what the source's do.
    assert far.diff(far.point(VM, first.id).disks[0], far.point(VM, second.id).disks[0]) == store.diff(
        first.disks[0], second.disks[0]
    )
    assert far.verify(deep=True) == [] and far.runs() == []


def test_a_copy_of_a_copy_goes_back_and_on(store: Store, far: Store, tmp_path: Path) -> None:
    """A point that went the long way is the same point, and can be built upon."""
    source = made_disk()
    first, _ = backup(store, source)
    bring(store, far, first)
    scattered(source, 1)
    second, _ = backup(far, source)  # the backups go on where the copy is
    assert second.parent == first.id
    bring(far, store, second, run="copy-2", base=first)
    assert_content(store, store.point(VM, second.id), source)
    third = Store.create(tmp_path / "third")
    bring(store, third, store.point(VM, second.id))
    assert_content(third, third.point(VM, second.id), source)


def test_points_between_may_be_left_out(store: Store, far: Store) -> None:
    source = made_disk()
    first, _ = backup(store, source)
    bring(store, far, first)
    for seed in range(1, 4):
        scattered(source, seed, 40)
        last, _ = backup(store, source)
    bring(store, far, last, run="copy-2", base=far.point(VM, first.id))
    assert [point.seq for point in far.points(VM)] == [1, 4]
    assert_content(far, far.point(VM, last.id), source)


def test_without_a_common_point_chunks_are_found_by_their_digests(store: Store, far: Store, kind_of_store: str) -> None:
    """Between encrypted stores only after they were sent: nothing is stored twice."""
    source = made_disk()
    first, _ = backup(store, source)
    bring(store, far, first)
    source.put(20 * MIB, noise(MIB, 9))
    second, _ = backup(store, source)
    held = sum(far.pack_sizes().values())
    sent = bring(store, far, second, run="copy-2", base=None)
    assert sum(far.pack_sizes().values()) - held < 1.2 * MIB
    assert (sent < 1.2 * MIB) == (kind_of_store == "plain")
    assert_content(far, far.point(VM, second.id), source)


def test_shrunk_and_grown(store: Store, far: Store) -> None:
    source = made_disk()
    first, _ = backup(store, source)
    bring(store, far, first)
    smaller = MemoryDisk(5 * MIB + 512, {g: d for g, d in source.granules.items() if g <= 5 * MIB // GRANULE})
    smaller.granules[5 * MIB // GRANULE] = source.content(5 * MIB, 512).ljust(GRANULE, b"\0")
    second, _ = backup(store, smaller)
    bring(store, far, second, run="copy-2", base=far.point(VM, first.id))
    assert_content(far, far.point(VM, second.id), smaller)
    third, _ = backup(store, source)
    bring(store, far, third, run="copy-3", base=far.point(VM, second.id))
    assert_content(far, far.point(VM, third.id), source)


@pytest.mark.parametrize("label", ["intake.arrived", "intake.durable", "intake.noted", "store.staged"])
def test_what_was_sent_before_a_stop_is_not_sent_again(
    store: Store, far: Store, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """Each message gets no further than one read; so whatever is sent twice would show."""
    source = made_disk()
    scattered(source, 1)  # scraps, which the dedup index does not know
    point, made = backup(store, source)
    whole = sum(segment.stored for segment in made)
    monkeypatch.setattr(intake, "READ", 512 << 10)  # so that the disk is many reads
    told, sent, stops = [0], [0], 0

    def at(passed: str) -> None:
        if passed == label:
            told[0] += 1
            if told[0] % 3 == 0:
                raise InjectedFault(label)

    monkeypatch.setattr(faults, "at", at)

    def carried(count: int) -> None:
        sent[0] += count

    for _ in range(100):
        try:
            bring(store, far, point, carried=carried, until=1.0)
            break
        except InjectedFault:
            stops += 1
    monkeypatch.undo()
    assert_content(far, far.point(VM, point.id), source)
    if label == "store.staged":
        return
    assert stops > 2
    # Per stop: the last read of one segment, the first of the next; the maps and trailers that are looked at again.
    assert sent[0] <= whole + (stops + 1) * (1200 << 10), (sent, whole, stops)


def test_two_copies_at_once_make_one_point(store: Store, far: Store) -> None:
    source = made_disk()
    point, _ = backup(store, source)
    bring(store, far, point, run="one")
    with pytest.raises(Conflict, match="comes too late"):
        bring(store, far, point, run="two")
    far.abandon("two")
    far.prune()
    assert_content(far, far.point(VM, point.id), source)


def test_what_is_damaged_there_gets_no_home_here(store: Store, far: Store) -> None:
    source = made_disk()
    point, _ = backup(store, source)
    pack = max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    with open(pack, "r+b") as file:
        file.seek(2 * MIB)
        file.write(b"rot" * 100)
    with pytest.raises(StoreDamaged, match=pack.name):
        bring(Store.open(store.path), far, point)
    assert far.points(VM) == []


def test_compaction_there_between_two_copies(store: Store, far: Store) -> None:
    source = made_disk()
    first, _ = backup(store, source)
    bring(store, far, first)
    source.put(0, noise(5 * MIB, 3))
    second, _ = backup(store, source)
    store.pin(VM, second.id, "t")
    scattered(source, 2)
    backup(store, source)
    store.retire(VM, first.id)
    store.prune()
    Store.open(store.path).compact(below=0.95)
    last = Store.open(store.path).newest(VM)
    assert last is not None
    bring(Store.open(store.path), far, last, run="copy-2", base=None)
    assert_content(far, far.point(VM, last.id), source)
