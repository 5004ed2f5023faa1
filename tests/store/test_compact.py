"""Compaction: the bytes move, and no restore point, difference, pin or order notices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.store.conftest import EVERY_SLOWLY, objects
from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, write_disk
from tests.store.living import (
    SIZE,
    Base,
    History,
    assert_as_before,
    compacted,
    leftovers,
    lived,
    scribble,
    size_of,
)
from tests.store.objects import ObjectPath
from tests.store.test_prune import at_step, packs
from workers.errors import Conflict, NotFound, Refused
from workers.extents import GRANULE
from workers.models import RestorePoint
from workers.store import Store, StoreWriter, presence, usage

KINDS = EVERY_SLOWLY

MIB = 1 << 20


@pytest.fixture(scope="module")
def base(kind_of_store: str, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return lived(tmp_path_factory.mktemp("lived") / "store")


@pytest.fixture
def store(request: pytest.FixtureRequest, base: Base, tmp_path: Path) -> Store:
    if getattr(request, "param", "folder") == "objects":
        root = objects(tmp_path)
        for path in base.path.rglob("*"):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock":
                root.objects.held[str(path.relative_to(base.path))] = (path.read_bytes(), 0.0)
        return Store.open(root)
    shutil.copytree(base.path, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def history(base: Base) -> History:
    return list(base.history)


def test_compaction_frees_what_is_dead_and_changes_nothing_else(store: Store, history: History) -> None:
    before, old = size_of(store), packs(store)
    report = store.compact(below=0.9)
    assert report.state == "done" and report.packs > 0 and report.points == 4 and report.moved > 0
    assert store.prune().freed > before // 4
    assert size_of(store) < before and not old <= packs(store)
    assert_as_before(store, history)
    assert leftovers(store) == []
    assert store.compact(below=0.9).state == "nothing to do", "done twice is done once"


def test_after_it_the_next_backup_is_as_small_as_ever(store: Store, history: History) -> None:
    """The dedup index and the parent's map follow: nothing is stored again on account of a compaction."""
    compacted(store)
    disk = history[-1][1].copy()
    scribble(disk, 99, writes=3)
    point, made = backup(store, disk, disk.allocated())
    assert made[0].differing == disk.differs(history[-1][1]) and made[0].rewritten == 0
    copy, _ = backup(store, disk, disk.allocated(), vm="another-vm")
    assert sum(part.stored for part in made) < 40 * 4 * GRANULE * 3
    assert_content(store, copy, disk)
    assert_as_before(store, [*history, (point, disk)])


def test_hole_15_a_diff_is_the_same_before_and_after(store: Store, history: History) -> None:
    """Ids are new, equal places stay equal: whatever two points had in common they still have."""
    ids = [point.id for point, _ in history]
    before = [[store.diff(a.disks[0], b.disks[0]) for a, _ in history] for b, _ in history]
    used = packs(store)
    compacted(store)
    assert not packs(store) & used - packs(store), "no name comes back"
    now = {point.id: point.disks[0] for point in store.points(VM)}
    assert [[store.diff(now[a], now[b]) for a in ids] for b in ids] == before


def test_segments_still_list_where_they_differ_from_the_one_before(store: Store, history: History) -> None:
    """So a diff after a compaction reads as little as before: the lists are carried over, to the new names."""

    def told() -> list[bool]:
        names = [store.point(VM, point.id).disks[0].segments[0] for point, _ in history]
        origins = [store._maps.since(name) for name in names[1:]]
        return [origin is not None and str(origin.parent) == a for a, origin in zip(names, origins, strict=False)]

    before = [store.point(VM, point.id).disks[0].segments for point, _ in history]
    assert told() == [True] * 3
    assert store.compact(below=0.9).points == 4
    assert told() == [True] * 3
    after = [store.point(VM, point.id).disks[0].segments for point, _ in history]
    assert not any(a == b for a, b in zip(before, after, strict=True))


def test_hole_15_between_two_exchanges_a_diff_reports_too_much_and_no_more_than_moved(
    store: Store, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    at_step(monkeypatch, "compact.exchanged", die)
    with pytest.raises(Killed):
        store.compact(below=0.9)
    monkeypatch.undo()
    now = {point.id: point.disks[0] for point in store.points(VM)}
    (first, one), (last, two) = history[0], history[-1]
    found, truth = store.diff(now[first.id], now[last.id]), two.differs(one)
    assert not truth - found and found != truth
    assert not found - store.allocated(now[last.id]) - store.allocated(now[first.id])
    assert store.compact().state == "done"
    store.prune()
    assert_as_before(store, history)


@pytest.mark.parametrize("rounds", [2, 5])
def test_compacted_again_and_again(store: Store, history: History, rounds: int) -> None:
    disk = history[-1][1].copy()
    for i in range(rounds):
        compacted(store)
        scribble(disk, 50 + i)
        history.append((backup(store, disk)[0], disk.copy()))
        store.retire(VM, history.pop(0)[0].id)
    compacted(store)
    assert_as_before(store, history)
    assert leftovers(store) == []


def test_within_its_time_it_stops_and_goes_on_later(store: Store, history: History) -> None:
    states = [store.compact(below=0.9, seconds=0).state]
    while states[-1] != "done":
        assert_as_before(store, history, exact=False)
        states.append(Store.open(store.path).compact(below=0.9, seconds=0).state)
        assert len(states) < 30
    assert states.count("goes on") > 3
    store.prune()
    assert_as_before(store, history)


def test_only_what_is_worth_it(store: Store, history: History) -> None:
    assert store.compact(below=0.9, worth=1 << 40).state == "nothing to do"
    assert store.compact(below=0.01).state == "nothing to do"
    assert leftovers(store) == []


def test_a_pack_that_can_not_be_read_stays_where_it_is(store: Store, history: History) -> None:
    """Damage keeps its name: it is not copied into a pack whose digests would vouch for it."""
    group = {}
    for ids in usage.groups(store._packs, [int(name, 16) for name in packs(store)]):
        usage.mark(store._maps, {name for point, _ in history for name in point.disks[0].segments}, ids)
        group |= ids
    victim = min(group, key=lambda each: group[each].live_bytes() / group[each].stored.sum())
    path = store.path / "packs" / f"{victim:016x}.pack"
    slot = int(np.flatnonzero(group[victim].live())[0])
    pack = store._packs.get(victim)
    data = bytearray(path.read_bytes())
    data[int(pack.offsets[slot]) + 5] ^= 1
    path.write_bytes(data)
    before = store.verify(deep=True)
    assert before
    store.close()
    report = Store.open(store.path).compact(below=0.9)
    assert report.state == "done" and any(path.name in line for line in report.damaged)
    store.prune()
    assert path.exists() and store.verify(deep=True) == before


# --- beside others ------------------------------------------------------------------------------------------------


def test_hole_13_a_run_that_may_reuse_a_dying_blob_is_waited_for(tmp_path: Path) -> None:
    """It looked the index up before the job was published; what it reuses is dead to every point so far."""
    store = Store.create(tmp_path / "empty")
    old = MemoryDisk(SIZE)
    old.put(0, noise(4 * MIB, 1))
    first, _ = backup(store, old)
    disk = old.copy()
    disk.put(0, noise(3 * MIB, 2))
    second, _ = backup(store, disk)
    store.retire(VM, first.id)
    with store.writer("reuses") as writer:
        made, segments = write_disk(writer, old, old.allocated(), second.disks[0])
        assert segments[0].stored < 64 << 10, "it was found by the index"
        report = store.compact()
        assert report.state == "waits" and report.runs == ("reuses",) and report.moved == 0
        third = make_point(second, "reuses", [made])
        writer.commit(third)
    compacted(store)
    assert_as_before(store, [(second, disk), (third, old)], exact=False)


def test_hole_13_a_run_that_begins_later_refers_to_none_of_the_old_packs(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "empty")
    old = MemoryDisk(SIZE)
    old.put(0, noise(4 * MIB, 1))
    first, _ = backup(store, old)
    disk = old.copy()
    disk.put(0, noise(3 * MIB, 2))
    backup(store, disk)
    store.retire(VM, first.id)
    blocker = store.writer("blocks")
    assert store.compact().state == "waits"
    with store.writer("later") as writer:
        made, segments = write_disk(writer, old, old.allocated())
        assert segments[0].stored > MIB
        blocker.close()
        store.abandon("blocks")
        assert store.compact().state == "waits", "for the run that may still commit what it inherited"
        point = make_point(None, "later", [made], "another-vm")
        writer.commit(point)
    compacted(store)
    assert_content(store, store.points("another-vm")[0], old)


def test_a_point_that_is_committed_with_old_names_after_the_exchange_follows(store: Store, history: History) -> None:
    """A backup read its parent before, and commits after: then its map still names the old packs."""
    parent, disk = history[-1][0], history[-1][1].copy()
    scribble(disk, 77, writes=5)
    started: list[RestorePoint] = []

    with pytest.MonkeyPatch.context() as patch:
        writers = []

        def begin() -> None:
            writers.append(store.writer("late"))

        at_step(patch, "compact.made", begin)
        report = store.compact(below=0.9)
    assert report.state == "waits" and report.runs == ("late",)
    with writers[0] as writer:
        made, _ = write_disk(writer, disk, disk.allocated(), parent.disks[0])
        started.append(make_point(parent, "late", [made]))
        writer.commit(started[0])
    report = store.compact(below=0.9)
    assert report.state == "done" and report.points == 1
    assert store.prune().waiting == 0
    assert_as_before(store, [*history, (started[0], disk)])


def test_who_reads_by_old_names_reads_to_the_end(store: Store, history: History) -> None:
    """Also unpinned and unregistered as a run: a restore, a compare, a person who looks."""
    reads = Store.open(store.path)
    point = reads.points(VM)[0]
    reader, other = reads.reader(point, "disk-1"), reads.points(VM)[-1]
    report = store.compact(below=0.9)
    assert report.state == "waits" and len(report.readers) == 1
    del reads
    assert store.prune().waiting > 0
    truth = history[0][1]
    for piece in reader.read(list(truth.allocated())):
        assert bytes(piece.data or bytes(piece.length)) == truth.content(piece.offset, piece.length)
    del reader, other
    assert store.compact(below=0.9).state == "done"
    assert store.prune().waiting == 0
    assert_as_before(store, history)


def test_a_forked_child_does_not_end_its_parents_reading(store: Store, history: History) -> None:
    store.points(VM)
    child = os.fork()
    if child == 0:
        store.close()
        os._exit(0)
    os.waitpid(child, 0)
    report = Store.open(store.path).compact(below=0.9)
    assert report.state == "waits" and len(report.readers) == 1


def test_hole_13_an_old_tombstone_does_not_speak_for_a_pack_that_was_needed_again(
    store: Store, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prune marked the emptied packs, a late commit needed them again, somebody reads that point; then it is exchanged
    as well. Whoever prune noted has ended by now, but not the one who reads."""
    parent, disk = history[-1][0], history[-1][1].copy()
    scribble(disk, 77, writes=5)
    late: list[StoreWriter] = []
    at_step(monkeypatch, "compact.made", lambda: late.append(store.writer("late")))
    assert store.compact(below=0.9).state == "waits"
    assert store.prune().runs == ("late",)
    with late[0] as writer:
        made, _ = write_disk(writer, disk, disk.allocated(), parent.disks[0])
        point = make_point(parent, "late", [made])
        writer.commit(point)
    reads = Store.open(store.path)
    reader = reads.reader(reads.point(VM, point.id), "disk-1")
    assert store.compact(below=0.9).points == 1
    store.prune()
    for piece in reader.read(list(disk.allocated())):
        assert bytes(piece.data or bytes(piece.length)) == disk.content(piece.offset, piece.length)
    del reads, reader
    compacted(store)
    assert_as_before(store, [*history, (point, disk)])
    assert leftovers(store) == []


def test_what_a_dead_reader_left_holds_nothing_up(store: Store, history: History) -> None:
    left = store.path / "readers" / "1-0123456789abcdef"
    left.touch()
    if isinstance(left, ObjectPath):
        left.objects.now += presence.DEAD + 1
    compacted(store)
    assert not left.exists()
    assert_as_before(store, history)


def test_at_the_end_of_a_task_nobody_reads_whoever_holds_on_to_the_store(store: Store, history: History) -> None:
    """An error of the task holds its caller's frame, and that the store. Who reads on is waited for again."""
    kept = Store.open(store.path)
    kept.points(VM)
    registered = list((store.path / "readers").iterdir())
    assert len(registered) >= 1
    Store.close_all()
    assert list((store.path / "readers").iterdir()) == []
    compacted(store)
    assert_as_before(store, history)
    kept.points(VM)
    assert len(list((store.path / "readers").iterdir())) >= 1


STEPS = ["compact.chosen", "compact.copied", "compact.made", "compact.mapped", "compact.staged", "compact.exchanged"]


@pytest.mark.parametrize("step", STEPS)
def test_hole_14_a_point_that_is_retired_meanwhile_stays_retired(
    store: Store, history: History, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is pinned meanwhile stays, with its pin."""
    (gone, _), (pinned, _) = history[0], history[1]
    if step == "compact.staged":  # the lock is held: whoever retires waits, so here it is only pinned
        at_step(monkeypatch, step, lambda: store.pin(VM, pinned.id, "pair-1"))
    else:
        at_step(monkeypatch, step, lambda: (store.pin(VM, pinned.id, "pair-1"), store.retire(VM, gone.id)))  # type: ignore[arg-type, return-value, func-returns-value]
    report = store.compact(below=0.9)
    monkeypatch.undo()
    assert report.state == "done"
    if step == "compact.staged":
        store.retire(VM, gone.id)
    with pytest.raises(Refused, match="pair-1"):
        store.retire(VM, pinned.id)
    with pytest.raises(NotFound):
        store.point(VM, gone.id)
    compacted(store)
    assert [point.id for point in store.points(VM)] == [point.id for point, _ in history[1:]]
    assert_as_before(store, history[1:])


def test_a_stopped_process_whose_job_was_given_up_exchanges_nothing(
    store: Store, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up after the point was retired and forgotten: nothing of it comes back."""
    gone, other = history[0][0], Store.open(store.path)

    def meanwhile() -> None:
        for run in other._writers.live():
            other._writers.end(run)
        path = other._points.path(VM, gone.seq)
        path.unlink()

    at_step(monkeypatch, "compact.staged", meanwhile)
    with pytest.raises(Conflict, match="given up"):
        store.compact(below=0.9)
    monkeypatch.undo()
    assert gone.id not in [point.id for point in store.points(VM)]
    compacted(store)
    assert_as_before(store, history[1:])


def test_prune_and_compaction_take_turns(store: Store, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []

    def others() -> None:
        said.append(Store.open(store.path).prune().busy)
        said.append(Store.open(store.path).compact().state)

    at_step(monkeypatch, "compact.copied", others)
    store.compact(below=0.9)
    assert said == [True, "busy"]
