"""Several workers write one disk whose old content is kept: whoever dies, the replica goes back, and then forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.crew import PATIENCE, Act, Crew, after, killed, overlapping
from tests.integration.test_spread import TUNING
from tests.integration.test_undo import back, disaster, forward, left, with_
from tests.integration.world import MIB, World
from workers.models import Run
from workers.run import Here


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """The store stands at the recovery site, where it would do; old content is kept all the same."""
    made = make_world(tuning=TUNING, store=['site = "dr"'])
    made.settings = with_(made.settings, target={"undo": "always"})
    made.here = Here(made.settings, made.catalogue)
    return made


def changed(world: World, name: str, seed: int, size: int) -> str:
    """Half of the disk is new, in pieces everywhere; the restore point that has it."""
    rng = random.Random(seed)
    for start in range(0, size, MIB // 2):
        world.write(name, start + rng.randrange(MIB // 4), rng.randbytes(MIB // 4))
    return str(world.backup(name).point)


def broken_off(world: World, run: Run, folder: Path, *dies: Act) -> None:
    """A sync by so many workers at once, who all die; then nobody goes on with it."""
    crew = Crew(world, run, folder)
    meet = crew.together(len(dies), "slice.locked")
    crew.lead(after(meet, dies[0]))
    assert crew.called() >= len(dies) - 1
    for act in dies[1:]:
        crew.helper(after(meet, act))
    assert [worker.wait(PATIENCE) for worker in crew.workers] == [-9] * len(dies), [w.said for w in crew.workers]
    parts = world.catalogue.slices(run.id)
    assert overlapping([part.model_copy(update={"ended": part.ended or world.catalogue.now()}) for part in parts]) > 1
    assert any(part.finished for part in parts) and not all(part.finished for part in parts)
    world.expire_lease(run)
    world.give_up(run.id)


def test_hole_4_what_several_workers_overwrote_twice_is_undone_without_the_store_then_completed(
    world: World, tmp_path: Path
) -> None:
    """A -> B stops, A -> C stops: what the first ones overwrote of A the second ones must not keep as B's."""
    name, size = "many", 6 * MIB
    world.make_vm(name, size)
    world.write(name, 0, random.Random(0).randbytes(size))
    before = str(world.backup(name).point)
    world.sync(name)
    changed(world, name, 1, size)
    dies = killed("undo.written", 2), killed("slice.written", 2), killed("checkpoint.before", 3)
    broken_off(world, world.request_sync(name), tmp_path / "first", *dies)
    last = changed(world, name, 2, size)
    run = world.request_sync(name)
    broken_off(world, run, tmp_path / "second", killed("undo.saved", 3), killed("slice.synced", 2))
    assert len(world.cursor(name).targets) == 2 and world.replica_bytes(name) != world.held[before]
    with disaster(world):
        assert any("by what was kept of it" in reason for reason in back(world, name).reasons)
        world.assert_replica_is(name, before)
        assert left(world, name) == []
    forward(world, name)
    world.assert_replica_is(name, last)
    assert left(world, name) == []
