"""Hole 10 at a power-on: who sleeps through the end of a restore writes nothing into a VM that runs, nor starts it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.crew import Crew, stopped, wait_stopped
from tests.integration.test_restore import ask, assert_holds
from tests.integration.world import MIB, World
from workers import restore
from workers.models import Run, RunState


def asleep(world: World, folder: Path, name: str, step: str) -> tuple[Crew, Run, str]:
    """A restore with power-on, whose worker sleeps at a step until its lease has run out."""
    world.make_vm(name, 2 * MIB)
    world.scribble(name, 1)
    point = str(world.backup(name).point)
    run = ask(world, name, to=f"{name}-again", point=point, power_on=True)
    crew = Crew(world, run, folder / "crew")
    wait_stopped(crew.lead(stopped(step)))
    world.expire_lease(run)
    return crew, run, point


def wakes_up(crew: Crew) -> str:
    """What the sleeper says, which had lost its run."""
    (sleeper,) = crew.workers
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.wait(120) == 1, sleeper.said
    return sleeper.said


@pytest.mark.parametrize("step", ["restore.released", pytest.param("slice.locking", marks=pytest.mark.slow)])
def test_hole_10_who_sleeps_through_a_power_on_neither_writes_nor_starts_the_vm(
    world: World, tmp_path: Path, step: str
) -> None:
    name = f"power-{step.replace('.', '-')}"
    crew, run, _ = asleep(world, tmp_path, name, step)
    assert restore.run(world.here, run.id).outcome == "succeeded"
    again = f"{name}-again"
    assert world.state(again).power == "poweredOn"
    world.prod.control(guestWrite={"VM": again, "Disk": 0, "Offset": 0, "Hex": "ab" * 4096})
    if step == "restore.released":  # and its owner has switched it off
        world.source.wait(world.vm(again).PowerOffVM_Task())
    before = world.state(again)
    assert "FencedOut" in wakes_up(crew)
    after = world.state(again)
    assert (after.power, after.change_version) == (before.power, before.change_version)
    world.log[name][next(iter(world.log[name]))][:4096] = b"\xab" * 4096
    assert_holds(world, after, "prod", [bytes(data) for data in world.log[name].values()])
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED


@pytest.mark.slow
def test_hole_10_nothing_is_started_while_somebody_may_still_write_to_it(world: World, tmp_path: Path) -> None:
    """It has passed its checks and holds its range: the run waits for it, and only then commits and powers on."""
    crew, run, point = asleep(world, tmp_path, "power-held", "slice.checked")
    assert restore.run(world.here, run.id).outcome == "waiting"
    assert world.state("power-held-again").power == "poweredOff"
    assert "FencedOut" in wakes_up(crew)
    world.expire_lease(run)
    assert restore.run(world.here, run.id).outcome == "succeeded"
    made = world.state("power-held-again")
    assert made.power == "poweredOn"
    assert_holds(world, made, "prod", list(world.held[point].values()))
