"""Interleavings that lose data unless the protocol closes them. Each is played through, then judged byte for byte."""

import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from pyVmomi import vim

from tests.integration.world import MIB, World, flat
from workers import backup, replicate
from workers.errors import Touched, UnderstudyError
from workers.models import RunState


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """With leases that nobody renews meanwhile: a process that is stopped in a renewal would keep SQLite's lock."""
    return make_world(tuning={"lease": "1m"})


def test_hole_1_second_crash(world: World) -> None:
    """A->B dies after writing x; A->C dies before x; A->D must still cover x, though x is equal in A and C and D."""
    world.make_vm("h1", 16 * MIB)
    world.write("h1", 0, b"A" * 4096)
    world.backup("h1")
    world.sync("h1")
    world.write("h1", 0, b"B" * 4096)
    world.backup("h1")
    dead = world.request_sync("h1")
    world.killed_at(dead, "slice.synced")
    world.give_up(dead.id)
    world.write("h1", 0, b"A" * 4096)
    world.write("h1", 8 * MIB, b"C" * 4096)
    world.backup("h1")
    dead = world.request_sync("h1")
    world.killed_at(dead, "slice.checked")
    world.give_up(dead.id)
    assert len(world.cursor("h1").targets) == 2
    world.write("h1", 8 * MIB + 4096, b"D" * 4096)
    last = world.backup("h1").point
    world.sync("h1")
    world.assert_replica_is("h1", last)


def test_hole_25_changed_and_changed_back(world: World) -> None:
    """x changed in B and back in C; a run to B died in between: diff(A, C) alone would keep the middle value."""
    world.make_vm("h25", 16 * MIB)
    world.write("h25", 65536, b"A" * 8192)
    world.backup("h25")
    world.sync("h25")
    world.write("h25", 65536, b"B" * 8192)
    world.backup("h25")
    dead = world.request_sync("h25")
    world.killed_at(dead, "slice.synced")
    world.give_up(dead.id)
    assert b"B" * 8192 in world.replica_bytes("h25").popitem()[1]
    world.write("h25", 65536, b"A" * 8192)
    point = world.backup("h25").point
    assert world.plan("h25").bytes >= 8192
    world.sync("h25")
    world.assert_replica_is("h25", point)


def test_hole_2_commit_race(world: World) -> None:
    """Run 1 sleeps in its commit, past its fence check; run 2 raises the fence and writes; run 1 wakes up."""
    world.make_vm("h2", 16 * MIB)
    world.backup("h2")
    world.sync("h2")
    world.write("h2", 0, b"1" * 4096)
    world.backup("h2")
    sleeper = world.request_sync("h2")
    child = world.in_child(sleeper, "commit.before=stop")
    wait_stopped(child.pid)
    world.write("h2", MIB, b"2" * 4096)
    newer = world.backup("h2").point
    # the sleeper holds the whole-disk locks: run 2 may not even begin to write
    world.expire_lease(sleeper)
    world.give_up(sleeper.id)
    second = world.request_sync("h2")
    assert second.fence > sleeper.fence
    report = replicate.run(world.here, second.id)
    assert report.outcome == "waiting" and "locked" in report.reason
    child.send_signal(18)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode != 0 and b"FencedOut" in out) or b"Conflict" in out, out.decode()[-2000:]
    assert world.cursor("h2").state == "applying"
    world.expire_lease(second)
    replicate.run(world.here, second.id)
    world.assert_replica_is("h2", newer)


def wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} did not reach its step")


@pytest.mark.parametrize("step", ["slice.locked", "slice.checked", "slice.written"])
def test_hole_10_a_paused_writer_keeps_others_out_until_it_learns_that_it_is_fenced(world: World, step: str) -> None:
    name = f"h10-{step.replace('.', '-')}"
    world.make_vm(name, 16 * MIB)
    world.backup(name)
    world.sync(name)
    world.write(name, 0, b"1" * 4096)
    world.backup(name)
    sleeper = world.request_sync(name)
    child = world.in_child(sleeper, f"{step}=stop")
    wait_stopped(child.pid)
    world.write(name, 0, b"2" * 4096)
    newer = world.backup(name).point
    world.expire_lease(sleeper)
    world.give_up(sleeper.id)
    second = world.request_sync(name)
    assert replicate.run(world.here, second.id).outcome == "waiting"
    child.send_signal(18)
    out, _ = child.communicate(timeout=60)
    assert child.returncode != 0, out
    world.expire_lease(second)
    replicate.run(world.here, second.id)
    world.assert_replica_is(name, newer)


def test_hole_7_power_on_by_hand_while_applying(world: World) -> None:
    """No seal exists; the guest writes outside of the plan; nothing of it may survive into `committed`."""
    world.make_vm("h7", 16 * MIB)
    world.backup("h7")
    world.sync("h7")
    world.write("h7", 0, b"1" * 4096)
    world.backup("h7")
    dead = world.request_sync("h7")
    world.killed_at(dead, "slice.synced")
    replica = world.pair("h7").replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": 12 * MIB, "Hex": "ff" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    with pytest.raises(Touched):
        replicate.run(world.here, dead.id)
    world.write("h7", MIB, b"2" * 4096)
    point = world.backup("h7").point
    with pytest.raises(Touched):
        world.sync("h7")
    report = world.sync("h7", discard=True)
    assert "compare" in " ".join(world.catalogue.run(report.run).reasons)
    world.assert_replica_is("h7", point)


@pytest.mark.parametrize("step", ["own.before", "hardware.after", "own.renewed"])
def test_hole_7_power_on_by_hand_while_the_replica_was_taken_over(world: World, step: str) -> None:
    """The run dies while the disks get new content ids: a boot after that must still show, and nothing else may."""
    name = f"h7-{step.replace('.', '-')}"
    world.make_vm(name, 16 * MIB)
    world.backup(name)
    world.sync(name)
    world.add_disk(name, 2 * MIB)
    world.backup(name)
    dead = world.request_sync(name)
    world.killed_at(dead, step)
    plan = world.plan(name)
    assert "compare" not in {disk.mode for disk in plan.disks}, "what is known of the disks still holds"
    replica = world.pair(name).replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": 12 * MIB, "Hex": "ff" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    with pytest.raises(Touched):
        replicate.run(world.here, dead.id)
    point = world.backup(name).point
    world.sync(name, discard=True)
    world.assert_replica_is(name, point)


def test_hole_7_a_compare_that_dies_is_still_a_compare_for_the_next_run(world: World) -> None:
    """The run that must compare everything dies; the next one may not believe the unremarkable cursor it finds."""
    world.make_vm("h7c", 16 * MIB)
    world.backup("h7c")
    world.sync("h7c")
    replica = world.pair("h7c").replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": 12 * MIB, "Hex": "ee" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    world.write("h7c", 0, b"1" * 4096)
    point = world.backup("h7c").point
    dead = world.request_sync("h7c", discard=True)
    world.killed_at(dead, "slice.checked")
    world.give_up(dead.id)
    report = world.sync("h7c")
    assert report.read >= 16 * MIB
    world.assert_replica_is("h7c", point)


def test_hole_7_what_was_planned_before_the_touch_does_not_limit_the_compare(world: World) -> None:
    """The run dies between writing its slices and knowing that it did; then somebody boots the replica."""
    world.make_vm("h7p", 16 * MIB)
    world.backup("h7p")
    world.sync("h7p")
    world.write("h7p", 0, b"1" * 4096)
    point = world.backup("h7p").point
    run = world.request_sync("h7p", discard=True)
    world.killed_at(run, "slices.added")
    replica = world.pair("h7p").replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": 12 * MIB, "Hex": "dd" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    with pytest.raises(Touched):  # what was given up was given up before somebody booted it
        replicate.run(world.here, run.id)
    world.sync("h7p", discard=True)
    world.assert_replica_is("h7p", point)


def test_hole_8_a_doubled_message_neither_starts_nor_fences_anything(world: World) -> None:
    world.make_vm("h8", 16 * MIB)
    world.scribble("h8", 1)
    world.backup("h8")
    run = world.request_sync("h8")
    child = world.in_child(run, "slice.locked=stop")
    wait_stopped(child.pid)
    for _ in range(5):
        report = replicate.run(world.here, run.id)
        assert report.outcome == RunState.RUNNING and report.written == 0
        assert world.request_sync("h8").id == run.id
    assert world.catalogue.fence(run.target) == run.fence
    child.send_signal(18)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out.decode()[-2000:]
    late = replicate.run(world.here, run.id)
    assert late.outcome == RunState.SUCCEEDED and late.written == 0
    world.assert_replica_is("h8", list(world.held)[-1])


def test_hole_9_a_rebuilt_catalogue_does_not_start_its_fences_at_one(world: World) -> None:
    world.make_vm("h9", 16 * MIB)
    world.backup("h9")
    for seed in range(3):
        world.scribble("h9", seed)
        world.backup("h9")
        world.sync("h9")
    held = world.cursor("h9").fence
    with world.catalogue.write() as conn:
        for table in ("slices", "sync_points", "runs", "targets"):
            conn.execute(sa.text(f"delete from {table}"))
    world.scribble("h9", 9)
    point = world.backup("h9").point
    world.sync("h9")
    assert world.cursor("h9").fence > held
    world.assert_replica_is("h9", point)


def test_hole_12_a_resumed_backup_never_mixes_two_snapshots(world: World) -> None:
    """Two disks; the run dies after the first; its snapshot is lost; the guest writes on; the run is resumed."""
    world.make_vm("h12", 8 * MIB, 8 * MIB)
    world.scribble("h12", 1)
    run = world.request_backup("h12")
    world.killed_at(run, "checkpoint.after")
    (snapshot,) = world.state("h12").snapshots
    world.source.wait(world.source.object(vim.vm.Snapshot, snapshot.moref).RemoveSnapshot_Task(removeChildren=False))
    world.scribble("h12", 2)
    report = backup.run(world.here, run.id)
    world.keep("h12", report)
    world.assert_point_is_readable("h12", report.point)
    assert any("snapshot" in reason for reason in world.catalogue.run(run.id).reasons)
    world.sync("h12")
    world.assert_replica_is("h12", report.point)


def test_hole_23_committed_but_unsealed_costs_no_compare(world: World) -> None:
    world.make_vm("h23", 16 * MIB)
    world.backup("h23")
    world.sync("h23")
    world.write("h23", 0, b"1" * 4096)
    point = world.backup("h23").point
    run = world.request_sync("h23")
    world.killed_at(run, "seal.before")
    world.give_up(run.id)
    assert world.state(world.pair("h23").replica_name, "dr").snapshots == ()
    report = world.sync("h23")
    assert (report.outcome, report.read) == ("nothing new", 0)
    assert len(world.state(world.pair("h23").replica_name, "dr").snapshots) == 1
    assert world.catalogue.sync_point(world.pair("h23").id).point == point
    world.write("h23", 4096, b"2" * 4096)
    point = world.backup("h23").point
    assert world.sync("h23").read == 4096
    world.assert_replica_is("h23", point)


def test_hole_24_the_worst_day(world: World) -> None:
    """We are down; somebody boots the replica; production runs on it; it is shut down; our next tick comes."""
    world.make_vm("h24", 16 * MIB)
    world.scribble("h24", 1)
    world.backup("h24")
    world.sync("h24")
    replica = world.pair("h24").replica_name
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": 4096, "Hex": "ab" * 4096})
    world.target.wait(vm.PowerOffVM_Task())
    production = flat(world.dr, world.replica_disks("h24").popitem()[1].file).read_bytes()
    world.scribble("h24", 2)
    world.backup("h24")
    with pytest.raises(Touched, match="production may have run on it"):
        world.sync("h24")
    assert flat(world.dr, world.replica_disks("h24").popitem()[1].file).read_bytes() == production
    assert world.catalogue.failures(vm="h24", limit=1)[0].family == "touched"


def test_hole_28_a_missed_block_is_found_by_the_sample(make_world: Callable[..., World]) -> None:
    """With every block outside the answer sampled the miss is certain to be found, and the whole disk is compared."""
    world = make_world(tuning={"sample": 1.0})
    world.make_vm("h28", 8 * MIB)
    world.scribble("h28", 1)
    world.backup("h28")
    world.backup("h28")
    world.write("h28", 3 * MIB, b"missed" * 1000)
    world.write("h28", 6 * MIB, b"reported" * 1000)
    world.prod.control(cbt={"VM": "h28", "Disk": 0, "Hide": {"Offset": 3 * MIB, "Length": MIB}, "Answers": 5})
    report = world.backup("h28")
    assert any("missed a changed block" in r for r in world.catalogue.run(report.run).reasons)
    world.assert_point_is_readable("h28", report.point)


def test_a_failed_backup_leaves_no_snapshot_and_no_point(world: World) -> None:
    world.make_vm("fails", 8 * MIB)
    world.scribble("fails", 1)
    world.backup("fails")
    hidden = flat(world.prod, world.disks("fails")[0].file)
    run = world.request_backup("fails")
    world.killed_at(run, "snapshot.after")
    hidden.with_name(hidden.name.replace("-flat", "")).rename(hidden.with_suffix(".aside"))
    try:
        with pytest.raises(UnderstudyError):
            backup.run(world.here, run.id)
    finally:
        hidden.with_suffix(".aside").rename(hidden.with_name(hidden.name.replace("-flat", "")))
    assert world.catalogue.run(run.id).state is RunState.FAILED
    assert world.state("fails").snapshots == ()
    assert len(world.store.points(world.state("fails").identity.instance_uuid)) == 1
