"""Slices: how far each part of a run's disk work has come, and who works on it. What is done is on stable storage.

Everybody who works on a slice claims it first, the run's own worker too. A claim is a lease by the database's clock, of
one plan of one run under one fence: who lost any of the three has nothing to record any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from workers.catalogue import fences, leases, rows, runs, schema
from workers.catalogue.database import Database, now
from workers.errors import Conflict, FencedOut, SliceFailed, WorkerLost
from workers.models import Run, Slice

R = schema.runs.c
S = schema.slices.c

#: in a run's memory: which plan its slices are of. Without it they are of none, and nobody may claim them
PLAN = "planned"
#: in a run's memory: a worker at one of its slices met what ends it: "family: sentence"
CONDEMNED = "condemned"

#: what a checkpoint records of a slice
_PROGRESS = ("done", "made", "read", "written", "stored")

UNFINISHED = S.done < S.end


class SliceState(Slice):
    """A slice, and who works on it, or did last; `began` and `ended` are of that work, by the database's clock."""

    owner: str | None = None
    #: until then it is the owner's; without an owner: not tried again before
    lease_until: datetime | None = None
    #: claims without any progress
    attempts: int = 0
    #: those of them in a row that ended with one, and not with a lost worker
    errors: int = 0
    began: datetime | None = None
    ended: datetime | None = None
    #: the last failure; it may have gone well since
    error: str | None = None


class Short(NamedTuple):
    """A run that more workers could be at: `free` slices wait, `busy` workers are at others of them."""

    run: Run
    free: int
    busy: int


def add_slices(db: Database, run_id: str, slices: Sequence[Slice], *, owner: str) -> None:
    """Record the run's plan. Telling the same plan again changes nothing, what is done stays done.

    Raises `Conflict` when there is another plan (`drop_slices` first), `FencedOut` when the run is not the owner's.
    """
    with db.write() as conn:
        leases.held(conn, run_id, owner)
        planned = {_place(slice_): slice_.end for slice_ in slices}
        if any(slice_.run != run_id for slice_ in slices):
            raise ValueError(f"a slice of another run was given for {run_id}")
        known = {(row.disk, row.start): row.end for row in conn.execute(_select(run_id))}
        if known and known != planned:
            raise Conflict(f"the run {run_id} has a plan of {len(known)} slices already, and it is another one")
        if not known and slices:
            fields = set(Slice.model_fields)
            conn.execute(sa.insert(schema.slices), [slice_.model_dump(include=fields) for slice_ in slices])


def slices(db: Database, run_id: str) -> list[SliceState]:
    """By disk and offset."""
    with db.read() as conn:
        return [rows.read(row, SliceState) for row in conn.execute(_select(run_id))]


def claim_slice(
    db: Database, run_id: str, owner: str, lease_s: float, *, fence: int, plan: str, tries: int
) -> SliceState | None:
    """The next slice that nobody works on, for `lease_s` seconds; None when there is none just now.

    Those that failed come last. Raises `FencedOut` when the run has ended or its fence is an old one, `Conflict` when
    this plan was given up, `SliceFailed` when only slices are left that failed `tries` times without any progress.
    """
    with db.write() as conn:
        run = _run(conn, run_id, owner, fence)
        if run.memory.get(PLAN) != plan:
            raise Conflict(f"what was planned for the run {run_id} was given up; it is planned anew")
        moment = now(conn)
        free = (S.run == run_id) & UNFINISHED & runs.free_at(S.lease_until, moment)
        best = _select(run_id).where(free).order_by(None).order_by(S.attempts, S.disk, S.start).limit(1)
        row = conn.execute(best).first()
        if row is None:
            return None
        found = rows.read(row, SliceState)
        if found.attempts >= tries:
            busy = (S.run == run_id) & UNFINISHED & S.owner.is_not(None) & ~runs.free_at(S.lease_until, moment)
            if conn.execute(sa.select(S.start).where(busy).limit(1)).first() is not None:
                return None
            why = found.error or str(WorkerLost(found.attempts))
            raise SliceFailed(
                f"the part of disk {found.disk} from byte {found.start} to {found.end} failed {found.attempts} times "
                f"at byte {found.done}, and nothing else is left to do: {why}",
                SliceFailed.family if found.error else WorkerLost.family,
            )
        mine = {
            "owner": owner,
            "lease_until": moment + timedelta(seconds=lease_s),
            "attempts": found.attempts + 1,
            "began": moment,
            "ended": None,
        }
        conn.execute(sa.update(schema.slices).where(_here(found)).values(**mine))
        return found.model_copy(update=mine)


def renew_slices(db: Database, run_id: str, owner: str, lease_s: float) -> bool:
    """Keep what the owner works on for another `lease_s` seconds. `renew` does it for who has the run. False when the
    run has ended: then stop at once."""
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        leases.keep_slices(conn, run_id, owner, now(conn) + timedelta(seconds=lease_s))
        return run.live


def check_slice(db: Database, run_id: str, owner: str, fence: int, slice_: Slice) -> None:
    """Raises `FencedOut` unless the slice is this owner's, and the run may write. To be asked under the lock of what
    is written next: then nobody else has written there since, and nobody can until the lock is released.
    """
    with db.read() as conn:
        run = runs.get(conn, run_id)
        _demand_live(run, owner)
        fences.demand(conn, run.target, fence)
        _held(conn, slice_, owner)


def checkpoint(db: Database, run_id: str, fence: int, slice_: Slice, *, owner: str) -> None:
    """Record how far a slice has come; a finished one is let go. Progress starts the counts of failed tries again.

    Raises `FencedOut` when the fence is an old one or the slice is not the owner's by now. Both are asked: after the
    loss of a snapshot the same run, under the same fence, starts again with new slices, and an execution that slept
    through it must not report the old snapshot's data into them.
    """
    with db.write() as conn:
        run = _run(conn, run_id, owner, fence)
        row = _held(conn, slice_, owner)
        if slice_.end != row.end or not row.done <= slice_.done <= row.end:
            raise Conflict(
                f"the slice of {slice_.disk} at {slice_.start} is recorded up to {row.done} of {row.end}; "
                f"it cannot become {slice_.done} of {slice_.end}"
            )
        values: dict[str, Any] = slice_.model_dump(include=set(_PROGRESS))
        if slice_.done > row.done:
            values |= {"attempts": 0, "errors": 0, "error": None}
            if run.attempts > 1 or run.errors:
                conn.execute(sa.update(schema.runs).where(R.id == run_id).values(attempts=1, errors=0))
        if slice_.finished and row.ended is None:
            values |= {"lease_until": None, "ended": now(conn)}
        conn.execute(sa.update(schema.slices).where(_here(slice_)).values(**values))


def release_slices(db: Database, run_id: str, owner: str) -> None:
    """Let all go that the owner has not finished; nothing failed."""
    with db.write() as conn:
        runs.get(conn, run_id, lock=True)
        mine = (S.run == run_id) & (S.owner == owner) & UNFINISHED & S.ended.is_(None)
        attempts = sa.case((S.attempts > 0, S.attempts - 1), else_=0)
        values = {"lease_until": None, "attempts": attempts, "ended": now(conn), "owner": None}
        conn.execute(sa.update(schema.slices).where(mine).values(**values))


def slice_failed(db: Database, slice_: Slice, owner: str, error: str, pause_s: float) -> None:
    """Let it go for a later try. Nothing happens when it is not the owner's any more."""
    with db.write() as conn:
        runs.get(conn, slice_.run, lock=True)
        moment = now(conn)
        mine = _here(slice_) & (S.owner == owner) & UNFINISHED
        until = moment + timedelta(seconds=pause_s)
        values = {"owner": None, "lease_until": until, "ended": moment, "error": error, "errors": S.errors + 1}
        conn.execute(sa.update(schema.slices).where(mine).values(**values))


def drop_slices(db: Database, run_id: str, *, owner: str) -> None:
    """Forget the plan. Raises `FencedOut` when the run is not the owner's."""
    with db.write() as conn:
        leases.held(conn, run_id, owner)
        conn.execute(sa.delete(schema.slices).where(S.run == run_id))


def give_up_plan(db: Database, slice_: Slice, owner: str, fence: int, **memory: str) -> None:
    """What all slices were planned for is not so, as who works on one of them has found; `memory` says what is.

    From here on nobody claims any of them, and whoever has the run next plans anew.
    """
    with db.write() as conn:
        run = _run(conn, slice_.run, owner, fence)
        _held(conn, slice_, owner)
        left = {key: value for key, value in run.memory.items() if key != PLAN}
        conn.execute(sa.update(schema.runs).where(R.id == run.id).values(memory={**left, **memory}))


def condemn(db: Database, run_id: str, error: str, family: str, *, at: tuple[Slice, str] | None = None) -> None:
    """A worker met what ends the run: it ends here and now, or by the one who has it just now.

    The first one who says it is heard. Nothing happens to a run that has ended, nor when it was met `at` a slice that
    is not this owner's any more: then it may be about what was there before.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not run.live or CONDEMNED in run.memory:
            return
        if at is not None:
            try:
                _held(conn, *at)
            except FencedOut:
                return
        if run.lease_until is not None and run.lease_until > now(conn):
            memory = {**run.memory, CONDEMNED: f"{family}: {error}"}
            conn.execute(sa.update(schema.runs).where(R.id == run_id).values(memory=memory))
            return
        leases.fail(conn, run, error, family)


def short_of_workers(db: Database, sent_s: float) -> list[Short]:
    """Runs with slices that somebody could work on, while others are at work on them or on the run itself, and that
    had no message for `sent_s` seconds, or since a worker of theirs was lost.
    """
    with db.read() as conn:
        moment = now(conn)
        free = runs.free_at(S.lease_until, moment)
        leased = S.owner.is_not(None) & ~free
        query = (
            sa.select(
                R.id,
                sa.func.sum(sa.case((free, 1), else_=0)).label("free"),
                sa.func.count(sa.distinct(sa.case((leased, S.owner)))).label("busy"),
                sa.func.max(sa.case((free, S.lease_until))).label("lost"),
            )
            .join_from(schema.slices, schema.runs)
            .where(UNFINISHED, schema.LIVE)
            .group_by(R.id, R.sent)
        )
        found = []
        for run_id, waiting, busy, lost in conn.execute(query):
            run = runs.get(conn, run_id)
            sent: datetime = conn.execute(sa.select(R.sent).where(R.id == run_id)).scalar_one()
            led = run.lease_until is not None and run.lease_until > moment
            late = sent < moment - timedelta(seconds=sent_s) or (lost is not None and sent < lost)
            if waiting and (busy or led) and late and run.memory.get(PLAN) and leases.STOP not in run.memory:
                found.append(Short(run, waiting, busy))
        return found


def _run(conn: sa.Connection, run_id: str, owner: str, fence: int) -> Run:
    """The run, locked until the transaction ends, which lives under this fence."""
    run = runs.get(conn, run_id, lock=True)
    _demand_live(run, owner)
    fences.demand(conn, run.target, fence)
    return run


def _demand_live(run: Run, owner: str) -> None:
    if not run.live:
        raise FencedOut(f"the run {run.id} has already ended ({run.state}); {owner} stops and writes nothing more")


def _held(conn: sa.Connection, slice_: Slice, owner: str) -> sa.Row[Any]:
    """Its row. Raises `FencedOut` unless it is the owner's: a lease that ran out holds until another takes it."""
    row = conn.execute(_select(slice_.run).where(_here(slice_))).one_or_none()
    if row is None:
        raise FencedOut(
            f"the run {slice_.run} has no slice of {slice_.disk} at {slice_.start} any more: its plan was given up; "
            f"{owner} stops and writes nothing more"
        )
    if row.owner != owner:
        raise FencedOut(
            f"the slice of {slice_.disk} at {slice_.start} of the run {slice_.run} is no longer {owner}'s, it went to "
            f"{row.owner or 'whoever is next'}; this execution stops and writes nothing more"
        )
    return row


def _place(slice_: Slice) -> tuple[str, int]:
    return slice_.disk, slice_.start


def _here(slice_: Slice) -> sa.ColumnElement[bool]:
    return (S.run == slice_.run) & (S.disk == slice_.disk) & (S.start == slice_.start)


def _select(run_id: str) -> sa.Select[Any]:
    columns = rows.fields(schema.slices, SliceState)
    return sa.select(*columns).where(S.run == run_id).order_by(S.disk, S.start)
