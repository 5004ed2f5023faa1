"""The life of one pair as a state machine: any step may come after any other, and any execution may die at any step.

What must hold after each rule is in `check`. It asks what the protocol would believe: where the planner takes a replica
for untouched, its bytes must be what its cursor says, byte for byte by the content log.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.protocol.realm import Ground, Realm
from tests.protocol.steps import Execution
from workers import plan
from workers.errors import FencedOut, NeedsPerson, Refused, Touched, Transient, UnderstudyError
from workers.extents import GRANULE
from workers.models import Cursor
from workers.replica import descriptor_cids
from workers.vsphere import replica
from workers.vsphere.building import disk_map

#: between a look at the replica and what is done because of it: a boot by hand just there is for ESXi's own lock files
#: to prevent (check_unowned), of which this world has none
WINDOWS = {
    "own.before", "hardware.after", "disks-removed", "own.renewed", "cursor-writing", "cursor-written", "slice.checked",
    "slice.written", "slice.synced", "undo.reserved", "undo.written", "undo.synced", "undo.saved", "undo.restored",
}  # fmt: skip
#: steps that random walks seldom stop at, where the protocol is most easily wrong
NARROW = [
    "cursor.applying", "unseal.after", "own.before", "own.renewed", "own.after", "slices.planned", "slice.claimed",
    "slice.locked", "slice.checked", "slice.written", "checkpoint.before", "checkpoint.after", "commit.before",
    "cursor-writing", "commit.after", "seal.after", "catalogue.before",
]  # fmt: skip

disks, granules, values = st.integers(0, 2), st.integers(0, 7), st.integers(0, 3)
changes = st.lists(st.tuples(disks, granules, values), min_size=1, max_size=4)


class Life(RuleBasedStateMachine):
    """One life. `plant` puts a mistake into the code."""

    ground: Ground

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.realm = Realm(self.ground, self.patch)
        self.plant()
        #: the base files as somebody left them, until somebody says that this may go
        self.touched: dict[str, bytes] | None = None
        #: somebody has been at the replica since it was last committed
        self.ever_touched = False
        self.judged = 0

    def plant(self) -> None:
        """Nothing is wrong."""

    # --- the source and its restore points --------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.realm.write(0, 0, 1)
        self.realm.write(0, 5, 2)
        self.realm.backup()

    @rule(
        writes=changes,
        change=st.sampled_from(["", "", "", "add", "grow", "remove"]),
        keep=st.sampled_from([1, 2, 50]),
    )
    def back_up(self, writes: list[tuple[int, int, int]], change: str, keep: int) -> None:
        """The guest writes, sometimes its disks change, a restore point is made, and retention takes what it may."""
        number, size, _ = writes[0]
        if change == "add" and len(self.realm.source) < 3:
            self.realm.add_disk(1 + size % 3)
        elif change == "grow":
            self.realm.grow_disk(number, 1 + size % 2)
        elif change == "remove" and len(self.realm.source) > 1:
            self.realm.remove_disk(number)
        self.back_up_of(writes)
        if keep < 50:
            self.realm.prune(keep)

    def back_up_of(self, writes: list[tuple[int, int, int]]) -> None:
        for write in writes:
            self.realm.write(*write)
        self.realm.backup()

    # --- runs and executions ----------------------------------------------------------------------------------

    @rule(
        late=st.sampled_from([True, True, False]),
        helps=st.sampled_from([False, False, True]),
        until=st.sampled_from(NARROW),
        ends=st.sampled_from(["dies", "dies", "sleeps", "goes on"]),
    )
    def some_message(self, late: bool, helps: bool, until: str, ends: str) -> None:
        self.message(late, helps, until, ends)

    @rule(until=st.sampled_from(NARROW), writes=changes)
    def a_death(self, until: str, writes: list[tuple[int, int, int]]) -> None:
        self._something_new(writes)
        self.message(True, False, until, "dies")

    @rule(until=st.sampled_from(NARROW), writes=changes, ends=st.sampled_from(["dies", "sleeps"]), back=st.booleans())
    def a_new_run(self, until: str, writes: list[tuple[int, int, int]], ends: str, back: bool) -> None:
        """To a point of its own; `back`: where the guest has taken its last changes back."""
        if self.realm.live_run() is not None:
            self.give_up()
        if back:
            self.realm.take_back()
        self.back_up_of(writes[:1] if back else writes)
        self.message(True, False, until, ends)

    def _something_new(self, writes: list[tuple[int, int, int]]) -> None:
        """A run that finds nothing to do passes no step."""
        if self.realm.live_run() is None:
            self.back_up_of(writes)

    @rule()
    def a_sync(self) -> None:
        self.message(True, False, "", "goes on")

    def message(self, late: bool, helps: bool, until: str, ends: str) -> None:
        """For the live run, however many it has had before, or for a new one. It dies at a step, or sleeps there.

        `late`: when the leases of all who are dead or asleep have ended.
        """
        if late:
            self.realm.let_time_pass()
        run = self.realm.live_run()
        if run is None:
            self.realm.here.catalogue.pause(self.realm.pair.id, None)
            run, helps = self.realm.request(), False
        if len(self.realm.alive()) > 3:
            self.realm.alive()[0].kill()
        execution = self.realm.begin(run, helps=helps)
        if ends == "goes on":
            return execution.finish()
        self._to(execution, until)
        if ends == "dies" and not execution.over:
            execution.kill()

    @precondition(lambda self: self.realm.alive())
    @rule(data=st.data(), until=st.one_of(st.sampled_from(NARROW), st.integers(1, 12)), dies=st.booleans())
    def step_to(self, data: st.DataObject, until: str | int, dies: bool) -> None:
        """Who sleeps goes on, to this step or for so many of them."""
        execution = self._one(data)
        self._to(execution, until)
        if dies and not execution.over:
            execution.kill()

    @precondition(lambda self: self.realm.alive())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self._one(data).finish()

    @staticmethod
    def _to(execution: Execution, until: str | int) -> None:
        passed = 0
        while not execution.over and (passed == 0 or until not in (execution.label, passed)):
            execution.step()
            passed += 1

    def _one(self, data: st.DataObject) -> Execution:
        return data.draw(st.sampled_from(self.realm.alive()))

    @rule()
    def reap(self) -> None:
        self.realm.let_time_pass()
        if len(self.realm.alive()) < 4:
            self.realm.reap()

    def give_up(self) -> None:
        """The next run carries a higher fence; executions of this one may yet wake up."""
        self.realm.let_time_pass()
        run = self.realm.live_run()
        assert run is not None
        self.realm.give_up(run)

    @precondition(lambda self: self.realm.live_run() is None and self.realm.replica is not None)
    @rule()
    def undo(self) -> None:
        self.realm.begin(self.realm.request_undo())

    # --- people at the replica --------------------------------------------------------------------------------

    def _in_reach(self) -> bool:
        return self.realm.replica is not None and all(e.label not in WINDOWS for e in self.realm.alive())

    @precondition(_in_reach)
    @rule(writes=st.lists(st.tuples(disks, granules), min_size=1, max_size=2), reverts=st.booleans())
    def boot(self, writes: list[tuple[int, int]], reverts: bool) -> None:
        vm = self.realm.replica
        assert vm is not None
        self.realm.unsynced.settle()
        if reverts and vm.layer is not None:
            self.realm.vcenter.revert(vm.identity.moref)
            self.touched = None
            return
        self.realm.vcenter.boot(
            vm.identity.moref, [(disk, granule * GRANULE, b"somebody".ljust(GRANULE, b"!")) for disk, granule in writes]
        )
        self.ever_touched = True
        cursor, run = self.realm.cursor(), self.realm.live_run()
        assert cursor is not None
        given_up = run is not None and "discard" in run.memory  # until that run has taken the replica over
        if cursor.content and not cursor.compare and not given_up:
            self.touched = self.realm.vcenter.frozen(vm.identity.moref)

    @precondition(lambda self: self.ever_touched and self.realm.live_run() is None)
    @rule()
    def discard(self) -> None:
        self.realm.here.catalogue.pause(self.realm.pair.id, None)
        self.touched = None
        self.realm.begin(self.realm.request(discard=True))

    # --- what must hold ---------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        self._judge_ends()
        cursors = self.realm.vcenter.cursors
        fences = [cursor.fence for cursor in cursors]
        assert fences == sorted(fences), f"a lower fence replaced a higher one: {fences}"
        commits = Counter(cursor.run for cursor in cursors if cursor.state == "committed")
        assert not commits or max(commits.values()) == 1, f"a run committed twice: {commits}"
        cursor = self.realm.cursor()
        if cursor is None:
            return
        self._judge_pins(cursor)
        vm = self.realm.replica
        assert vm is not None
        if self.touched is not None:
            assert self.realm.vcenter.frozen(vm.identity.moref) == self.touched, "what somebody touched was written"
        if self._believed(cursor):
            if cursor.state == "committed":
                self.assert_equal(cursor.base)
            elif not cursor.compare:
                self._judge_blocks(cursor)

    def _judge_ends(self) -> None:
        """How executions ended. An error must be one that this life explains."""
        for execution in self.realm.executions:
            err = execution.error
            if not execution.over or err is None:
                continue
            execution.error = None
            known = isinstance(err, FencedOut | Transient | Refused) or (
                self.ever_touched and isinstance(err, NeedsPerson)
            )
            if not known and not (isinstance(err, Touched) and self._superseded(execution)):
                raise AssertionError(f"{execution} ended for no reason: {type(err).__name__}: {err}") from err

    def _superseded(self, execution: Execution) -> bool:
        """What a later run does to the replica looks like a touch to one that slept through it."""
        live = self.realm.live_run()
        return live is None or not execution.name.endswith(live.id[:4])

    def _judge_pins(self, cursor: Cursor) -> None:
        needed = {point for point in (cursor.base, *cursor.targets) if point is not None}
        there = {point.id for point in self.realm.store.points(self.realm.vm.instance_uuid)}
        if cursor.state == "applying" or self._believed(cursor):
            assert needed <= there, f"the cursor names {needed - there}, which the store does not hold any more"

    def _believed(self, cursor: Cursor) -> bool:
        """Whether the next run would take the replica for what its cursor says."""
        vm = self.realm.replica
        assert vm is not None
        state = self.realm.vcenter.vm_state(vm.identity.moref)
        cids = descriptor_cids(state, self.realm.here.settings.sites["dr"].datastores)
        try:
            return plan.check_untouched(cursor, state, replica.content_evidence(state), cids, discard=False) is None
        except UnderstudyError:
            return False

    def assert_equal(self, point: str | None) -> None:
        assert point is not None
        found, wanted = self.realm.content(), self.realm.held[point]
        assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
        for name, data in wanted.items():
            # a disk that had grown and went back from undo files stays longer, with zeroes behind
            assert found[name][: len(data)] == data and not any(found[name][len(data) :]), self._where(name, point)

    def _where(self, name: str, point: str) -> str:
        found, wanted = self.realm.content()[name], self.realm.held[point][name]
        wrong = [
            i // GRANULE for i in range(0, len(wanted), GRANULE) if found[i : i + GRANULE] != wanted[i : i + GRANULE]
        ]
        return f"{name} is committed as {point}, and differs from it in the granules {wrong}"

    def _judge_blocks(self, cursor: Cursor) -> None:
        vm = self.realm.replica
        assert vm is not None
        state = self.realm.vcenter.vm_state(vm.identity.moref)
        cids = descriptor_cids(state, self.realm.here.settings.sites["dr"].datastores)
        #: made anew by whoever goes on
        doubtful = plan.added_and_open(cursor.taking, disk_map(state), cids, cursor.fresh)
        states = [self.realm.held[point] for point in (cursor.base, *cursor.targets) if point is not None]
        for name, data in self.realm.content().items():
            if name in doubtful:
                continue
            allowed = [state[name] for state in states if name in state]
            if cursor.base is None or name not in self.realm.held[cursor.base] or name in cursor.fresh:
                allowed.append(b"")  # it began as zeroes, or was made anew because a disk can not shrink
            for start in range(0, len(data), GRANULE):
                block = data[start : start + GRANULE]
                assert any(block == old[start : start + GRANULE].ljust(GRANULE, b"\0") for old in allowed), (
                    f"{name} at granule {start // GRANULE} holds what is neither in {cursor.base} nor in "
                    f"{', '.join(cursor.targets)}"
                )

    # --- the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            try:
                self.realm.close()
            finally:
                self.patch.undo()

    def settle(self) -> None:
        """Nobody dies any more: all comes to its end, and the replica is the newest point."""
        for execution in self.realm.alive():
            execution.finish()
        self.check()
        catalogue = self.realm.here.catalogue
        for _ in range(6):
            self.realm.let_time_pass()
            catalogue.pause(self.realm.pair.id, None)
            self.touched = None
            run = self.realm.live_run() or self.realm.request(discard=self.ever_touched)
            execution = self.realm.begin(run)
            execution.finish()
            self.check()
            newest = self.realm.store.newest(self.realm.vm.instance_uuid)
            cursor = self.realm.cursor()
            assert newest is not None
            if (
                cursor is not None
                and (cursor.state, cursor.base) == ("committed", newest.id)
                and not self.realm.live_run()
            ):
                break
        else:
            raise AssertionError(f"the replica does not come to the newest point: {catalogue.failures()}")
        assert self._believed(cursor)
        self.assert_equal(newest.id)
        known = catalogue.sync_point(self.realm.pair.id)
        assert known is not None and known.point == newest.id
        holder = f"{catalogue.realm}:{self.realm.pair.id}"
        pins = self.realm.store.pins(self.realm.vm.instance_uuid)
        assert {point for point, holders in pins.items() if holder in holders} == {newest.id}, f"pinned are {pins}"
        assert self.realm.replica is not None and self.realm.replica.layer is not None, "it is not sealed"
