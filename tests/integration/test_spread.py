"""Several workers inside one disk: who dies, stops or fails among them costs at most what it had not checkpointed."""

from __future__ import annotations

import filecmp
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.crew import PATIENCE, Crew, after, killed, overlapping, stopped, wait_stopped
from tests.integration.test_resumed import at, boot_and_write
from tests.integration.world import MIB, World, flat
from workers import backup, reaper, replicate
from workers.disks.file import FileLock
from workers.helper import Helper
from workers.models import RunState

#: of 8 MiB in slices of 512 KiB, four workers
TUNING = {"slice_size": "1MiB", "spread": 4, "retry_pause": "1s", "lock_wait": "2s", "lease": "30s", "attempts": 5}
SLICE = MIB // 2


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(tuning=TUNING)


def full_vm(world: World, name: str, size: int = 8 * MIB) -> str:
    """A VM whose disk is full of data, backed up once; the restore point."""
    world.make_vm(name, size)
    world.write(name, 0, os.urandom(size))
    point = world.backup(name).point
    assert point is not None
    return point


@pytest.mark.parametrize("survivor", ["helper", pytest.param("lead", marks=pytest.mark.slow)])
def test_a_first_sync_over_four_workers_survives_the_death_of_any_three(
    world: World, tmp_path: Path, survivor: str
) -> None:
    point = full_vm(world, f"four-{survivor}")
    run = world.request_sync(f"four-{survivor}")
    crew = Crew(world, run, tmp_path / "crew")
    meet = crew.together(4, "slice.locked")
    dies = [killed("slice.written", 2), killed("slice.synced", 2), killed("checkpoint.before", 2)]
    lead = crew.lead(meet if survivor == "lead" else after(meet, dies.pop()))
    assert crew.called() == 3
    helpers = [crew.helper(after(meet, dies.pop()) if dies else meet) for _ in range(3)]
    codes = sorted(worker.wait(PATIENCE) or 0 for worker in (lead, *helpers))
    assert codes == [-9, -9, -9, 0], [worker.said for worker in crew.workers]
    parts = world.catalogue.slices(run.id)
    assert overlapping(parts) >= 3
    assert sum(not part.finished for part in parts) == 3, "the fourth did all that was free"
    report = crew.go_on()
    assert report.outcome == "succeeded", report
    world.assert_replica_is(f"four-{survivor}", point)
    with_the_last = crew.written() + 3 * SLICE
    assert with_the_last <= 8 * MIB + 3 * SLICE, "each death cost one slice at most"
    assert world.catalogue.failures(run=run.id) == []


def test_whoever_is_last_commits_and_nobody_waits_for_it(world: World, tmp_path: Path) -> None:
    """The lead finds no free slice and gives the run back; the helper that has the last one goes on with it."""
    point = full_vm(world, "last")
    run = world.request_sync("last")
    crew = Crew(world, run, tmp_path / "crew")
    lead = crew.lead(crew.together(2, "slice.locked"))
    crew.called()
    helper = crew.helper(after(crew.together(2, "slice.locked"), stopped("slice.synced")))
    wait_stopped(helper)
    assert lead.wait(PATIENCE) == 0 and "shared" in lead.said, lead.said
    shared = world.catalogue.run(run.id)
    assert (shared.state, shared.owner) == (RunState.RUNNING, None)
    assert reaper.reap(world.here).lost == [] and world.catalogue.lost_runs(queued_s=0) == []
    os.kill(helper.pid, signal.SIGCONT)
    assert helper.wait(PATIENCE) == 0 and "succeeded" in helper.said, helper.said
    ended = world.catalogue.run(run.id)
    assert (ended.state, ended.point) == (RunState.SUCCEEDED, point)
    world.assert_replica_is("last", point)
    assert crew.written() == 8 * MIB, "nothing was written twice"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("slice.claimed", marks=pytest.mark.slow),
        pytest.param("slice.locked", marks=pytest.mark.slow),
        "slice.checked",
        pytest.param("slice.written", marks=pytest.mark.slow),
    ],
)
def test_hole_10_a_helper_that_wakes_up_after_its_slice_went_to_another(
    world: World, tmp_path: Path, step: str
) -> None:
    """Stopped inside a write, it keeps its range locked; after it has lost the slice nothing that it does counts."""
    name = f"wakes-{step.partition('.')[2]}"
    world.make_vm(name, 8 * MIB)
    world.backup(name)
    world.sync(name)
    world.write(name, 0, os.urandom(8 * MIB))
    point = world.backup(name).point
    run = world.request_sync(name)
    crew = Crew(world, run, tmp_path / "crew")
    lead = crew.lead(stopped("slice.claimed"))
    crew.called()
    wait_stopped(lead)
    sleeper = crew.helper(stopped(step, 2))
    wait_stopped(sleeper)
    os.kill(lead.pid, signal.SIGCONT)
    assert lead.wait(PATIENCE) == 0 and "shared" in lead.said, lead.said
    report = crew.go_on()  # its lease has run out
    if step == "slice.claimed":
        assert report.outcome == "succeeded"
    else:
        assert report.outcome == "waiting" and "locked" in report.reason, report
        assert world.cursor(name).state == "applying"
    before = world.catalogue.slices(run.id)
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.wait(PATIENCE) == 0
    assert "writes nothing more" in sleeper.said, sleeper.said
    assert world.catalogue.slices(run.id) == before
    if report.outcome == "waiting":
        assert crew.go_on().outcome == "succeeded"
    world.assert_replica_is(name, point)


def test_hole_10_a_helper_that_sleeps_in_a_compare_while_the_run_begins_anew(world: World, tmp_path: Path) -> None:
    """The replica is removed under a compare: its plan is dropped, and who slept in it reports nothing into the new."""
    point = full_vm(world, "cmp")
    world.sync("cmp")
    replica = world.pair("cmp").replica_name
    boot_and_write(world, replica, 5 * MIB, b"drift" * 1000)
    world.write("cmp", 0, b"1" * 4096)
    point = world.backup("cmp").point
    run = world.request_sync("cmp", discard=True)
    crew = Crew(world, run, tmp_path / "crew")
    lead = crew.lead(killed("slice.written", 2))
    crew.called()
    sleeper = crew.helper(stopped("slice.checked"))
    wait_stopped(sleeper)
    assert lead.wait(PATIENCE) == -9
    world.target.wait(world.vm(replica, "dr").Destroy_Task())
    report = crew.go_on()
    assert report.outcome == "succeeded", report
    os.kill(sleeper.pid, signal.SIGCONT)
    done = world.catalogue.slices(run.id)
    assert sleeper.wait(PATIENCE) == 0 and "outcome='left'" in sleeper.said, sleeper.said
    assert world.catalogue.slices(run.id) == done
    world.assert_replica_is("cmp", point)


def test_hole_2_two_that_are_last_at_once_commit_once(world: World, tmp_path: Path) -> None:
    """One sleeps in its commit until its lease has run out; another goes on; the first wakes up."""
    point = full_vm(world, "twice", 2 * MIB)
    run = world.request_sync("twice")
    crew = Crew(world, run, tmp_path / "crew")
    sleeper = crew.lead(stopped("commit.before"))
    wait_stopped(sleeper)
    assert crew.go_on().outcome == "waiting", "it holds the whole disk"
    os.kill(sleeper.pid, signal.SIGCONT)
    code = sleeper.wait(PATIENCE)
    assert code != 0 and ("FencedOut" in sleeper.said or "Conflict" in sleeper.said), sleeper.said
    assert crew.go_on().outcome == "succeeded"
    world.assert_replica_is("twice", point)
    assert len(world.catalogue.sync_points(world.pair("twice").id)) == 1


def test_a_helper_finds_what_its_lead_left_or_leaves(world: World, tmp_path: Path) -> None:
    """It changes nothing: no cursor, no content id, no plan, also where something has to be changed."""
    point = full_vm(world, "leaves")
    run = world.request_sync("leaves")
    world.killed_at(run, "slice.locked")
    replica = world.pair("leaves").replica_name
    boot_and_write(world, replica, MIB, b"guest")
    before = (world.state(replica, "dr"), world.catalogue.run(run.id), world.catalogue.slices(run.id))
    assert replicate.help_out(world.here, run.id).outcome == "left"
    assert (world.state(replica, "dr"), world.catalogue.run(run.id), world.catalogue.slices(run.id)) == before
    world.give_up(run.id)
    assert replicate.help_out(world.here, run.id).outcome == "left"
    world.sync("leaves", discard=True)
    world.assert_replica_is("leaves", point)


def test_a_boot_under_a_helper_ends_the_run_once_in_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full_vm(world, "booted")
    run = world.request_sync("booted")
    world.killed_at(run, "slice.locked")
    replica = world.pair("booted").replica_name
    at(monkeypatch, "slice.claimed", lambda: boot_and_write(world, replica, MIB, b"guest"))
    assert replicate.help_out(world.here, run.id).outcome == "left"
    ended = world.catalogue.run(run.id)
    assert (ended.state, ended.family) == (RunState.FAILED, "touched") and "powered on" in (ended.error or "")
    assert len(world.catalogue.failures(run=run.id)) == 1


def test_stop_reaches_a_helper_whose_lead_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full_vm(world, "stops")
    run = world.request_sync("stops")
    world.killed_at(run, "checkpoint.after")
    at(monkeypatch, "slice.synced", lambda: world.catalogue.ask_to_stop(run.id, "stopped by a person") and None)
    assert replicate.help_out(world.here, run.id).outcome == "stopped"
    assert world.catalogue.run(run.id).state is RunState.STOPPED
    assert [part.finished for part in world.catalogue.slices(run.id)].count(True) == 2
    assert not Helper(world.here, run, "another").renew(30), "who is in the middle of a slice ends there, too"


def test_a_slice_that_fails_again_and_again_parks_the_run_and_the_others_are_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_vm(world, "parks")
    run = world.request_sync("parks")
    world.killed_at(run, "slice.locked")
    first = world.catalogue.slices(run.id)[0]
    real = replicate.ReplicaTarget.write

    def write(self: replicate.ReplicaTarget, part, todo, source) -> None:  # type: ignore[no-untyped-def]
        if part.start == first.start:
            raise OSError(5, "Input/output error", "the datastore")
        real(self, part, todo, source)

    monkeypatch.setattr(replicate.ReplicaTarget, "write", write)  # no datastore fails at one place by request
    for _ in range(12):
        world.expire_lease(run)
        replicate.help_out(world.here, run.id)
        if not world.catalogue.run(run.id).live:
            break
    ended = world.catalogue.run(run.id)
    assert ended.state is RunState.FAILED and "from byte 0" in (ended.error or ""), ended
    assert "Input/output error" in (ended.error or "")
    assert [part.finished for part in world.catalogue.slices(run.id)].count(False) == 1


def test_killed_workers_make_no_later_error_wait_longer(world: World) -> None:
    """What they had goes on within a minute: the pause after an error grows with errors, not with deaths before it."""
    point = full_vm(world, "patient", SLICE // 4)
    run = world.request_sync("patient")
    for _ in range(3):
        world.killed_at(run, "slice.locked")
    (disk,) = world.replica_disks("patient").values()
    with FileLock(flat(world.dr, disk.file)).lock(0, 1, wait=0):
        report = replicate.run(world.here, run.id)
    assert report.outcome == "waiting" and "locked" in report.reason and "again in 2 s" in report.reason, report
    (part,) = world.catalogue.slices(run.id)
    assert part.attempts == 4 and part.lease_until is not None
    assert (part.lease_until - world.catalogue.now()).total_seconds() <= 2
    world.expire_lease(run)
    assert replicate.run(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is("patient", point)


def test_the_reaper_asks_for_as_many_as_are_missing(world: World) -> None:
    full_vm(world, "missing")
    run = world.request_sync("missing")
    world.killed_at(run, "slice.locked")
    with world.catalogue.write() as conn:
        conn.exec_driver_sql("update runs set sent = '2000-01-01 00:00:00.000000'")
    found = reaper.reap(world.here)
    assert ([lost.id for lost in found.lost], found.short) == ([run.id], []), "one message makes it go on"
    assert world.catalogue.claim(run.id, "somebody", 60)
    ((short, count),) = reaper.reap(world.here).short
    assert (short.id, count) == (run.id, 3)


@pytest.mark.slow
def test_a_first_sync_of_4_gib_over_four_workers_survives_the_death_of_any_three(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    """With the defaults: slices of 256 MiB, of which each death costs one at most."""
    world = make_world(tuning=TUNING | {"slice_size": "1GiB"})
    size, each = 4 << 30, 256 * MIB
    world.make_vm("large", MIB)
    world.grow_disk("large", 0, size)
    source = flat(world.prod, world.disks("large")[0].file)
    with open(source, "r+b") as file:
        for number in range(size // MIB):
            file.write((number + 1).to_bytes(8, "little") * (MIB // 8))
    made = world.request_backup("large")
    assert backup.run(world.here, made.id).outcome == "succeeded"
    run = world.request_sync("large")
    crew = Crew(world, run, tmp_path / "crew")
    meet = crew.together(4, "slice.locked")
    lead = crew.lead(after(meet, killed("slice.synced", 2)))
    assert crew.called() == 3
    helpers = [crew.helper(after(meet, killed(step, 2))) for step in ("slice.written", "checkpoint.before")]
    helpers.append(crew.helper(meet))
    codes = sorted(worker.wait(20 * PATIENCE) or 0 for worker in (lead, *helpers))
    assert codes == [-9, -9, -9, 0], [worker.said for worker in crew.workers]
    parts = world.catalogue.slices(run.id)
    assert len(parts) == 16 and overlapping(parts) >= 3
    assert crew.written() - sum(part.written for part in parts) <= 3 * each
    assert crew.go_on().outcome == "succeeded"
    replica = flat(world.dr, next(iter(world.replica_disks("large").values())).file)
    assert filecmp.cmp(source, replica, shallow=False)
