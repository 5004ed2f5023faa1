"""Leases: who works on a run just now, and what may be written into it meanwhile.

An `owner` is one execution (one delivery of one message), never a worker or a task id: a message that is delivered
twice has the same task id both times. All times are the database's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from workers.catalogue import failures, fences, runs, schema
from workers.catalogue.database import Database, now
from workers.catalogue.holds import used_up
from workers.catalogue.runs import AHEAD
from workers.errors import Conflict, FencedOut
from workers.models import Failure, Run, RunKind, RunState

R = schema.runs.c
S = schema.slices.c

#: in a run's memory: a person wants it to end, and why
STOP = "stop"


def claim(db: Database, run_id: str, owner: str, lease_s: float) -> Run | None:
    """Take the run for `lease_s` seconds. None when it has ended, is not due yet, or is another execution's.

    Each claim counts as an attempt; a clean `yield_run` starts the count again, so that a long run which goes on slice
    by slice is not taken for one that fails. Claiming what the owner holds already changes only the lease.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        moment = now(conn)
        leased = _ahead(run.lease_until, moment, longest=timedelta(seconds=lease_s) + AHEAD)
        if not run.live or _ahead(run.not_before, moment, longest=AHEAD):
            return None
        if leased and run.owner != owner:
            return None
        _set(
            conn,
            run_id,
            state=RunState.RUNNING,
            owner=owner,
            lease_until=moment + timedelta(seconds=lease_s),
            not_before=None,
            started=run.started or moment,
            attempts=run.attempts if leased else run.attempts + 1,
        )
        return runs.get(conn, run_id)


def renew(db: Database, run_id: str, owner: str, lease_s: float) -> bool:
    """Keep the run, and the slices of it that are the owner's, for another `lease_s` seconds. False when the run is no
    longer the owner's: then stop at once.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not holds(run, owner):
            return False
        until = now(conn) + timedelta(seconds=lease_s)
        _set(conn, run_id, lease_until=until)
        keep_slices(conn, run_id, owner, until)
        return True


def keep_slices(conn: sa.Connection, run_id: str, owner: str, until: datetime) -> None:
    mine = (S.run == run_id) & (S.owner == owner) & (S.done < S.end)
    conn.execute(sa.update(schema.slices).where(mine).values(lease_until=until))


def yield_run(
    db: Database, run_id: str, owner: str, not_before: datetime | None = None, error: str | None = None
) -> bool:
    """Let go: back to the queue, due at once or `not_before`. False when it was not the owner's any more.

    With an `error` the attempt counts as one that failed; without, it made progress and the count starts again.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not holds(run, owner):
            return False
        _set(
            conn,
            run_id,
            state=RunState.QUEUED,
            owner=None,
            lease_until=None,
            not_before=not_before,
            error=error,
            attempts=run.attempts if error else 0,
            errors=run.errors + 1 if error else 0,
            sent=now(conn),
        )
        return True


def share_run(db: Database, run_id: str, owner: str) -> bool:
    """Let go while others work on its slices: running, and nobody's. False when it was not the owner's any more.

    Who lets it go must look at the slices once more afterwards, and who finishes one must look at all of them and try
    to claim the run: then one of the two sees that all are finished and the run is free.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not holds(run, owner):
            return False
        tries = max(0, run.attempts - 1)  # this one did not fail
        _set(conn, run_id, owner=None, lease_until=None, not_before=None, attempts=tries, error=None, sent=now(conn))
        return True


def check_claim(db: Database, run_id: str, owner: str, fence: int) -> None:
    """Raises `FencedOut` unless the run is this owner's and its fence is the target's. To be asked under the lock of
    what is written next: then no newer run can have written there, and none can until the lock is released.
    """
    with db.read() as conn:
        run = runs.get(conn, run_id)
        _demand(run, owner)
        fences.demand(conn, run.target, fence)


def refence(db: Database, run_id: str, owner: str, at_least: int) -> Run:
    """Give the run, and so its target, a fence above `at_least`, which the target has seen from an older catalogue."""
    with db.write() as conn:
        target = runs.get(conn, run_id).target
        known = fences.lock(conn, target)
        run = held(conn, run_id, owner)
        if run.fence != known:
            raise FencedOut(f"the run {run_id} carries fence {run.fence} of {target}, the present one is {known}")
        fences.put(conn, target, 1 + max(known, at_least))
        _set(conn, run_id, fence=1 + max(known, at_least))
        return runs.get(conn, run_id)


def remember(db: Database, run_id: str, owner: str, **memory: str | None) -> Run:
    """Merge into the run's memory; None forgets a key. Raises `FencedOut` when the run is no longer the owner's."""
    with db.write() as conn:
        run = held(conn, run_id, owner)
        merged = {**run.memory, **memory}
        _set(conn, run_id, memory={key: value for key, value in merged.items() if value is not None})
        return runs.get(conn, run_id)


def note(db: Database, run_id: str, *reasons: str) -> None:
    """Add to the run's reasons, in words. A sentence that is there already is not added again."""
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        add_reasons(conn, run, reasons)


def finish(
    db: Database,
    run_id: str,
    owner: str,
    state: RunState,
    *,
    point: str | None = None,
    read: int = 0,
    written: int = 0,
    stored: int = 0,
    error: str | None = None,
    family: str | None = None,
    task: str | None = None,
) -> None:
    """End the run. A failed one writes its failure row in the same transaction, so `error` must say what failed.

    The same end may be told again by the same owner. Raises `FencedOut` when the run is no longer the owner's.
    """
    if state in (RunState.QUEUED, RunState.RUNNING) or (state is RunState.FAILED) != bool(error):
        raise ValueError(f"a run cannot end as {state!r} with the error {error!r}")
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not run.live:
            if (run.owner, run.state) == (owner, state):
                return
            raise FencedOut(f"the run {run_id} has already ended ({run.state}); {owner} may not end it as {state}")
        _demand(run, owner)
        result = {"point": point, "read": read, "written": written, "stored": stored}
        if error:
            fail(conn, run, error, family or "error", task, **result)
        else:
            end(conn, run_id, state, **result)


def ask_to_stop(db: Database, run_id: str, reason: str) -> Run:
    """End a run that waits, here and now; one that is worked on ends itself at its next checkpoint.

    Nothing happens to a run that has ended.
    """
    with db.write() as conn:
        run = runs.get(conn, run_id, lock=True)
        if not run.live:
            return run
        _set(conn, run_id, memory={**run.memory, STOP: reason})
        if run.state is RunState.QUEUED:
            add_reasons(conn, run, (reason,))
            end(conn, run_id, RunState.STOPPED)
        return runs.get(conn, run_id)


def fail(conn: sa.Connection, run: Run, error: str, family: str, task: str | None = None, **result: Any) -> None:
    """End it, and leave a row of failures."""
    end(conn, run.id, RunState.FAILED, error=error, family=family, **result)
    failures.insert(
        conn,
        Failure(at=now(conn), run=run.id, task=task, vm=run.vm, kind=run.kind, family=family, message=error),
    )


def end(conn: sa.Connection, run_id: str, state: RunState, **result: Any) -> None:
    """The owner stays on record, the lease does not."""
    _set(conn, run_id, state=state, ended=now(conn), lease_until=None, not_before=None, **result)
    if state in (RunState.SUCCEEDED, RunState.NOTHING_NEW):
        run = runs.get(conn, run_id)
        if run.kind is not RunKind.VERIFY:
            used_up(conn, run.target)


def held(conn: sa.Connection, run_id: str, owner: str) -> Run:
    """The run, locked until the transaction ends. Raises `FencedOut` unless the owner holds it."""
    run = runs.get(conn, run_id, lock=True)
    _demand(run, owner)
    return run


def holds(run: Run, owner: str) -> bool:
    """A lease that ran out still holds until somebody else takes the run."""
    return run.state is RunState.RUNNING and run.owner == owner


def add_reasons(conn: sa.Connection, run: Run, reasons: tuple[str, ...]) -> None:
    fresh = [reason for reason in dict.fromkeys(reasons) if reason not in run.reasons]
    if fresh:
        _set(conn, run.id, reasons=[*run.reasons, *fresh])


def _ahead(time: datetime | None, moment: datetime, *, longest: timedelta) -> bool:
    """Whether this time is still to come. One that is later than any of ours was written by a clock that was ahead."""
    return time is not None and moment < time <= moment + longest


def _demand(run: Run, owner: str) -> None:
    if not run.live:
        raise FencedOut(f"the run {run.id} has already ended ({run.state}); {owner} stops and writes nothing more")
    if not holds(run, owner):
        raise FencedOut(
            f"the run {run.id} of {run.target} is no longer {owner}'s, it went to {run.owner or 'the queue'}; "
            "this execution stops and writes nothing more"
        )


def _set(conn: sa.Connection, run_id: str, **values: Any) -> None:
    if conn.execute(sa.update(schema.runs).where(R.id == run_id).values(**values)).rowcount != 1:
        raise Conflict(f"the run {run_id} vanished while it was being written")
