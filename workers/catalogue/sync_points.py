"""Sync points: what a replica holds, committed once by the run that owns its target."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from workers.catalogue import fences, leases, rows, runs, schema, scrubs
from workers.catalogue.database import Database, now
from workers.errors import Conflict, FencedOut
from workers.models import RunState, SyncPoint

S = schema.sync_points.c


def commit_sync(db: Database, run_id: str, owner: str, sync_point: SyncPoint, *, read: int = 0) -> SyncPoint:
    """Record the sync point and end its run as succeeded, in one transaction; `committed` becomes the database's time.

    By run id: told again, it returns what was recorded. Raises `FencedOut` when the sync point's fence is no longer
    the target's or the run no longer the owner's, `Conflict` when the run committed something else.
    """
    if sync_point.run != run_id:
        raise ValueError(f"the sync point of {sync_point.run} was given for {run_id}")
    with db.write() as conn:
        target = runs.get(conn, run_id).target
        present = fences.lock(conn, target)
        known = conn.execute(_select().where(S.run == run_id)).one_or_none()
        if known is not None:
            return _told_again(rows.read(known, SyncPoint), sync_point)
        run = leases.held(conn, run_id, owner)
        if not present == run.fence == sync_point.fence:
            raise FencedOut(
                f"the run {run_id} may not commit fence {sync_point.fence} of {target}: the present one is {present}; "
                "a newer run owns the replica"
            )
        committed = sync_point.model_copy(update={"committed": now(conn)})
        conn.execute(sa.insert(schema.sync_points).values(**committed.model_dump()))
        if committed.mode in ("compare", "build"):  # every block is what the point says, whatever was found before
            scrubs.forget_damage(conn, target)
        leases.add_reasons(conn, run, committed.reasons)
        leases.end(
            conn, run_id, RunState.SUCCEEDED, point=committed.point, read=read, written=committed.written, error=None
        )
        return committed


def adopt_sync_point(db: Database, sync_point: SyncPoint) -> None:
    """Record what a replica's cursor says it holds, when the catalogue does not know that (its run died)."""
    with db.write() as conn:
        if conn.execute(_select().where(S.run == sync_point.run)).one_or_none() is None:
            conn.execute(sa.insert(schema.sync_points).values(**sync_point.model_dump()))


def latest_sync_points(db: Database) -> list[SyncPoint]:
    """Of every pair the one with the highest fence; asked per pair, for the history may have millions."""
    older = schema.sync_points.alias().c
    latest = sa.select(older.run).where(older.pair == schema.pairs.c.id).order_by(older.fence.desc()).limit(1)
    each = sa.select(latest.correlate(schema.pairs).scalar_subquery()).select_from(schema.pairs)
    query = _select().where(S.run.in_(each))
    with db.read() as conn:
        return [rows.read(row, SyncPoint) for row in conn.execute(query)]


def sync_point(db: Database, pair_id: str) -> SyncPoint | None:
    """The latest of a pair: that of the highest fence."""
    found = sync_points(db, pair_id, limit=1)
    return found[0] if found else None


def sync_points(db: Database, pair_id: str | None = None, limit: int = 100) -> list[SyncPoint]:
    """The newest first: of a pair by fence, of all pairs by time."""
    query = _select().limit(limit)
    if pair_id is not None:
        query = query.where(S.pair == pair_id).order_by(S.fence.desc())
    else:
        query = query.order_by(S.committed.desc(), S.run)
    with db.read() as conn:
        return [rows.read(row, SyncPoint) for row in conn.execute(query)]


def _told_again(known: SyncPoint, told: SyncPoint) -> SyncPoint:
    if known != told.model_copy(update={"committed": known.committed}):
        raise Conflict(
            f"the run {known.run} committed the point {known.point} at fence {known.fence}; "
            f"it cannot commit {told.point} at {told.fence} as well"
        )
    return known


def _select() -> sa.Select[Any]:
    return sa.select(*rows.fields(schema.sync_points, SyncPoint))
