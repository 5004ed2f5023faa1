"""Rot on a replica is found, named and mended; what is no rot is left alone. Judged byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tasks import tables
from tests.integration.world import MIB, World, flat
from workers import dispatch, replicate, status, verify
from workers.errors import NotFound, Refused, StoreDamaged, TargetBusy, Touched, ValidationFailed
from workers.models import Run, RunKind, RunState, Trigger

GRANULE = 4096


def base(world: World, name: str, number: int = 0) -> Path:
    """The file under the seal."""
    disks = world.replica_disks(name)
    disk = disks[world.disks(name)[number].id]
    assert disk.parent is not None, "sealed"
    return flat(world.dr, disk.parent)


def rot(file: Path, offset: int) -> None:
    """One bit, without anybody's knowledge. Also in the simulator's leaf, which is a copy of all of its parent."""
    leaves = list(file.parent.glob(file.name.replace("-flat.vmdk", "-[0-9]*-flat.vmdk")))
    assert leaves, "sealed"
    for each in (file, *leaves):
        with open(each, "r+b") as disk:
            disk.seek(offset)
            (byte,) = disk.read(1)
            disk.seek(offset)
            disk.write(bytes([byte ^ 4]))


def check(world: World, name: str, *, repair: bool = False) -> Run:
    run, made = verify.request(world.here, world.pair(name), repair=repair)
    assert made
    verify.run(world.here, run.id)
    return world.catalogue.run(run.id)


def grown(world: World, name: str) -> str:
    world.make_vm(name, 8 * MIB, 4 * MIB)
    world.scribble(name, 1, count=8)
    world.backup(name)
    world.sync(name)
    world.scribble(name, 2)
    point = str(world.backup(name).point)
    world.sync(name)
    return point


def test_rot_is_found_named_and_mended_with_just_what_differs(world: World) -> None:
    name = "rotten"
    point = grown(world, name)
    pair = world.pair(name)
    before = world.catalogue.sync_point(pair.id)
    good = check(world, name)
    assert good.state is RunState.SUCCEEDED and good.point == point and good.written == 0
    assert world.catalogue.scrubs()[good.target].whole_ended is not None

    first, second = base(world, name), base(world, name, 1)
    spots = [(first, 5), (first, 3 * MIB + 100), (first, 3 * MIB + 5000), (second, 4 * MIB - 1)]
    for file, offset in spots:
        rot(file, offset)
    run, _ = verify.request(world.here, pair)
    with pytest.raises(ValidationFailed) as err:
        verify.run(world.here, run.id)
    text = str(err.value)
    assert "4 granules of 4 KiB" in text and point in text and "--repair" in text
    assert "Hard disk 1" in text and "bytes 0 to 4096" in text and f"bytes {3 * MIB} to {3 * MIB + 8192}" in text
    assert "Hard disk 2" in text and f"bytes {4 * MIB - 4096} to {4 * MIB}" in text and "[ds1]" in text
    ended = world.catalogue.run(run.id)
    assert (ended.state, ended.family) == (RunState.FAILED, "validation failed")
    assert world.catalogue.failures(vm=name, limit=1)[0].message == text
    assert world.catalogue.sync_point(pair.id) == before, "nothing was committed"
    found = {(d.label, d.start, d.end, d.granules) for d in world.catalogue.damages(ended.target)}
    assert len(found) == 3 and sum(each[3] for each in found) == 4

    mended = check(world, name, repair=True)
    assert mended.state is RunState.SUCCEEDED and mended.written == 4 * GRANULE
    world.assert_replica_is(name, point)
    assert world.catalogue.damages(ended.target) == []
    cursor = world.cursor(name)
    assert (cursor.state, cursor.base, cursor.targets) == ("committed", point, ())
    assert world.state(pair.replica_name, "dr").snapshots, "sealed again"
    assert check(world, name).state is RunState.SUCCEEDED
    world.scribble(name, 3)
    after = str(world.backup(name).point)
    assert world.sync(name).outcome == "succeeded"
    world.assert_replica_is(name, after)


@pytest.mark.parametrize(
    "step",
    [
        "slice.written",
        *(
            pytest.param(step, marks=pytest.mark.slow)
            for step in ("verify.found", "cursor.applying", "own.before", "commit.after", "verify.mended")
        ),
    ],
)
def test_a_repair_killed_at_a_step_goes_on(world: World, step: str) -> None:
    name = f"vk-{step.replace('.', '-')}"
    point = grown(world, name)
    rot(base(world, name), 2 * MIB)
    rot(base(world, name), 7 * MIB)
    run, _ = verify.request(world.here, world.pair(name), repair=True)
    world.killed_at(run, step)
    if step == "slice.written":  # given up: the next sync needs no compare, and what is rotten stays on record
        world.give_up(run.id)
        world.scribble(name, 9)
        point = str(world.backup(name).point)
        planned = world.plan(name)
        assert {disk.mode for disk in planned.disks} <= {"delta", "nothing"}
        world.sync(name)
        check(world, name, repair=True)
    else:
        verify.run(world.here, run.id)
    world.assert_replica_is(name, point)
    assert world.catalogue.damages() == []


def test_what_is_no_rot_is_left_alone(world: World) -> None:
    name = "usedup"
    world.make_vm(name, 4 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    with pytest.raises(Refused, match="no replica yet"):
        check(world, name)
    run = world.request_sync(name)
    world.killed_at(run, "slice.written")
    with pytest.raises(Refused, match=f"the sync {run.id} is at work"):
        verify.request(world.here, world.pair(name))
    world.give_up(run.id)
    with pytest.raises(Refused, match="stopped half way"):
        check(world, name)
    world.sync(name)
    vm = world.vm(world.pair(name).replica_name, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": world.pair(name).replica_name, "Disk": 0, "Offset": 4096, "Hex": "ab" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    rot(base(world, name), 0)
    held = world.replica_bytes(name)
    for repair in (False, True):
        with pytest.raises(Touched, match="production may have run on it"):
            check(world, name, repair=repair)
    assert world.catalogue.damages() == [] and world.replica_bytes(name) == held


def test_a_damaged_store_is_no_finding_about_the_replica(world: World) -> None:
    """Where the store can not be read nothing is compared, and that is said; all else is."""
    name = "torn"
    point = grown(world, name)
    pack = max((world.store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    for offset in range(4096, len(data) - 8192, 4096):
        data[offset] ^= 1
    pack.write_bytes(data)
    rot(base(world, name), 1 * MIB)
    run, _ = verify.request(world.here, world.pair(name))
    with pytest.raises((StoreDamaged, ValidationFailed)):
        verify.run(world.here, run.id)
    ended = world.catalogue.run(run.id)
    assert any(pack.name in reason and "could not be compared" in reason for reason in ended.reasons)
    assert world.catalogue.scrubs() == {}, "it was not whole"
    assert point in str(ended.reasons)


def test_the_time_of_a_message_is_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It yields at its limit, and goes on where it was."""
    name = "long"
    point = grown(world, name)
    rot(base(world, name), 6 * MIB)
    # time is up at once, and no setting may say so
    monkeypatch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
    run, _ = verify.request(world.here, world.pair(name), repair=True)
    messages = 0
    while world.catalogue.run(run.id).live:
        report = verify.run(world.here, run.id)
        messages += 1
        assert messages < 20
    assert report.outcome == "repaired" and messages > 2
    world.assert_replica_is(name, point)


def test_a_repair_that_takes_more_than_a_message_is_no_failure_of_the_datastore(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a message has mended is read back by it."""
    name = "much"
    point = grown(world, name)
    for offset in (0, 3 * MIB):
        rot(base(world, name), offset)
    run, _ = verify.request(world.here, world.pair(name), repair=True)
    world.killed_at(run, "cursor.applying")
    monkeypatch.setattr("workers.transfer.BATCH", GRANULE)  # so that a batch is less than what is to be mended
    # time is up at once, and no setting may say so
    monkeypatch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
    said = [verify.run(world.here, run.id).outcome for _ in range(3)]
    assert said == ["continues", "continues", "repaired"]
    world.assert_replica_is(name, point)


def test_a_part_that_failed_is_not_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again after the others: the round stands before it until it was compared."""
    name = "passed"
    grown(world, name)
    first = min(range(2), key=lambda number: world.disks(name)[number].id)
    rot(base(world, name, first), 0)
    run, _ = verify.request_part(world.here, world.pair(name), "one", share=1, repair=False)
    world.killed_at(run, "verify.locked")
    with monkeypatch.context() as patch:
        patch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
        assert verify.run(world.here, run.id).outcome == "verified", "the other disk, and then its time was up"
    known = world.catalogue.scrubs()[run.target]
    assert (known.covered, known.ended, known.whole_ended) == (0, None, None)
    run, _ = verify.request_part(world.here, world.pair(name), "two", share=1, repair=False)
    with pytest.raises(ValidationFailed):
        verify.run(world.here, run.id)
    assert world.catalogue.scrubs()[run.target].whole_ended is not None


def test_the_scrub_compares_a_part_a_day_and_a_sync_goes_first(
    make_world: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(scrub=0.25, group=["backup = { every = '1d' }"])
    name = "scrubbed"
    grown(world, name)  # 12 MiB in two disks
    pair, now = world.pair(name), world.catalogue.now()
    target = f"pair:{pair.id}"

    def tick(days: float) -> list[Run]:
        return [r for r in dispatch.dispatch(world.here, now + timedelta(days=days)) if r.target == target]

    world.scribble(name, 5)
    newest = str(world.backup(name).point)
    (first,) = tick(1)
    assert first.kind is RunKind.SYNC, "what is due of the replica goes first"
    assert tick(1) == []
    replicate.run(world.here, first.id)
    world.assert_replica_is(name, newest)

    last = base(world, name, 1)
    rot(last, MIB)
    ends = []
    for day in range(2, 7):
        made = tick(day)
        assert len(made) <= 1 and tick(day) == []
        for run in made:
            assert (run.kind, run.trigger) == (RunKind.VERIFY, Trigger.SCHEDULE)
            # The round's clock is the catalogue's: there these days have not passed, so the place is moved by hand.
            _let_days_pass(world, target, day - 2)
            try:
                verify.run(world.here, run.id)
            except ValidationFailed:
                ends.append(day)
        if (known := world.catalogue.scrubs()[target]).ended is not None:
            break
        halfway = status.overview(world.here, [name])
    assert known.covered == known.total == 12 * MIB and known.whole_ended is not None
    assert len(ends) == 1, "found when its turn came"
    tables.compared(halfway)
    assert f"has come to {100 * halfway[0].scrub.covered // (12 * MIB)} %" in capsys.readouterr().out
    (line,) = status.overview(world.here, [name])
    tables.compared([line])
    assert "every byte of the replica was compared with its restore point between" in capsys.readouterr().out
    assert line.state == "validation failed" and line.problem
    assert "1 granule of 4 KiB" in " ".join(line.troubles) and "--repair" in " ".join(line.troubles)
    with pytest.raises(NotFound):
        status.overview(world.here, ["nobody"])
    check(world, name, repair=True)
    (line,) = status.overview(world.here, [name])
    assert line.state == "in sync" and not line.problem
    world.assert_replica_is(name, newest)


def _let_days_pass(world: World, target: str, days: int) -> None:
    with world.catalogue.write() as conn:
        conn.execute(
            sa.text("update scrubs set began = datetime(:now, :back) where target = :target and ended is null"),
            {"now": str(world.catalogue.now().replace(tzinfo=None)), "back": f"-{days} days", "target": target},
        )


def test_a_sync_that_is_asked_for_does_not_wait_for_the_scrub(make_world: Callable[..., World]) -> None:
    world = make_world(scrub=1)
    name = "hurried"
    point = grown(world, name)
    pair = world.pair(name)
    part, _ = verify.request_part(world.here, pair, "one", share=1, repair=False)
    run = world.request_sync(name)
    assert run.kind is RunKind.SYNC and world.catalogue.run(part.id).state is RunState.STOPPED
    replicate.run(world.here, run.id)
    part, _ = verify.request_part(world.here, pair, "two", share=1, repair=False)
    world.killed_at(part, "verify.locked")
    claimed = world.catalogue.claim(part.id, "somebody", 60)
    assert claimed is not None
    with pytest.raises(TargetBusy, match="ends at its next checkpoint"):
        world.request_sync(name)
    world.expire_lease(part)
    assert verify.run(world.here, part.id).outcome == "stopped"
    assert world.request_sync(name).kind is RunKind.SYNC
    world.give_up(world.request_sync(name).id)
    whole, _ = verify.request(world.here, pair)
    with pytest.raises(TargetBusy, match="was asked for, too"):
        world.request_sync(name)
    verify.run(world.here, whole.id)
    world.assert_replica_is(name, point)


@pytest.mark.slow
def test_the_scrub_mends_where_the_policy_says_so(world: World) -> None:
    name = "mends"
    point = grown(world, name)
    rot(base(world, name), 0)
    rot(base(world, name, 1), 0)
    run, _ = verify.request_part(world.here, world.pair(name), "one", share=1, repair=True)
    assert verify.run(world.here, run.id).outcome == "repaired"
    assert world.catalogue.run(run.id).written == 2 * GRANULE
    world.assert_replica_is(name, point)


def test_hole_20_a_crash_after_the_cursor_makes_no_repair_mend_good_data(world: World) -> None:
    """What a replica should hold is what its cursor names, whatever the catalogue had time to learn."""
    name = "h20"
    grown(world, name)
    world.scribble(name, 3)
    after = str(world.backup(name).point)
    run = world.request_sync(name)
    world.killed_at(run, "commit.after")
    world.give_up(run.id)
    known = world.catalogue.sync_point(world.pair(name).id)
    assert known is not None and known.point != after
    mended = check(world, name, repair=True)
    assert (mended.state, mended.point, mended.written) == (RunState.SUCCEEDED, after, 0)
    world.assert_replica_is(name, after)
