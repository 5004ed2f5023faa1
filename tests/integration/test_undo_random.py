"""A long random life of a VM whose half syncs are now completed, now undone while the store is out of reach.

The seed is printed with the story of a failure; UNDERSTUDY_TEST_SEED repeats it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.integration import invariants
from tests.integration.child import Forked, work
from tests.integration.life import Life
from tests.integration.test_random import every_step
from tests.integration.world import World, flat
from workers import rollback
from workers.models import RunKind, RunState
from workers.undo import SYNC_POINT

EVENTS = {"scattered": 3, "big": 2, "zeroes": 1, "hardware": 3, "back_up": 3, "killed_sync": 8, "sync": 1, "undo": 3}


class Undone(Life):
    def undo(self) -> None:
        """The store is away; workers die while the replica is brought back; then it is what its cursor says."""
        cursor = invariants.cursor_of(self.world, self.name)
        if RunKind.SYNC in self.dead:
            self._end(RunKind.SYNC)
        if cursor is None or cursor.base is None:
            return
        world, away = self.world, self.world.store.path.with_name("away")
        run, _ = rollback.request(world.here, world.pair(self.name), SYNC_POINT)
        world.store.path.rename(away)
        try:
            for _ in range(self.rng.randrange(3)):
                dice = random.Random(self.rng.random())
                child = Forked(
                    lambda: work(world.here, run.id),
                    world.folder / "child.log",
                    doomed=lambda _, dice=dice: dice.random() < 0.1,  # type: ignore[misc]
                )
                child.wait(120)
                world.expire_lease(run)
                self.tell(f"undo {run.id} died at {child.hit}" if child.hit else f"undo {run.id}: {child.said[-300:]}")
            if world.catalogue.run(run.id).live:
                work(world.here, run.id)
        finally:
            away.rename(world.store.path)
        assert world.catalogue.run(run.id).state in (RunState.SUCCEEDED, RunState.NOTHING_NEW)
        now = invariants.cursor_of(world, self.name)
        assert now is not None and now.state == "committed" and now.base == cursor.base
        self.tell(f"undo {run.id}: {world.catalogue.run(run.id).reasons}")
        self._is(str(now.base))
        world.catalogue.pause(world.pair(self.name).id, None)

    def _is(self, point: str) -> None:
        """Byte for byte; a disk that was grown has zeroes behind its end."""
        held, disks = self.world.held[point], self.world.replica_disks(self.name)
        assert disks.keys() == held.keys()
        for key, data in self.world.replica_bytes(self.name).items():
            assert data == held[key] + bytes(len(data) - len(held[key])), key
        folder = flat(self.world.dr, next(iter(disks.values())).file).parent
        assert [p.name for p in folder.glob("understudy-undo-*")] == []

    def check(self) -> None:
        """What holds between runs is not yet so after one that could not reach the store: pins of others stay."""


def live(world: World, seed: int, rounds: int) -> None:
    rng, story = random.Random(seed), [f"seed {seed}"]
    one = Undone(world, f"undone-{seed}", rng, steps=every_step(), met=set(), tell=story.append)
    try:
        one.back_up()
        one.sync()
        for number in range(rounds):
            event = rng.choices(list(EVENTS), weights=list(EVENTS.values()))[0]
            story.append(f"{number}: {event}")
            getattr(one, event)()
        one.undo()
        one.settle()
        invariants.check(world, one.name)
    except BaseException:
        print("\n".join(story))
        raise


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(4))
def test_a_random_life_with_half_syncs_undone(make_world: Callable[..., World], number: int) -> None:
    world = make_world(tuning={"attempts": 9, "lease": "60s"}, store=['site = "prod"'])
    seed = os.environ.get("UNDERSTUDY_TEST_SEED")
    live(world, int(seed) if seed else random.SystemRandom().randrange(1 << 30), rounds=30)
