"""A long random life of VMs: guests write, hardware changes, workers die, people interfere; the log of bytes judges.

The seed is printed with the story of a failure; UNDERSTUDY_TEST_SEED repeats it. Moments at which a worker is killed
without a named step depend on the machine's speed as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.chaos import labels
from tests.integration.life import Life
from tests.integration.world import World

#: chosen once, so that the quick form is the same for everybody; the slow form takes a new one each time
SEED = 20261122

#: how often each event comes, compared with the others
EVENTS = {
    "scattered": 6,
    "big": 3,
    "zeroes": 2,
    "nothing_but_rewrites": 1,
    "there_and_back": 2,
    "hardware": 3,
    "lose_tracking": 2,
    "hide_a_change": 2,
    "audit": 1,
    "boot_the_replica": 1,
    "lose_the_replica": 2,
    "trouble_at_vcenter": 3,
    "back_up": 6,
    "sync": 6,
    "killed_backup": 6,
    "killed_sync": 8,
    "give_up": 3,
    "prune": 2,
}

#: `make chaos` and the tests of these verbs have them; each run of such a life has one worker
NOT_HERE = ("adopt.", "forget.", "helper.", "restore.", "rollback.", "run.shared", "scrub.", "takeover.", "template.")
NOT_HERE += ("undo.", "verify.")


def every_step() -> list[str]:
    """All labels of the sources that such a life comes by. It restores, adopts and forgets nothing."""
    return [label for label in labels.every() if not label.startswith(NOT_HERE)]


#: what leads past every step there is, when workers do not die on the way
PASSING = (
    "scattered",
    "hardware",
    "lose_tracking",
    "back_up",
    "killed_backup",
    "lose_the_replica",
    "sync",
    "killed_sync",
)


def _hunt(lives: list[Life], rng: random.Random, steps: set[str], met: set[str]) -> None:
    """Until a worker has died at every step, or for long enough to say that one cannot be reached."""
    for each in lives:
        each.hunting = True
        if each.audited:
            each.audit()
    for _ in range(60):
        one = rng.choice(lives)
        for event in (*rng.sample(PASSING, k=4), "back_up", "killed_sync", "sync", "prune"):
            if steps <= met:
                return
            getattr(one, event)()
            one.check()


def live(world: World, seed: int, *, rounds: int, vms: int, hunt: bool = False) -> set[str]:
    """`rounds` events, each followed by every check; the steps at which a worker died."""
    rng = random.Random(seed)
    story = [f"seed {seed}"]
    steps, met = every_step(), set[str]()
    lives = [Life(world, f"life-{seed}-{vms}-{n}", rng, steps=steps, met=met, tell=story.append) for n in range(vms)]
    try:
        for number in range(rounds):
            one = rng.choice(lives)
            event = rng.choices(list(EVENTS), weights=list(EVENTS.values()))[0]
            story.append(f"{number}: {one.name}: {event}")
            getattr(one, event)()
            for each in lives:
                each.check()
            if number % 50 == 49:
                assert not world.store.verify(deep=True)
        if hunt:
            story.append(f"now for {sorted(set(steps) - met)}")
            _hunt(lives, rng, set(steps), met)
        story.append("the end")
        for each in lives:
            each.settle()
        world.store.prune()
        world.store.prune()
        assert not world.store.verify(deep=True)
    except BaseException:
        print("\n".join(story))
        raise
    return met


def seed_of(default: int) -> int:
    return int(os.environ.get("UNDERSTUDY_TEST_SEED", default))


def test_a_random_life(make_world: Callable[..., World]) -> None:
    world = make_world(keep="{ last = 3 }", tuning={"attempts": 5, "lease": "60s"})
    live(world, seed_of(SEED), rounds=25, vms=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_random_life_of_several_vms(make_world: Callable[..., World]) -> None:
    world = make_world(keep="{ last = 3 }", tuning={"attempts": 5, "lease": "60s"})
    met = live(world, seed_of(random.SystemRandom().randrange(1 << 30)), rounds=300, vms=3, hunt=True)
    missing = set(every_step()) - met
    assert not missing, f"no worker died at {sorted(missing)}: they are never passed, or this test cannot reach them"
