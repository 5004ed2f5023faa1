"""What random walks seldom come to: a worker that sleeps through a newer run, a helper that is lost, a host that goes
down with what it had not synced, disks that grow, ways back.

Each rule brings about a situation whose details are drawn; before and after it anything else may happen.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.protocol.life import NARROW, Life, changes
from tests.protocol.steps import Execution
from workers import rollback

#: where a sleeper holds no lock that the newer run must wait for: there it does the most harm when it wakes up
UNLOCKED = [
    "cursor.applying", "slices.planned", "slice.claimed", "slice.locking", "checkpoint.before", "checkpoint.after",
]  # fmt: skip
#: a newer run has taken over, and its disks are not sealed yet
UNSEALED = ["slices.planned", "slice.claimed", "checkpoint.after"]


class HardLife(Life):
    @rule(
        writes=changes,
        sleeps=st.sampled_from([*UNLOCKED, *NARROW]),
        more=changes,
        back=st.booleans(),
        gets_to=st.sampled_from([*UNSEALED * 3, *NARROW]),
        often=st.integers(1, 6),
    )
    def a_sleeper(
        self,
        writes: list[tuple[int, int, int]],
        sleeps: str,
        more: list[tuple[int, int, int]],
        back: bool,
        gets_to: str,
        often: int,
    ) -> None:
        """It wakes up in the middle of a run that took the replica over meanwhile."""
        sleeper = self._a_run_of_its_own(writes, sleeps)
        if self.realm.live_run() is not None:
            self.give_up()
        if back:
            self.realm.take_back()
        newer = self._a_run_of_its_own(more, gets_to, often)
        sleeper.finish()
        newer.finish()

    @rule(
        writes=changes, led_to=st.sampled_from(["slices.planned", "slice.claimed", "checkpoint.after"]),
        until=st.sampled_from(["slice.claimed", "slice.claimed", "slice.locked", "slice.synced", "checkpoint.after"]),
        dies=st.booleans(),
    )  # fmt: skip
    def a_lost_helper(self, writes: list[tuple[int, int, int]], led_to: str, until: str, dies: bool) -> None:
        """The run's worker comes to its end while another one has a slice of it, or had one."""
        lead = self._a_run_of_its_own(writes, led_to)
        run = self.realm.live_run()
        if run is not None and not lead.over:
            helper = self.realm.begin(run, helps=True)
            self._to(helper, until)
            if dies and not helper.over:
                helper.kill()
        lead.finish()

    @rule(
        number=st.integers(0, 2), size=st.integers(1, 2), value=st.integers(1, 3), until=st.sampled_from(NARROW),
        ends=st.sampled_from(["dies", "sleeps", "goes on"]),
    )  # fmt: skip
    def a_growth(self, number: int, size: int, value: int, until: str, ends: str) -> None:
        """A disk grows, and its guest writes to the new part."""
        self.realm.grow_disk(number, size)
        name = sorted(self.realm.source)[number % len(self.realm.source)]
        self.back_up_of([(number, len(self.realm.source[name]) // 4096 - 1, value)])
        self.message(True, False, until, ends)

    @precondition(lambda self: self.realm.replica is not None)
    @rule(back=st.integers(1, 3), until=st.sampled_from(NARROW), ends=st.sampled_from(["dies", "sleeps", "goes on"]))
    def a_way_back(self, back: int, until: str, ends: str) -> None:
        """To an older point, which a person names; the next sync goes forwards again."""
        if self.realm.live_run() is not None:
            self.give_up()
        points = self.realm.store.points(self.realm.vm.instance_uuid)
        rollback.request(self.realm.here, self.realm.pair, points[max(0, len(points) - 1 - back)].id)
        self.message(True, False, until, ends)

    @rule(every=st.integers(1, 2))
    def the_host_goes_down(self, every: int) -> None:
        """All who were at work on it die, and of what they had not synced some is lost, or all."""
        for execution in self.realm.alive():
            execution.kill()
        self.realm.unsynced.lose(every)

    def _a_run_of_its_own(self, writes: list[tuple[int, int, int]], until: str, often: int = 1) -> Execution:
        """A new run to a new point, which stops where it comes to a step so often."""
        if self.realm.live_run() is not None:
            self.give_up()
        self.back_up_of(writes)
        self.message(True, False, until, "sleeps")
        begun = self.realm.executions[-1]
        for _ in range(often - 1):
            if begun.over:
                break
            self._to(begun, until)
        return begun
