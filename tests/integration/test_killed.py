"""A run killed at each named protocol step goes on from there, or the next run does; judged byte for byte."""

from typing import Any

import pytest

from tests.integration.world import MIB, World
from workers import backup, replicate
from workers.models import RunState

STEPS = [
    "pin.after",
    "create.before",
    "create.after",
    "own.before",
    "own.renewed",
    "own.after",
    "slices.before",
    "slices.added",
    "slice.locked",
    "slice.checked",
    "slice.written",
    "slice.synced",
    "checkpoint.before",
    "checkpoint.after",
    "commit.before",
    "commit.after",
    "seal.before",
    "seal.after",
    "catalogue.before",
    "catalogue.after",
]


def every_other(steps: list[str]) -> list[Any]:
    """Of neighbouring steps one is enough in the short form; the chaos kills at all of them."""
    return [pytest.param(step, marks=(pytest.mark.slow,) if n % 3 else ()) for n, step in enumerate(steps)]


@pytest.mark.parametrize("step", every_other(STEPS))
def test_a_first_sync_killed_at_any_step_goes_on(world: World, step: str) -> None:
    name = f"first-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB, 4 * MIB)
    world.scribble(name, 1)
    point = world.backup(name).point
    run = world.request_sync(name)
    world.killed_at(run, step)
    report = replicate.run(world.here, run.id)
    assert report.outcome in ("succeeded", RunState.SUCCEEDED), report
    world.assert_replica_is(name, point)
    assert world.catalogue.sync_point(world.pair(name).id).point == point
    assert world.plan(name).nothing_new


INCREMENT_STEPS = [
    "cursor.applying",
    "unseal.before",
    "unseal.after",
    "hardware.after",
    *(s for s in STEPS if not s.startswith("create")),
]
#: these are gone on with by the same run in the short form, too; a first sync is, at every step
SAME_RUN = {"cursor.applying", "unseal.after", "own.renewed", "slice.written", "commit.after", "seal.before"}


@pytest.mark.parametrize(
    ("step", "another_run"),
    [
        *(
            pytest.param(step, True, id=f"{step}-next-run", marks=(pytest.mark.slow,) if number % 3 else ())
            for number, step in enumerate(INCREMENT_STEPS)
        ),
        *(
            pytest.param(step, False, id=f"{step}-same-run", marks=() if step in SAME_RUN else (pytest.mark.slow,))
            for step in INCREMENT_STEPS
        ),
    ],
)
def test_an_increment_killed_at_any_step_goes_on(world: World, step: str, another_run: bool) -> None:
    """Also by the next run, which goes to a newer point: the dead one's half-written state must not show."""
    name = f"inc{another_run:d}-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB, 4 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.sync(name)
    world.add_disk(name, 2 * MIB)
    world.scribble(name, 2)
    point = world.backup(name).point
    run = world.request_sync(name)
    world.killed_at(run, step)
    if another_run and world.catalogue.run(run.id).live:
        world.give_up(run.id)
        world.scribble(name, 3)
        point = world.backup(name).point
        world.sync(name)
    else:
        replicate.run(world.here, run.id)
    world.assert_replica_is(name, point)
    assert world.catalogue.sync_point(world.pair(name).id).point == point
    assert world.plan(name).nothing_new
    assert len(world.state(world.pair(name).replica_name, "dr").snapshots) == 1


BACKUP_STEPS = [
    "slices.before",
    "slices.added",
    "snapshot.before",
    "snapshot.after",
    "checkpoint.before",
    "checkpoint.after",
    "manifest.before",
    "manifest.after",
]


@pytest.mark.parametrize("step", every_other(BACKUP_STEPS))
def test_a_backup_killed_at_any_step_goes_on(world: World, step: str) -> None:
    name = f"bk-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB, 4 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.scribble(name, 2)
    frozen = {key: bytes(data) for key, data in world.log[name].items()}
    run = world.request_backup(name)
    world.killed_at(run, step)
    report = backup.run(world.here, run.id)
    assert report.point is not None
    world.held[report.point] = frozen
    world.assert_point_is_readable(name, report.point)
    assert world.state(name).snapshots == ()
    uuid = world.state(name).identity.instance_uuid
    assert [p.seq for p in world.store.points(uuid)] == [1, 2]
    assert not world.store.verify(deep=True)
