"""A fault at the n-th call: whichever call it is, the run goes on or ends with a sentence, and the next one is right.

Of a first sync, of an increment with a change of hardware, and of an incremental backup, each call to vCenter, to the
disks and the store, and each transaction of the catalogue fails once. A run is made until n is beyond its last call.
"""

from __future__ import annotations

import errno
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.integration import invariants
from tests.integration.child import Broken, Forked, work
from tests.integration.world import MIB, Vcenter, World
from workers import left_behind
from workers.catalogue import Catalogue
from workers.errors import UnderstudyError
from workers.models import Run, RunKind, RunState
from workers.run import Here

#: calls skipped between two that fail, in the quick form; another fault each time
STRIDE = 15
TUNING = {"retry_pause": "1s", "lock_wait": "2s", "lease": "60s", "attempts": 4}

#: does the run's work under the n-th fault; says which call it hit, "" when the run had fewer
Inject = Callable[[World, Run, int, int], str]


#: the vCenters outlive a test and keep its VMs
_numbers = itertools.count(1)


class Flow:
    """Something that is done again and again, each time under another fault."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.count = 0
        self.name = f"{type(self).__name__.lower()}-{next(_numbers)}"
        world.make_vm(self.name, 4 * MIB, 2 * MIB)
        world.scribble(self.name, 1)
        world.backup(self.name)

    def request(self) -> Run:
        """Prepare, and ask for the run."""
        raise NotImplementedError

    def finish(self, run: Run) -> None:
        """Go on with the run, or with a new one if it ended; nothing fails any more."""
        world = self.world
        if world.catalogue.run(run.id).state is RunState.FAILED:
            run = self.again()
        for _ in range(5):  # vCenter may still be at what was asked before: that is looked at again
            world.expire_lease(run)
            report = work(world.here, run.id)
            if not world.catalogue.run(run.id).live:
                break
        # Nothing is new when the run had failed after its commit.
        assert world.catalogue.run(run.id).state in (RunState.SUCCEEDED, RunState.NOTHING_NEW), report
        self.judge(world.catalogue.run(run.id))
        invariants.check(world, self.name)

    def again(self) -> Run:
        return self.world.request_sync(self.name)

    def judge(self, run: Run) -> None:
        """A sync goes to the newest point that was kept."""
        self.world.assert_replica_is(self.name, list(self.world.held)[-1])
        assert self.world.plan(self.name).nothing_new


class FirstSync(Flow):
    def request(self) -> Run:
        replica = invariants.replica_of(self.world, self.name)
        if replica is not None:
            s = self.world.target
            s.wait(s.vm(replica.identity.moref).Destroy_Task())
        return self.again()


class Increment(Flow):
    """Each time a disk comes, grows or goes."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.sync(self.name)

    def request(self) -> Run:
        world, name = self.world, self.name
        turn, self.count = self.count % 3, self.count + 1
        if turn == 0:
            world.add_disk(name, MIB)
        elif turn == 1:
            world.grow_disk(name, 1, world.disks(name)[1].capacity + MIB)
        else:
            world.remove_disk(name, 1)
        world.scribble(name, self.count, count=2, longest=60_000)
        world.backup(name)
        return self.again()


class Backup(Flow):
    def request(self) -> Run:
        self.world.scribble(self.name, self.count, count=2, longest=60_000)
        self.count += 1
        return self.again()

    def again(self) -> Run:
        return self.world.request_backup(self.name)

    def judge(self, run: Run) -> None:
        world, point = self.world, run.point
        assert point is not None
        world.held[point] = {key: bytes(data) for key, data in world.log[self.name].items()}
        world.assert_point_is_readable(self.name, point)
        uuid = world.state(self.name).identity.instance_uuid
        newest = world.store.points(uuid)
        assert newest[-1].id == point and [p.seq for p in newest] == list(range(1, len(newest) + 1))


FLOWS = [FirstSync, Increment, Backup]
#: an increment comes by nearly all that a first sync does
QUICK = [pytest.param(FirstSync, marks=pytest.mark.slow), Increment, Backup]
#: and chaos kills backups at every step of theirs
QUICKER = [pytest.param(FirstSync, marks=pytest.mark.slow), Increment, pytest.param(Backup, marks=pytest.mark.slow)]


def play(world: World, flow: Flow, inject: Inject, *, stride: int) -> None:
    """For n = 1, 1 + stride, ... until a run has fewer than n calls."""
    number, tries = 1, 0
    while True:
        run = flow.request()
        hit = inject(world, run, number, tries)
        ended = world.catalogue.run(run.id)
        try:
            if ended.error is not None:
                invariants.assert_sentence(ended.error)
            if ended.state is RunState.FAILED and ended.kind is RunKind.BACKUP:
                left_behind.clean_up(world.here, run.id)  # as the reaper has it done
            flow.finish(run)
        except BaseException as err:
            err.add_note(f"after call {number} ({hit}); the run says: {ended.state}, {ended.error}")
            raise
        if not hit:
            break
        number, tries = number + stride, tries + 1
        for passed in list(world.held)[:-8]:  # the slow form makes hundreds of points
            del world.held[passed]
    assert tries >= 3, "the fault was never met"
    assert not world.store.verify(deep=True)
    world.store.prune()
    assert not world.store.verify(deep=True)


@pytest.fixture
def make_flow(make_world: Callable[..., World]) -> Callable[[type[Flow]], Flow]:
    return lambda kind: kind(make_world(tuning=TUNING))


# --- vCenter ----------------------------------------------------------------------------------------------------

RULES: list[dict[str, Any]] = [
    {"Drop": True},
    {"DropAfter": True},
    {"Fault": "SystemError"},
    {"DropAfter": True, "TaskMs": 60},
]


def at_vcenter(world: World, run: Run, number: int, tries: int) -> str:
    vcenter: Vcenter = world.prod if run.kind is RunKind.BACKUP else world.dr
    rule = RULES[tries % len(RULES)]
    vcenter.control(clear=True, rules=[{"Method": "*", "Skip": number - 1, "Count": 1, **rule}])
    try:
        carry_out(world.here, run)
    finally:
        before = vcenter.control()
        vcenter.control(clear=True)
    return "" if any(left["Count"] for left in before["rules"]) else str(rule)


def carry_out(here: Here, run: Run) -> None:
    """In this process; what it raises must be a sentence."""
    try:
        work(here, run.id)
    except UnderstudyError as err:
        invariants.assert_sentence(str(err))


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.__name__)
def test_a_call_to_vcenter_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow]) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, at_vcenter, stride=STRIDE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rule", range(len(RULES)))
@pytest.mark.parametrize("kind", FLOWS, ids=lambda kind: kind.__name__)
def test_every_call_to_vcenter_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow], rule: int) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, lambda world, run, number, _: at_vcenter(world, run, number, rule), stride=1)


# --- disks and store --------------------------------------------------------------------------------------------

ERRORS = [errno.EIO, errno.ENOSPC]


def at_device(world: World, run: Run, number: int, tries: int) -> str:
    below = (world.store.path, world.prod.datastores, world.dr.datastores)
    broken = Broken(number, ERRORS[tries % len(ERRORS)], below)
    child = Forked(lambda: work(world.here, run.id), world.folder / "child.log", broken=broken)
    code = child.wait(120)
    if code is None:
        child.kill()
    assert code in (0, 1), f"{child.hit}: {child.said}"
    return child.hit


@pytest.mark.parametrize("kind", QUICKER, ids=lambda kind: kind.__name__)
def test_a_call_to_a_device_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow]) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, at_device, stride=STRIDE + 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", range(len(ERRORS)), ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", FLOWS, ids=lambda kind: kind.__name__)
def test_every_call_to_a_device_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow], error: int) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, lambda world, run, number, _: at_device(world, run, number, error), stride=1)


# --- catalogue --------------------------------------------------------------------------------------------------


@contextmanager
def locked_at(catalogue: Catalogue, number: int) -> Iterator[list[str]]:
    """The n-th transaction that writes finds the file locked: by another connection, as any would be."""
    other = sqlite3.connect(str(catalogue.file), isolation_level=None)
    met: list[str] = []
    count = 0

    def execute(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal count
        if statement == "BEGIN IMMEDIATE":
            count += 1
            if count == number:
                met.append("locked")
                other.execute("BEGIN IMMEDIATE")

    def failed(context: Any) -> None:
        if met and other.in_transaction:
            other.execute("ROLLBACK")

    engine = catalogue.engine
    sa.event.listen(engine, "before_cursor_execute", execute)
    sa.event.listen(engine, "handle_error", failed)
    try:
        yield met
    finally:
        sa.event.remove(engine, "before_cursor_execute", execute)
        sa.event.remove(engine, "handle_error", failed)
        other.close()


@contextmanager
def unanswered_at(catalogue: Catalogue, number: int) -> Iterator[list[str]]:
    """The n-th commit is carried out and its answer is lost: raised by hand, for no server does so on demand."""
    met: list[str] = []
    count = 0

    def commit(conn: sa.Connection) -> None:
        nonlocal count
        if conn.get_execution_options().get("understudy_writes"):
            count += 1
            if count == number:
                met.append("unanswered")
                conn.connection.commit()
                raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    engine = catalogue.engine
    sa.event.listen(engine, "commit", commit)
    try:
        yield met
    finally:
        sa.event.remove(engine, "commit", commit)


TROUBLES = [locked_at, unanswered_at]


def at_catalogue(world: World, run: Run, number: int, tries: int) -> str:
    catalogue = Catalogue(world.settings.catalogue, lock_wait=0.02)
    try:
        with TROUBLES[tries % len(TROUBLES)](catalogue, number) as met:
            carry_out(Here(world.settings, catalogue), run)
    finally:
        catalogue.close()
    return "".join(met)


@pytest.mark.parametrize("kind", QUICKER, ids=lambda kind: kind.__name__)
def test_a_transaction_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow]) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, at_catalogue, stride=5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trouble", range(len(TROUBLES)), ids=["locked", "unanswered"])
@pytest.mark.parametrize("kind", FLOWS, ids=lambda kind: kind.__name__)
def test_every_transaction_fails(make_flow: Callable[[type[Flow]], Flow], kind: type[Flow], trouble: int) -> None:
    flow = make_flow(kind)
    play(flow.world, flow, lambda world, run, number, _: at_catalogue(world, run, number, trouble), stride=1)
