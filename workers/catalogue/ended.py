"""How each target's last run ended, and how many failed in a row: one query, however many targets there are."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database
from workers.models import Model, Run, RunKind, RunState

T = schema.targets.c
R = schema.runs.c

LIVE = (RunState.QUEUED, RunState.RUNNING)


class Ended(Model):
    """A run that has ended; `family` is that of its failure (errors.py), None when it did not fail."""

    run: Run
    family: str | None
    #: when it failed: backups and syncs that failed since the last one that did not, itself among them
    failures: int = 0
    #: when the first of them ended, and the family of the latest
    since: datetime | None = None
    blamed: str | None = None


def latest_ended(db: Database, target: str | None = None, *, uncounted: Collection[str] = ()) -> list[Ended]:
    """Of every target, or of one, the run that ended last: that of the highest fence, but for verifications.

    A verification says nothing of how backups and syncs go; what it found is kept apart (scrubs.py).

    Asked per target (index on target and fence), for most runs are old and not worth reading. `uncounted`: families
    whose failures are not counted.
    """
    query = _query(tuple(sorted(uncounted)), target is not None)
    with db.read() as conn:
        return [_read(row) for row in conn.execute(query, {} if target is None else {"asked": target})]


@lru_cache(maxsize=16)
def _query(uncounted: tuple[str, ...], one: bool) -> sa.Select[Any]:
    """Made once: dispatch asks it after every backup, and making it takes longer than asking."""
    older = schema.runs.alias()
    top = sa.select(sa.func.max(older.c.fence)).where(
        older.c.target == T.target, older.c.state.not_in(LIVE), older.c.kind != RunKind.VERIFY
    )
    query = (
        sa.select(*rows.fields(schema.runs, Run), *_streak(uncounted))
        .where(R.target == T.target, R.fence == top.scalar_subquery())
        .order_by(R.number)
    )
    return query.where(T.target == sa.bindparam("asked")) if one else query


def _streak(uncounted: tuple[str, ...]) -> list[sa.ColumnElement[Any]]:
    """Only asked of a target whose last run failed: the failed runs after the last one that did not."""
    good, bad = schema.runs.alias().c, schema.runs.alias().c
    well = (
        sa.select(good.fence)
        .where(good.target == T.target, good.state.not_in((*LIVE, RunState.FAILED)), good.kind != RunKind.VERIFY)
        .order_by(good.fence.desc())
        .limit(1)
    )
    counted = sa.and_(
        bad.target == T.target,
        bad.fence > sa.func.coalesce(well.correlate(schema.targets).scalar_subquery(), 0),
        bad.fence > sa.func.coalesce(T.forgiven, 0),
        bad.state == RunState.FAILED,
        bad.kind.in_((RunKind.BACKUP, RunKind.SYNC, RunKind.COPY)),
        sa.func.coalesce(bad.family, "").not_in(uncounted),
    )
    asked = {
        "failures": sa.select(sa.func.count()).where(counted),
        "since": sa.select(sa.func.min(bad.ended)).where(counted),
        "blamed": sa.select(bad.family).where(counted).order_by(bad.fence.desc()).limit(1),
    }
    return [
        sa.case((R.state == RunState.FAILED, each.correlate(schema.targets).scalar_subquery())).label(name)
        for name, each in asked.items()
    ]


def _read(row: sa.Row[Any]) -> Ended:
    found = dict(row._mapping)
    streak = {name: found.pop(name) for name in ("failures", "since", "blamed")}
    run = Run.model_validate(found)
    return Ended(run=run, family=run.family, **{**streak, "failures": streak["failures"] or 0})
