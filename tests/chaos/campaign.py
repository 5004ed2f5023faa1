"""Rounds: kills at steps or at random moments, then quiet, then the verdict."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.chaos.activity import DOWN, Activity
from tests.chaos.judge import Judge
from tests.chaos.place import Place
from tests.chaos.watch import Watch

#: what is killed at a random moment, and how often compared with the others
KILLS: dict[str, int] = {
    "kill_child": 45,
    "kill_worker": 20,
    "kill_beat": 8,
    "kill_redis": 9,
    "lose_redis": 4,
    "kill_vcenter": 6,
    "end_sessions": 4,
    "drop_calls": 4,
    "kill_catalogue": 4,
}

#: steps that are rarely passed while somebody writes into the store, and how long they are waited for when nobody does
LULL = ("store.burying", "store.tombstone", "store.delet", "compact.")
LULLED = 20


class Campaign:
    def __init__(self, place: Place, seed: int, tell: Callable[[str], None] = print) -> None:
        self.place, self.tell = place, tell
        self.rng = random.Random(seed)
        self.watch = Watch(place)
        self.judge = Judge(place)
        self.rounds = 0
        self.began = time.monotonic()
        #: what became of each round, in words
        self.verdicts: list[str] = []

    # --- one round ----------------------------------------------------------------------------------------------

    def round(
        self, what: str, kills: Callable[[], str], *, restores: bool, lull: Callable[[Activity], object] | None = None
    ) -> None:
        """`lull`: kills while nothing new is begun, before the quiet."""
        began = time.monotonic()
        activity = Activity(self.place, self.rng.randrange(1 << 30), restores=restores)
        activity.start()
        try:
            said = kills()
            activity.stop()
            if lull is not None:
                lull(activity)
        finally:
            self.disarm()
            activity.stop()
        for vcenter in (self.place.world.prod, self.place.world.dr):
            vcenter.control(clear=True)
        assert not activity.trouble, activity.trouble[0]
        quiet = time.monotonic()
        self.judge.rest(activity)
        self.judge.verdict()
        self.judge.resume()
        assert self.watch.trouble is None, self.watch.trouble
        self.watch.commits()
        self.rounds += 1
        self.verdicts.append(
            f"{what}: {said}; {len(activity.done)} other things done; quiet after {time.monotonic() - quiet:.0f} s; "
            f"{time.monotonic() - began:.0f} s in all"
        )
        self.tell(f"round {self.rounds}, {self.verdicts[-1]}")

    # --- at steps -----------------------------------------------------------------------------------------------

    def arm(self, labels: Sequence[str]) -> None:
        for label in labels:
            hidden = self.place.armed / f".{label}"
            hidden.write_text("kill")
            os.rename(hidden, self.place.armed / label)

    def disarm(self) -> None:
        for file in self.place.armed.iterdir():
            if "@" not in file.name:
                with suppress(FileNotFoundError):
                    file.unlink()

    def at_steps(self, labels: Sequence[str], seconds: float, *, and_then: int = 0) -> None:
        """A process dies at each of these steps, once, as far as somebody comes there in this time. Then some die at
        random moments."""
        before = dict(self.watch.met)

        def missing() -> list[str]:
            return [label for label in labels if self.watch.met[label] == before.get(label, 0)]

        def kills() -> str:
            self.arm(labels)
            deadline = time.monotonic() + seconds
            while missing() and time.monotonic() < deadline:
                time.sleep(0.2)
            self._kill_some(and_then, pause=0.5)
            return f"{len(labels)} steps"

        def lull(activity: Activity) -> None:
            """What is deleted and compacted waits for those who write: here nobody does."""
            if any(label.startswith(LULL) for label in missing()):
                self.judge.pause()
                activity.calm_down()
                deadline = time.monotonic() + LULLED
                while any(label.startswith(LULL) for label in missing()) and time.monotonic() < deadline:
                    activity.compact()

        restores = any(label.startswith("restore.") or label == "slices.forgetting" for label in labels)
        self.round("at steps", kills, restores=restores, lull=lull)
        if left := missing():
            self.verdicts[-1] += f"; nobody came to {', '.join(left)}"

    def every_step(self, labels: Sequence[str], times: int, *, at_once: int, seconds: float, rounds: int) -> list[str]:
        """Until each step was died at so often; which were not, after so many rounds."""
        for _ in range(rounds):
            left = [label for label in labels if self.watch.met[label] < times]
            if not left:
                return []
            self.rng.shuffle(left)
            left.sort(key=lambda label: self.watch.met[label])
            self.at_steps(left[:at_once], seconds)
        return [label for label in labels if self.watch.met[label] < times]

    # --- at random moments --------------------------------------------------------------------------------------

    def at_random(self, count: int, *, pause: float, restores: bool = True) -> None:
        def kills() -> str:
            self._kill_some(count, pause=pause)
            time.sleep(1)
            return f"{count} kills"

        self.round("at random moments", kills, restores=restores)

    def _kill_some(self, count: int, *, pause: float) -> None:
        for _ in range(count):
            time.sleep(self.rng.random() * 2 * pause)
            self._kill(self.rng.choices(list(KILLS), weights=list(KILLS.values()))[0])

    def _kill(self, what: str) -> None:
        if what == "kill_catalogue" and self.place.postgres is None:
            what = "kill_child"
        pids: list[int] = []
        with suppress(*DOWN):
            if what == "lose_redis":
                pids = self.place.kill_redis(self.rng, empty=True)
            else:
                pids = getattr(self.place, what)(self.rng)
        self.watch.kills[what] += 1
        self.watch.died(pids, what)
