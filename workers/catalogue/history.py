"""History: runs, failures and sync points are kept for a while; what status, dispatch and people still need, longer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from workers.catalogue import schema
from workers.catalogue.database import Database, now
from workers.catalogue.runs import left_behind

R = schema.runs.c
F = schema.failures.c
S = schema.sync_points.c

#: rows per transaction: others wait for it on SQLite
SOME = 500


class Dropped(NamedTuple):
    runs: int
    failures: int
    sync_points: int


def drop_history(db: Database, older_s: float) -> Dropped:
    """Remove what is older: ended runs with their slices, failures, sync points. Repeatable.

    What stays, however old: of each target and kind the newest run and the one of the latest slot, runs that left
    something behind, and the newest sync point of each pair.
    """
    return Dropped(
        _in_parts(db, older_s, _old_runs, _drop_runs),
        _in_parts(db, older_s, _old_failures, _drop_failures),
        _in_parts(db, older_s, _old_sync_points, _drop_sync_points),
    )


def _in_parts(db: Database, older_s: float, find: Any, drop: Any) -> int:
    dropped = 0
    while True:
        with db.write() as conn:
            keys = list(conn.execute(find(now(conn) - timedelta(seconds=older_s)).limit(SOME)).scalars())
            if keys:
                drop(conn, keys)
        dropped += len(keys)
        if len(keys) < SOME:
            return dropped


def _old_runs(before: Any) -> sa.Select[Any]:
    newer = schema.runs.alias().c
    same = (newer.target == R.target) & (newer.kind == R.kind)
    later_slot = sa.exists().where(same, newer.trigger == R.trigger, newer.slot > R.slot)
    return sa.select(R.id).where(
        R.ended < before,
        sa.exists().where(same, newer.fence > R.fence),
        R.slot.is_(None) | later_slot,
        ~left_behind() | R.state.in_(("succeeded", "nothing new")),
    )


def _drop_runs(conn: sa.Connection, ids: list[str]) -> None:
    conn.execute(sa.delete(schema.slices).where(schema.slices.c.run.in_(ids)))
    conn.execute(sa.delete(schema.runs).where(R.id.in_(ids)))


def _old_failures(before: Any) -> sa.Select[Any]:
    kept = sa.exists().where(R.id == F.run)
    return sa.select(F.number).where(F.at < before, ~kept)


def _drop_failures(conn: sa.Connection, numbers: list[int]) -> None:
    conn.execute(sa.delete(schema.failures).where(F.number.in_(numbers)))


def _old_sync_points(before: Any) -> sa.Select[Any]:
    newer = schema.sync_points.alias().c
    return sa.select(S.run).where(S.committed < before, sa.exists().where(newer.pair == S.pair, newer.fence > S.fence))


def _drop_sync_points(conn: sa.Connection, runs: list[str]) -> None:
    conn.execute(sa.delete(schema.sync_points).where(S.run.in_(runs)))
