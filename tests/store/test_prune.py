"""Prune beside writers, pins and retirements: nothing that a point needs goes, and in the end nothing else stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.store.conftest import EVERY
from tests.store.disks import (
    VM,
    MemoryDisk,
    assert_content,
    backup,
    make_point,
    noise,
    write_disk,
)
from workers import faults
from workers.errors import Conflict, NotFound, Refused
from workers.models import RestorePoint
from workers.store import Store

KINDS = EVERY

MIB = 1 << 20


def disk_of(*seeds: int) -> MemoryDisk:
    disk = MemoryDisk(8 * MIB)
    for i, seed in enumerate(seeds):
        disk.put(i * MIB, noise(MIB, seed))
    return disk


def packs(store: Store) -> set[str]:
    return {path.stem for path in (store.path / "packs").iterdir()}


def at_step(monkeypatch: pytest.MonkeyPatch, label: str, action: Callable[[], None]) -> None:
    """Do `action` once, when the protocol passes the step `label`."""
    pending = [action]

    def at(passed: str) -> None:
        if passed == label and pending:
            pending.pop()()

    monkeypatch.setattr(faults, "at", at)


def test_prune_keeps_what_is_needed_and_deletes_the_rest(store: Store) -> None:
    first, _ = backup(store, disk_of(1))
    second, _ = backup(store, disk_of(2), mode="full")
    assert store.prune().packs == 0
    store.retire(VM, first.id)
    report = store.prune()
    assert (report.packs, report.maps, report.waiting) == (1, 1, 0) and report.freed > MIB
    assert_content(store, second, disk_of(2))
    assert [point.id for point in store.points(VM)] == [second.id]
    assert len(packs(store)) == 1


def test_hole_13_a_reused_blob_is_not_pruned_under_the_run_that_reuses_it(store: Store) -> None:
    """X is dead, prune marks it; a backup that began before reuses X, and commits only after prune looked again."""
    old, _ = backup(store, disk_of(1))
    newer, _ = backup(store, disk_of(2), mode="full")
    disk = disk_of(1)
    with store.writer("reuses") as writer:
        made, segments = write_disk(writer, disk, disk.allocated())
        assert segments[0].stored < 10_000, "the content of the old point was found by the index"
        store.retire(VM, old.id)
        report = store.prune()
        assert report.packs == 0 and report.waiting == 2 and report.runs == ("reuses",)
        point = make_point(newer, "reuses", [made])
        writer.commit(point)
    assert store.prune().packs == 0
    assert_content(store, point, disk)
    assert store.verify(deep=True) == []


def test_hole_13_a_run_that_starts_after_the_tombstone_does_not_reuse(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = backup(store, disk_of(1))
    newer, _ = backup(store, disk_of(2), mode="full")
    blocker = store.writer("blocks")
    store.retire(VM, old.id)
    assert store.prune().waiting == 2
    disk = disk_of(1)
    with store.writer("later") as writer:
        made, segments = write_disk(writer, disk, disk.allocated())
        assert segments[0].stored > MIB // 2
        blocker.close()
        store.abandon("blocks")
        assert store.prune().packs == 1, "the run that began later is not waited for"
        point = make_point(newer, "later", [made])
        writer.commit(point)
    assert_content(store, point, disk)


def test_hole_13_commits_while_prune_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tombstone and the second reading a run commits what it reused: the second reading sees it."""
    old, _ = backup(store, disk_of(1))
    newer, _ = backup(store, disk_of(2), mode="full")
    store.retire(VM, old.id)
    disk = disk_of(1)
    writer = store.writer("reuses")
    made, _ = write_disk(writer, disk, disk.allocated())
    point = make_point(newer, "reuses", [made])
    at_step(monkeypatch, "store.tombstone", lambda: writer.commit(point))
    assert store.prune().packs == 0
    assert_content(store, point, disk)


def test_a_point_that_replaces_another_while_prune_lists_is_not_missed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hole 13 by the listing: the new point comes after the folder was listed, the old one goes before it is read."""
    disk = disk_of(1)
    backup(store, disk_of(9))
    first, _ = backup(store, disk, mode="full")
    points = store._points
    read, sneaked = points.read, list[RestorePoint]()

    def slow(vm: str, seq: int) -> RestorePoint | None:
        if not sneaked:
            monkeypatch.undo()
            sneaked.append(backup(store, disk, disk.allocated())[0])
            store.retire(VM, first.id)
        return read(vm, seq)

    monkeypatch.setattr(store._points, "read", slow)  # only that something happens before it
    store.prune()
    assert_content(store, sneaked[0], disk)


@pytest.mark.parametrize("again", [False, True], ids=["", "and registered again"])
@pytest.mark.parametrize("step", ["store.packs-synced", "store.staged", "store.checked"])
def test_hole_13_a_stopped_process_of_an_abandoned_run_cannot_commit(
    store: Store, step: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped somewhere in its commit; meanwhile its run is abandoned and its packs are pruned."""
    first, _ = backup(store, disk_of(1))
    writer = store.writer("zombie")
    made, _ = write_disk(writer, disk_of(2), disk_of(2).allocated(), first.disks[0])

    def meanwhile() -> None:
        store.abandon("zombie")
        assert store.prune().packs == 1
        if again:
            store.writer("zombie").close()

    at_step(monkeypatch, step, meanwhile)
    with pytest.raises(Conflict, match=r"was ended|was pruned|cannot be used"):
        writer.commit(make_point(first, "zombie", [made]))
    assert store.newest(VM) == first and store.verify(deep=True) == []


def test_hole_13_a_run_that_was_registered_again_does_not_speak_for_the_old_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packs of the stopped process are under a tombstone that does not wait for the new registration."""
    first, _ = backup(store, disk_of(1))
    writer, blocker = store.writer("zombie"), store.writer("blocks")
    made, _ = write_disk(writer, disk_of(2), disk_of(2).allocated(), first.disks[0])

    def before() -> None:
        store.abandon("zombie")
        assert store.prune().waiting in (1, 2), "the pack; maps that are being written have a name in a folder only"
        store.writer("zombie").close()

    at_step(monkeypatch, "store.packs-synced", before)
    with pytest.raises(Conflict, match="was ended"):
        writer.commit(make_point(first, "zombie", [made]))
    blocker.close()
    store.abandon("blocks")
    assert store.prune().packs == 1
    assert store.newest(VM) == first and store.verify(deep=True) == []


def test_a_pack_that_went_meanwhile_stops_the_commit(store: Store) -> None:
    with store.writer("run") as writer:
        made, _ = write_disk(writer, disk_of(1), disk_of(1).allocated())
        writer.flush()
        for path in (store.path / "packs").iterdir():
            path.unlink()
        with pytest.raises(Conflict, match="was pruned"):
            writer.commit(make_point(None, "run", [made]))
    assert store.newest(VM) is None


def test_a_run_killed_right_after_its_commit_holds_nothing_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    at_step(monkeypatch, "store.linked", die)
    with pytest.raises(Killed):
        backup(store, disk_of(1), run="killed")
    monkeypatch.undo()
    assert store.runs() == ["killed"] and store.newest(VM) is not None
    store.prune()
    assert store.runs() == []


def test_hole_14_a_pin_and_a_retirement_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first at any step, a pin that was granted holds and a point that went was not pinned."""
    for label in ("store.retiring", "store.pinned"):
        first, _ = backup(store, disk_of(1), mode="full")
        backup(store, disk_of(2), mode="full")
        outcome: dict[str, BaseException | None] = {}

        def attempt(name: str, action: Callable[[], None], outcome: dict[str, BaseException | None] = outcome) -> None:
            try:
                action()
                outcome[name] = None
            except (NotFound, Refused) as err:
                outcome[name] = err

        def pin(first: RestorePoint = first) -> None:
            store.pin(VM, first.id, "pair-1")

        def retire(first: RestorePoint = first) -> None:
            store.retire(VM, first.id)

        inner, outer = (pin, retire) if label == "store.retiring" else (retire, pin)
        at_step(monkeypatch, label, lambda inner=inner: attempt("inner", inner))  # type: ignore[misc]
        attempt("outer", outer)
        monkeypatch.undo()
        pinned = outcome["inner" if inner is pin else "outer"] is None
        retired = outcome["outer" if inner is pin else "inner"] is None
        assert not (pinned and retired)
        assert (first.id in store.pins(VM)) == pinned
        assert (first in store.points(VM)) == (not retired)
        if pinned:
            store.unpin(VM, first.id, "pair-1")


def test_hole_14_a_pin_by_another_site_holds(store: Store) -> None:
    """Pins are files in the store: who prunes need not know who pinned."""
    first, _ = backup(store, disk_of(1))
    backup(store, disk_of(2), mode="full")
    Store.open(store.path).pin(VM, first.id, "pair-of-another-site")
    with pytest.raises(Refused, match="pair-of-another-site"):
        store.retire(VM, first.id)
    store.prune()
    assert_content(store, first, disk_of(1))
    store.unpin(VM, first.id, "pair-of-another-site")
    store.unpin(VM, first.id, "pair-of-another-site")
    store.retire(VM, first.id)
    with pytest.raises(NotFound):
        store.pin(VM, first.id, "pair-1")
    assert store.pins(VM) == {}


def test_what_a_dead_retirement_left_does_not_stop_a_pin(folder: Store) -> None:
    store = folder
    first, _ = backup(store, disk_of(1))
    left = store.path / "points" / VM / f".retiring-{first.id}.0000000000000000"
    left.touch()
    store.pin(VM, first.id, "pair-1")
    assert not left.exists() and store.pins(VM) == {first.id: {"pair-1"}}


def test_what_dead_retirements_left_of_points_that_are_gone_is_swept(folder: Store) -> None:
    store = folder
    first, _ = backup(store, disk_of(1))
    backup(store, disk_of(2), mode="full")
    left = store.path / "points" / VM / f".retiring-{first.id}.0000000000000000"
    left.touch()
    store.retire(VM, first.id)  # by the next one, who has an intent of his own
    store.prune()
    assert not left.exists()


def test_the_newest_is_never_retired(store: Store) -> None:
    first, _ = backup(store, disk_of(1))
    with pytest.raises(Refused, match="newest"):
        store.retire(VM, first.id)
    second, _ = backup(store, disk_of(2), mode="full")
    store.retire(VM, first.id)
    with pytest.raises(Refused, match="newest"):
        store.retire(VM, second.id)


def test_hole_15_names_are_never_used_again(store: Store) -> None:
    """Whatever is pruned and written again gets new names, so that equal places always mean equal bytes."""
    seen: set[str] = set()
    for seed in range(5):
        backup(store, disk_of(seed % 2), mode="full")
        for point in store.points(VM)[:-1]:
            store.retire(VM, point.id)
        fresh = packs(store) - seen
        seen |= packs(store)
        store.prune()
        assert seed == 0 or len(fresh) == 1
    assert len(seen) == 5


def test_hole_16_order_is_by_number_and_a_number_is_taken_once(store: Store) -> None:
    first, _ = backup(store, disk_of(1))
    second, _ = backup(store, disk_of(2), mode="full")
    old_clock = make_point(second, "run-3", [second.disks[0]])
    old_clock = old_clock.model_copy(
        update={"created": first.created.replace(year=2001), "data_time": first.data_time.replace(year=2001)}
    )
    with store.writer("run-3") as writer:
        writer.commit(old_clock)
    assert store.newest(VM) == old_clock
    store.retire(VM, second.id)
    for parent, run in ((first, "late-1"), (second, "late-2")):
        with store.writer(run) as writer, pytest.raises(Conflict, match="comes too late"):
            writer.commit(make_point(parent, run, [first.disks[0]]))
        store.abandon(run)
    store.prune()
    assert not (store.path / "points" / VM / f"{second.seq:08d}.json").exists()
    with store.writer("late-3") as writer, pytest.raises(Conflict, match="comes too late"):
        writer.commit(make_point(first, "late-3", [first.disks[0]]))


def test_a_parent_that_is_not_there_is_a_conflict(store: Store) -> None:
    first, _ = backup(store, disk_of(1))
    stranger = make_point(first.model_copy(update={"id": "00000001-ffffffff"}), "run-2", [first.disks[0]])
    with store.writer("run-2") as writer, pytest.raises(Conflict, match="as its parent"):
        writer.commit(stranger)
