"""Several workers read one VM into a store, and several write what is restored from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.crew import PATIENCE, Crew, after, killed, overlapping
from tests.integration.world import MIB, World, flat
from workers import backup, prune, restore
from workers.models import RunState
from workers.restore_order import Wish

TUNING = {"slice_size": "1MiB", "spread": 4, "retry_pause": "1s", "lock_wait": "2s", "lease": "30s", "attempts": 5}


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(tuning=TUNING | {"sample": 1.0})


def test_three_workers_read_one_vm_and_one_of_them_dies(world: World, tmp_path: Path) -> None:
    """What it had made durable stays, though its own writer is gone; the committer takes all of it from the ledger."""
    world.make_vm("read", *([4 * MIB] * 6))
    world.scribble("read", 1)
    run = world.request_backup("read")
    crew = Crew(world, run, tmp_path / "crew")
    meet = crew.together(3, "slice.claimed")
    lead = crew.lead(meet)
    assert crew.called() == 3
    dies, lives = crew.helper(after(meet, killed("checkpoint.after"))), crew.helper(meet)
    codes = [worker.wait(PATIENCE) for worker in (lead, dies, lives)]
    assert codes == [0, -9, 0], [worker.said for worker in crew.workers]
    assert crew.go_on().outcome == "succeeded"
    parts = world.catalogue.slices(run.id)
    assert overlapping(parts, by_disk=False) == 3
    ended = world.catalogue.run(run.id)
    assert ended.point is not None and not any("again" in reason for reason in ended.reasons)
    world.held[ended.point] = {key: bytes(data) for key, data in world.log["read"].items()}
    world.assert_point_is_readable("read", ended.point)
    assert world.state("read").snapshots == () and world.store.runs() == []
    prune.free(world.here, "main", compact=False)
    assert not world.store.verify(deep=True)


def test_hole_28_a_block_that_a_helper_finds_missed_starts_the_run_again_once(world: World) -> None:
    world.make_vm("missed", 4 * MIB, 4 * MIB)
    world.scribble("missed", 1)
    world.backup("missed")
    world.backup("missed")
    world.write("missed", 2 * MIB, b"missed" * 1000)
    world.write("missed", 3 * MIB + 4096, b"reported" * 1000)
    world.prod.control(cbt={"VM": "missed", "Disk": 0, "Hide": {"Offset": 2 * MIB, "Length": MIB}, "Answers": 5})
    run = world.request_backup("missed")
    world.killed_at(run, "slices.planned")
    assert backup.help_out(world.here, run.id).outcome == "left"
    known = world.catalogue.run(run.id)
    assert known.live and "planned" not in known.memory and any(key.startswith("compare") for key in known.memory)
    assert backup.help_out(world.here, run.id).outcome == "left"
    report = backup.run(world.here, run.id)
    assert report.outcome == "succeeded"
    world.keep("missed", report)
    world.assert_point_is_readable("missed", report.point or "")


def test_a_helper_that_comes_too_late_is_not_waited_for(world: World) -> None:
    """It registers with the store when its run has ended already, and is killed there: prune must not wait for ever."""
    world.make_vm("late", 4 * MIB)
    run = world.request_backup("late")
    world.killed_at(run, "slices.planned")
    world.give_up(run.id)
    world.store.writer(run.id)  # and never closed
    world.store.writer("of-another-catalogue")
    prune.free(world.here, "main", compact=False)
    assert world.store.runs() == ["of-another-catalogue"]
    world.store.abandon("of-another-catalogue")


def test_a_restore_is_written_by_two(world: World, tmp_path: Path) -> None:
    world.make_vm("back", 8 * MIB)
    world.write("back", 0, os.urandom(8 * MIB))
    point = world.backup("back").point
    run, _ = restore.request(world.here, Wish(vm="back", to="back-again", site="dr", datastore="ds1"))
    crew = Crew(world, run, tmp_path / "crew")
    meet = crew.together(2, "slice.claimed")
    lead = crew.lead(after(meet, killed("slice.written", 3)))
    assert crew.called() == 3
    helper = crew.helper(meet)
    assert (lead.wait(PATIENCE), helper.wait(PATIENCE)) == (-9, 0), helper.said
    assert overlapping(world.catalogue.slices(run.id)) == 2
    assert crew.go_on().outcome == "succeeded"
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED
    (disk,) = world.state("back-again", "dr").config.disks
    assert point is not None and flat(world.dr, disk.file).read_bytes() == next(iter(world.held[point].values()))
