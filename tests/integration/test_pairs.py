"""Operations on pairs over vCenters: full syncs, approval, stopping, adopting, forgetting. Judged byte for byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests import services
from tests.integration import child
from tests.integration.realm import process_state
from tests.integration.world import MIB, World, flat
from workers import dispatch, holding, left_behind
from workers.catalogue import Catalogue, HoldKind
from workers.errors import Foreign, Refused, Touched
from workers.models import Run, RunKind, RunState, Trigger
from workers.run import Here
from workers.state import State
from workers.status import overview
from workers.vsphere import building


def synced(world: World, name: str, **more: Any) -> str:
    """A VM with a replica that holds its first restore point."""
    world.make_vm(name, 4 * MIB, **more)
    world.scribble(name, 1)
    while (report := world.backup(name)).outcome == "continues":  # a busy machine, or a test with short slices
        pass
    while world.sync(name).outcome == "continues":
        pass
    point = report.point
    assert point is not None
    return point


def ask(world: World, name: str, kind: RunKind, **memory: str) -> Run:
    return dispatch.request_care(world.here, world.pair(name), kind, memory=memory)[0]


def care(world: World, name: str, kind: RunKind, **memory: str) -> Run:
    run = ask(world, name, kind, **memory)
    child.work(world.here, run.id)
    return world.catalogue.run(run.id)


def dies_at(world: World, run: Run, step: str) -> None:
    """A worker does the run's work up to a step and is killed there."""
    job = child.Forked(
        lambda: child.work(world.here, run.id), world.folder / "child.log", doomed=lambda label: label == step
    )
    assert job.wait(60) == -signal.SIGKILL and job.hit == step, job.said
    world.expire_lease(run)


def due(world: World, name: str) -> list[Run]:
    """What a tick starts for this VM."""
    return [run for run in dispatch.dispatch(world.here, world.catalogue.now()) if run.vm == name]


def subject(world: World, name: str, which: holding.Which = "replicas") -> holding.Subject:
    (found,) = holding.subjects(world.here, [name], which=which)
    return found


def state_of(world: World, name: str) -> State:
    (line,) = overview(world.here, [name])
    return line.state


# --- full -----------------------------------------------------------------------------------------------------------


def test_a_full_sync_mends_what_nothing_else_would_notice(world: World) -> None:
    """A storage that lost a write: the content id is as it was, the cursor is clean, and the block is wrong."""
    point = synced(world, "full")
    run = dispatch.request_sync(world.here, world.pair("full"), Trigger.AD_HOC, full="ann asked (a doubt)")[0]
    (disk,) = world.replica_disks("full").values()
    assert disk.parent is not None
    for path in (disk.parent, disk.file):  # the simulator's delta is a copy
        with open(flat(world.dr, path), "r+b") as file:
            file.seek(MIB)
            file.write(b"\xa5" * 4096)
    assert child.work(world.here, run.id).outcome == "succeeded"
    ended = world.catalogue.run(run.id)
    assert any("compare" in reason and "ann asked (a doubt)" in reason for reason in ended.reasons)
    assert 0 < ended.written < MIB, "what is equal is not written"
    world.assert_replica_is("full", point)
    assert world.sync("full").outcome == "nothing new", "once"


def test_a_full_sync_is_done_in_parts_and_comes_to_an_end(make_world: Callable[..., World]) -> None:
    """Every message looks anew: the wish for a full sync must not throw away the checkpoints of the one before."""
    world = make_world(tuning={"slice_time": "1s"})
    point = synced(world, "parts")
    run = dispatch.request_sync(world.here, world.pair("parts"), Trigger.AD_HOC, full="ann asked")[0]
    dies_at(world, run, "checkpoint.after")
    read = sum(part.done - part.start for part in world.catalogue.slices(run.id))
    assert read
    child.work(world.here, run.id)
    ended = world.catalogue.run(run.id)
    assert ended.state is RunState.SUCCEEDED and not any("given up" in reason for reason in ended.reasons)
    world.assert_replica_is("parts", point)


def test_a_full_backup_does_not_ask_change_tracking(world: World) -> None:
    synced(world, "allread")
    world.backup("allread")
    world.write("allread", 3 * MIB, b"\x5a" * 4096)
    world.prod.control(cbt={"VM": "allread", "Disk": 0, "Hide": {"Offset": 3 * MIB, "Length": MIB}, "Answers": 5})
    (member,) = dispatch.find(world.here, "allread")
    run = dispatch.request_backup(world.here, member, Trigger.AD_HOC, full="ann asked (a doubt)")[0]
    report = child.work(world.here, run.id)
    world.keep("allread", report)
    assert any("compare, ann asked (a doubt)" in reason for reason in world.catalogue.run(run.id).reasons)
    assert report.point is not None
    world.assert_point_is_readable("allread", report.point)


# --- approval -------------------------------------------------------------------------------------------------------


def test_a_backup_that_must_compare_waits_for_approval(make_world: Callable[..., World]) -> None:
    world = make_world(group=('full = "ask"', 'backup = { every = "1h" }'))
    synced(world, "asked")
    world.scribble("asked", 2)
    world.prod.control(cbt={"VM": "asked", "Disk": 0, "Reset": True})
    report = world.backup("asked")
    assert report.outcome == "approval needed" and 'full = "ask"' in report.reason
    run = world.catalogue.run(report.run)
    assert run.state is RunState.NEEDS_APPROVAL and int(run.memory["bytes"]) > 0
    assert world.state("asked").snapshots == (), "its snapshot is gone"
    assert len(world.store.points(world.state("asked").identity.instance_uuid)) == 1
    (line,) = overview(world.here, ["asked"])
    assert line.backup.state is State.APPROVAL_NEEDED and line.problem
    assert [r for r in due(world, "asked") if r.kind is RunKind.BACKUP] == [], "its schedule waits"

    backups = subject(world, "asked", "backups")
    assert holding.approve(world.here, backups, who="ann", reason="new storage").done
    (fresh,) = [r for r in due(world, "asked") if r.kind is RunKind.BACKUP]
    report = child.work(world.here, fresh.id)
    assert report.outcome == "succeeded" and report.point is not None
    world.keep("asked", report)
    world.assert_point_is_readable("asked", report.point)
    assert any("approved by ann (new storage)" in reason for reason in world.catalogue.run(fresh.id).reasons)
    assert world.catalogue.holds(backups.target) == {}, "once"
    assert not holding.approve(world.here, backups, who="ann", reason="again").done


def test_a_replica_that_is_gone_is_not_built_again_without_approval(make_world: Callable[..., World]) -> None:
    world = make_world(group=('full = "never"',))
    point = synced(world, "rebuilt")
    world.target.wait(world.vm(world.pair("rebuilt").replica_name, "dr").Destroy_Task())
    report = world.sync("rebuilt")
    assert report.outcome == "approval needed" and "--full" in report.reason and "approve" not in report.reason
    with pytest.raises(Refused, match="never"):
        holding.approve(world.here, subject(world, "rebuilt"), who="ann", reason="")
    run = dispatch.request_sync(world.here, world.pair("rebuilt"), Trigger.AD_HOC, full="ann asked")[0]
    assert child.work(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is("rebuilt", point)


# --- stopping -------------------------------------------------------------------------------------------------------


def test_pause_now_stops_a_sync_at_its_checkpoint_and_the_next_one_goes_on(make_world: Callable[..., World]) -> None:
    world = make_world(tuning={"lease": "30s"})
    synced(world, "stopped")
    world.scribble("stopped", 2)
    point = world.backup("stopped").point
    run = world.request_sync("stopped")
    worker = world.in_child(run, "slice.written=stop")
    services.wait_for(lambda: process_state(worker.pid) == "T", "the worker in the middle of a slice", 60)
    said = holding.pause(world.here, subject(world, "stopped"), who="ann", reason="moving", now=True)
    assert "stops at its next checkpoint" in said.sentence
    os.kill(worker.pid, signal.SIGCONT)
    assert worker.wait(60) == 0
    ended = world.catalogue.run(run.id)
    assert ended.state is RunState.STOPPED and any("stopped by ann" in reason for reason in ended.reasons)
    assert all(part.finished for part in world.catalogue.slices(run.id)), "what was written is on record"
    assert world.cursor("stopped").state == "applying" and state_of(world, "stopped") is State.PAUSED
    assert due(world, "stopped") == []
    holding.resume(world.here, subject(world, "stopped"))
    world.sync("stopped")
    world.assert_replica_is("stopped", point)


def test_a_stopped_backup_leaves_no_snapshot(world: World) -> None:
    synced(world, "halted")
    run = world.request_backup("halted")
    dies_at(world, run, "checkpoint.after")
    assert len(world.state("halted").snapshots) == 1
    said = holding.disable(world.here, subject(world, "halted", "backups"), who="ann", reason="x", now=True)
    assert "stops at its next checkpoint" in said.sentence
    assert child.work(world.here, run.id).outcome == "stopped"
    (left,) = world.catalogue.unclean_runs()
    assert left.id == run.id

    left_behind.clean_up(world.here, run.id)
    assert world.state("halted").snapshots == () and world.catalogue.unclean_runs() == []
    with pytest.raises(Refused, match="understudy enable halted"):
        world.request_backup("halted")


# --- adopting -------------------------------------------------------------------------------------------------------


def another_realm(world: World) -> Catalogue:
    """What is left when a catalogue is lost: the same vCenters and store, another realm. The old one is returned."""
    old = world.catalogue
    world.catalogue = Catalogue.create(f"sqlite:///{world.folder}/another.db")
    world.here = Here(world.settings, world.catalogue)
    world.config.write_text(world.config.read_text().replace("catalogue.db", "another.db"))
    world.discover()
    return old


def pins(world: World, name: str) -> set[str]:
    held = world.store.pins(world.state(name).identity.instance_uuid)
    return {holder for holders in held.values() for holder in holders}


def test_a_replica_of_a_lost_catalogue_is_adopted_and_compared(world: World) -> None:
    point = synced(world, "lost")
    old = another_realm(world)
    with pytest.raises(Foreign, match="understudy adopt"):
        world.sync("lost")
    before = world.state("lost_replica", "dr")
    looked = care(world, "lost", RunKind.ADOPT)
    assert looked.state is RunState.NOTHING_NEW and old.realm in looked.reasons[0] and point in looked.reasons[0]
    assert world.state("lost_replica", "dr").notes == before.notes, "a look changes nothing"

    adopted = care(world, "lost", RunKind.ADOPT, confirmed="ann: the old one burned")
    assert adopted.state is RunState.SUCCEEDED
    cursor = world.cursor("lost")
    assert (cursor.realm, cursor.state, cursor.base) == (world.catalogue.realm, "applying", None)
    assert "ann: the old one burned" in cursor.compare and cursor.fence > 1
    assert world.state("lost_replica", "dr").snapshots == () and pins(world, "lost") == set()
    assert care(world, "lost", RunKind.ADOPT, confirmed="ann: again").state is RunState.NOTHING_NEW

    (disk,) = world.replica_disks("lost").values()
    with open(flat(world.dr, disk.file), "r+b") as file:
        file.write(b"\xa5" * 4096)  # nothing of it may be believed
    report = world.sync("lost")
    assert any("compare" in reason for reason in world.catalogue.run(report.run).reasons)
    world.assert_replica_is("lost", point)
    assert pins(world, "lost") == {f"{world.catalogue.realm}:{world.pair('lost').id}"}

    world.here = Here(world.settings, old)
    world.catalogue = old
    with pytest.raises(Foreign, match="another realm"):
        world.sync("lost")


def test_a_touch_between_adoption_and_sync_is_noticed(world: World) -> None:
    synced(world, "gap")
    another_realm(world)
    care(world, "gap", RunKind.ADOPT, confirmed="ann")
    replica = world.vm("gap_replica", "dr")
    world.target.wait(replica.PowerOnVM_Task())
    world.target.wait(replica.PowerOffVM_Task())
    with pytest.raises(Touched, match="changed by somebody else"):
        world.sync("gap")


@pytest.mark.parametrize("step", ["adopt.claimed", pytest.param("adopt.unsealed", marks=pytest.mark.slow)])
def test_an_adoption_that_dies_is_gone_on_with(world: World, step: str) -> None:
    point = synced(world, name := f"died-{step.partition('.')[2]}")
    another_realm(world)
    run = ask(world, name, RunKind.ADOPT, confirmed="ann")
    dies_at(world, run, step)
    assert child.work(world.here, run.id).outcome == "succeeded"
    assert world.state(f"{name}_replica", "dr").snapshots == () and pins(world, name) == set()
    world.sync(name)
    world.assert_replica_is(name, point)


def test_what_is_not_adopted(world: World) -> None:
    synced(world, "kept")
    assert care(world, "kept", RunKind.ADOPT, confirmed="ann").state is RunState.NOTHING_NEW, "it is ours"
    another_realm(world)
    replica = world.vm("kept_replica", "dr")
    world.target.wait(replica.PowerOnVM_Task())
    with pytest.raises(Refused, match="poweredOn"):
        care(world, "kept", RunKind.ADOPT, confirmed="ann")
    world.target.wait(replica.PowerOffVM_Task())
    world.target.wait(replica.CreateSnapshot_Task(name="by hand", memory=False, quiesce=False))
    with pytest.raises(Refused, match="'by hand'"):
        care(world, "kept", RunKind.ADOPT, confirmed="ann")
    queued = world.request_sync("kept")
    with pytest.raises(Refused, match="is under way"):
        ask(world, "kept", RunKind.ADOPT, confirmed="ann")
    world.give_up(queued.id)


# --- forgetting -----------------------------------------------------------------------------------------------------

#: most of them only in the long form: each costs a VM
STEPS = [
    "forget.released",
    *(
        pytest.param(step, marks=pytest.mark.slow)
        for step in (None, "forget.unsealed", "forget.unpinned", "forget.forgotten")
    ),
]


@pytest.mark.parametrize("step", STEPS)
def test_a_forgotten_replica_is_an_ordinary_vm(world: World, step: str | None) -> None:
    name = f"freed-{(step or 'not.killed').partition('.')[2]}"
    point = synced(world, name)
    held = world.replica_bytes(name)
    run = ask(world, name, RunKind.FORGET, who="ann", reason="sold")
    if step is not None:
        dies_at(world, run, step)
    assert child.work(world.here, run.id).outcome == "succeeded"
    left = world.state(f"{name}_replica", "dr")
    assert (left.notes, left.snapshots, left.witness) == ({}, (), "")
    assert "an ordinary VM now" in left.config.annotation
    (disk,) = left.config.disks
    assert [flat(world.dr, disk.file).read_bytes()] == list(held.values()) and pins(world, name) == set()
    assert world.held[point] and len(world.catalogue.runs(name)) == 3, "its history stays"
    (line,) = overview(world.here, [name])
    assert line.state is State.DISABLED and "forgotten since" in (line.sync.sentence if line.sync else "")
    assert due(world, name) == []
    with pytest.raises(Refused, match="understudy enable freed-"):
        world.request_sync(name)


def test_a_pair_that_is_forgotten_with_its_replica_begins_anew(world: World) -> None:
    synced(world, "anew")
    gone = world.replica_disks("anew")
    run = ask(world, "anew", RunKind.FORGET, with_replica="yes", who="ann", reason="x")
    dies_at(world, run, "forget.removing")
    assert child.work(world.here, run.id).outcome == "succeeded"
    assert not any(flat(world.dr, disk.file).exists() for disk in gone.values())
    assert holding.enable(world.here, subject(world, "anew")).done
    assert state_of(world, "anew") is State.NEVER_SYNCED
    (fresh,) = due(world, "anew")
    assert fresh.kind is RunKind.SYNC
    child.work(world.here, fresh.id)
    world.assert_replica_is("anew", str(world.catalogue.run(fresh.id).point))


def test_a_replica_on_which_somebody_works_is_not_removed(world: World) -> None:
    synced(world, "inuse")
    replica = world.vm("inuse_replica", "dr")
    world.target.wait(replica.PowerOnVM_Task())
    with pytest.raises(Touched, match="is running"):
        care(world, "inuse", RunKind.FORGET, with_replica="yes")
    world.target.wait(replica.PowerOffVM_Task())
    with pytest.raises(Touched, match="changed by somebody else"):
        care(world, "inuse", RunKind.FORGET, with_replica="yes")
    assert building.MARK in world.state("inuse_replica", "dr").notes and pins(world, "inuse")
    world.target.wait(replica.PowerOnVM_Task())
    assert care(world, "inuse", RunKind.FORGET).state is RunState.SUCCEEDED, "set free, it goes on running"
    assert world.state("inuse_replica", "dr").power == "poweredOn"


def test_what_was_not_built_and_what_is_not_ours_is_left_alone(world: World) -> None:
    world.make_vm("unbuilt", 4 * MIB)
    world.pair("unbuilt")
    run = care(world, "unbuilt", RunKind.FORGET, with_replica="yes")
    assert run.state is RunState.SUCCEEDED and any("there is no replica" in reason for reason in run.reasons)
    assert HoldKind.FORGOTTEN in world.catalogue.holds(run.target)[run.target]
    synced(world, "theirs")
    another_realm(world)
    before = world.state("theirs_replica", "dr")
    with pytest.raises(Foreign, match="another realm"):
        care(world, "theirs", RunKind.FORGET, with_replica="yes")
    assert care(world, "theirs", RunKind.FORGET).state is RunState.SUCCEEDED
    assert world.state("theirs_replica", "dr").notes == before.notes
