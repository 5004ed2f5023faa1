"""A worker that dies at a step, as a copy of this process: a tenth of a second instead of the two of a new one."""

from __future__ import annotations

from tests.integration.child import Forked, work
from tests.integration.world import World
from workers.models import Run


def killed_at(world: World, run: Run, step: str) -> None:
    """Do the run's work up to a step and die there (SIGKILL). Fails when the step is not reached."""
    child = Forked(lambda: work(world.here, run.id), world.folder / "forked.log", doomed=lambda label: label == step)
    assert child.wait(120) == -9 and child.hit == step, f"the step {step} was not reached: {child.said[-3000:]}"
    world.expire_lease(run)
