"""Runs: how they come to be, and how they are found again. One live run per target, one run per slot."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from workers.catalogue import fences, holds, rows, schema
from workers.catalogue.database import Database, now
from workers.errors import BadInput, NotFound
from workers.models import Run, RunKind, RunState, Trigger

R = schema.runs.c
S = schema.slices.c
T = schema.targets.c

#: No pause of ours is as long, and no lease longer by so much than is asked for: a time so far ahead was written by a
#: clock that was wrong.
AHEAD = timedelta(hours=2)


def request_run(
    db: Database,
    kind: RunKind,
    target: str,
    *,
    vm: str,
    site: str,
    trigger: Trigger,
    slot: str | None = None,
    pair: str | None = None,
    at_least: int = 0,
    memory: Mapping[str, str] | None = None,
) -> tuple[Run, bool]:
    """The live run of the target, or else the run that used the slot, or else a new one: (run, was it made now?).

    Making one raises the target's fence to 1 + max(catalogue, at_least) in the same transaction. Nothing else does,
    so however often this is asked, nobody is fenced out by the asking. `pair` is kept as memory["pair"].
    Raises `Refused` where a person said that no such run is to start (see holds.py).
    """
    with db.write() as conn:
        known = fences.lock(conn, target)
        row = _one(conn, (R.target == target) & schema.LIVE)
        if row is None and slot is not None:
            row = _one(conn, (R.target == target) & (R.kind == kind) & (R.slot == slot))
        if row is not None:
            return rows.read(row, Run), False
        holds.refuse(conn, target, vm, kind, trigger)
        fence = 1 + max(known, at_least)
        fences.put(conn, target, fence)
        moment = now(conn)
        run = Run(
            id=secrets.token_hex(8),
            kind=kind,
            target=target,
            vm=vm,
            site=site,
            trigger=trigger,
            slot=slot,
            state=RunState.QUEUED,
            fence=fence,
            attempts=0,
            memory={**(memory or {}), **({} if pair is None else {"pair": pair})},
            created=moment,
        )
        conn.execute(sa.insert(schema.runs).values(**run.model_dump(), sent=moment))
        return run, True


def run(db: Database, run_id: str) -> Run:
    with db.read() as conn:
        return get(conn, run_id)


def find_run(db: Database, prefix: str) -> Run:
    """The run whose id starts so. Raises `NotFound`, and `BadInput` when there are several."""
    with db.read() as conn:
        found = conn.execute(
            _select().where(R.id.startswith(prefix, autoescape=True)).order_by(R.number.desc()).limit(4)
        ).all()
    if not found:
        raise NotFound(f"no run starts with {prefix!r}; `understudy runs` lists the latest")
    if len(found) > 1:
        raise BadInput(f"{prefix!r} starts several runs, e.g. {found[0].id} and {found[1].id}; give more of it")
    return rows.read(found[0], Run)


def runs(
    db: Database,
    vm: str | None = None,
    kind: RunKind | None = None,
    limit: int = 100,
    *,
    target: str | None = None,
    before: str | None = None,
) -> list[Run]:
    """The newest first. The next page is what was made `before` the last run of this one."""
    query = _select().order_by(R.number.desc()).limit(limit)
    for column, value in ((R.vm, vm), (R.kind, kind), (R.target, target)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(R.number < sa.select(R.number).where(R.id == before).scalar_subquery())
    return _list(db, query)


def live_runs(db: Database, limit: int = 10_000) -> list[Run]:
    """Queued and running, the oldest first. There is at most one per target."""
    return _list(db, _select().where(schema.LIVE).order_by(R.number).limit(limit))


def free_at(until: sa.ColumnElement[Any], moment: datetime) -> sa.ColumnElement[bool]:
    """Nothing lasts until then any more: it is over, or so far ahead that a wrong clock has written it."""
    return until.is_(None) | (until <= moment) | (until > moment + AHEAD)


def lost_runs(db: Database, queued_s: float = 60, limit: int = 1000) -> list[Run]:
    """Live runs that nobody may be going to continue: their lease ran out, or they are due and wait for a message
    that was sent more than `queued_s` seconds ago, or they were shared and nobody works on any of their slices.

    Send each a message unless one still waits in its queue, then say so with `mark_sent` of all: they go to the end of
    this list, so that every one has its turn however many there are.

    What was written by a clock that was ahead, and has been set right since, does not hold a run up until then.
    """
    with db.read() as conn:
        moment = now(conn)
        old = (R.sent < moment - timedelta(seconds=queued_s)) | (R.sent > moment)
        over = R.lease_until.is_not(None) & free_at(R.lease_until, moment)
        deserted = (R.state == RunState.RUNNING) & over & (old | (R.sent < R.lease_until))
        waiting = (R.state == RunState.QUEUED) & old & free_at(R.not_before, moment)
        begun = sa.select(S.run).where((S.run == R.id) & (S.done < S.end) & S.owner.is_not(None))
        busy = begun.where(~free_at(S.lease_until, moment)).exists()
        died = begun.where(free_at(S.lease_until, moment), S.lease_until > R.sent).exists()
        shared = (R.state == RunState.RUNNING) & R.lease_until.is_(None) & (old | died) & ~busy
        found = conn.execute(
            _select().where(schema.LIVE, deserted | waiting | shared).order_by(R.sent, R.number).limit(limit)
        ).all()
    return [rows.read(row, Run) for row in found]


def mark_sent(db: Database, run_ids: Iterable[str]) -> None:
    """A message for each of these live runs was put into a queue just now."""
    with db.write() as conn:
        moment = now(conn)
        for some in _chunks(sorted(run_ids)):
            live = sa.select(R.number).where(R.id.in_(some), schema.LIVE).order_by(R.number).with_for_update()
            numbers = conn.execute(live).scalars().all()
            conn.execute(sa.update(schema.runs).where(R.number.in_(numbers)).values(sent=moment))


def used_slot(db: Database, target: str, kind: RunKind) -> str | None:
    """The latest slot of its schedule for which this target had a run. Slots sort by time, see workers/due.py."""
    scheduled = (R.target == target) & (R.kind == kind) & (R.trigger == Trigger.SCHEDULE)
    with db.read() as conn:
        latest: str | None = conn.execute(sa.select(sa.func.max(R.slot)).where(scheduled)).scalar_one()
        return latest


def used_slots(db: Database, kind: RunKind) -> dict[str, str]:
    """`used_slot` of every target that had one, for a tick over thousands of VMs.

    Asked per target (index on target, kind and slot), from the latest slot down: the history may have millions of runs.
    The slots of other triggers begin with a letter, and sort behind those of schedules.
    """
    mine = (R.target == T.target) & (R.kind == kind) & (R.slot < "a") & (R.trigger == Trigger.SCHEDULE)
    latest = sa.select(R.slot).where(mine).order_by(R.slot.desc()).limit(1).correlate(schema.targets)
    with db.read() as conn:
        found = conn.execute(sa.select(T.target, latest.scalar_subquery()))
        return {target: slot for target, slot in found if slot is not None}


#: keys of a run's memory: what a failed run leaves behind until a worker of its site has removed it
LEFT_BEHIND = ("snapshot", "pinned")


def left_behind() -> sa.ColumnElement[bool]:
    """Whether a run remembers something that is to be removed."""
    memory = sa.cast(R.memory, sa.Text)
    return sa.or_(*(memory.like(f'%"{key}"%') for key in LEFT_BEHIND))


def unclean_runs(db: Database, limit: int = 100) -> list[Run]:
    """Runs that ended early and left something behind, the oldest first."""
    early = R.state.in_((RunState.FAILED, RunState.STOPPED, RunState.NEEDS_APPROVAL))
    return _list(db, _select().where(early & left_behind()).order_by(R.number).limit(limit))


def cleaned(db: Database, run_id: str) -> None:
    """What the ended run left behind has been removed."""
    with db.write() as conn:
        run = get(conn, run_id, lock=True)
        memory = {key: value for key, value in run.memory.items() if key not in LEFT_BEHIND}
        conn.execute(sa.update(schema.runs).where(R.id == run_id).values(memory=memory))


def get(conn: sa.Connection, run_id: str, *, lock: bool = False) -> Run:
    query = _select().where(R.id == run_id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(
            f"the catalogue has no run {run_id}; it was made in another catalogue or before this one was rebuilt"
        )
    return rows.read(row, Run)


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    """500 at a time: a statement takes a limited number of parameters."""
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


def _select() -> sa.Select[Any]:
    return sa.select(*rows.fields(schema.runs, Run))


def _one(conn: sa.Connection, where: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    return conn.execute(_select().where(where)).one_or_none()


def _list(db: Database, query: sa.Select[Any]) -> list[Run]:
    with db.read() as conn:
        return [rows.read(row, Run) for row in conn.execute(query)]
