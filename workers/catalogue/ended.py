"""How each target's last run ended: what status needs, in one query however many targets and runs there are."""

from __future__ import annotations

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database
from workers.models import Model, Run, RunState

T = schema.targets.c
R = schema.runs.c
F = schema.failures.c


class Ended(Model):
    """A run that has ended; `family` is that of its failure (errors.py), None when it did not fail."""

    run: Run
    family: str | None


def latest_ended(db: Database) -> list[Ended]:
    """Of every target the run that ended last: that of the highest fence.

    Asked per target (index on target and fence), for most runs are old and not worth reading.
    """
    older = schema.runs.alias()
    live = older.c.state.in_([RunState.QUEUED, RunState.RUNNING])
    top = sa.select(sa.func.max(older.c.fence)).where(older.c.target == T.target, ~live).scalar_subquery()
    family = sa.select(F.family).where(F.run == R.id).order_by(F.number.desc()).limit(1).scalar_subquery()
    query = (
        sa.select(*rows.fields(schema.runs, Run), family.label("family"))
        .where(R.target == T.target, R.fence == top)
        .order_by(R.number)
    )
    with db.read() as conn:
        found = [dict(row._mapping) for row in conn.execute(query)]
    return [Ended(family=row.pop("family"), run=Run.model_validate(row)) for row in found]
