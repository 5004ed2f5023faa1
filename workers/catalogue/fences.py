"""Fences: the number of a target that its newest run carries. It only ever rises."""

from __future__ import annotations

import sqlalchemy as sa

from workers.catalogue import schema
from workers.catalogue.database import Database, upsert
from workers.errors import FencedOut

T = schema.targets.c
R = schema.runs.c


def fence(db: Database, target: str) -> int:
    """The target's present fence; 0 for one that was never written."""
    with db.read() as conn:
        return _fence(conn, target)


def check_fence(db: Database, target: str, fence: int) -> None:
    """Raises `FencedOut` unless `fence` is the target's present one."""
    with db.read() as conn:
        demand(conn, target, fence)


def raise_fence(
    db: Database, target: str, at_least: int, *, run_id: str | None = None, owner: str | None = None
) -> int:
    """Make the target's fence 1 + max(catalogue, at_least), so that everything which carries an older one must stop.

    With `run_id` and `owner`, the run which that owner holds goes on under the new fence: for a run that finds a
    higher fence on the replica than the catalogue knew. Raises `FencedOut` when the run is no longer the owner's.
    """
    with db.write() as conn:
        raised = 1 + max(lock(conn, target), at_least)
        put(conn, target, raised)
        if run_id is not None:
            mine = (R.id == run_id) & (R.target == target) & (R.owner == owner) & schema.LIVE
            if conn.execute(sa.update(schema.runs).where(mine).values(fence=raised)).rowcount != 1:
                raise FencedOut(f"the run {run_id} is no longer {owner}'s, so it may not raise the fence of {target}")
        return raised


def lock(conn: sa.Connection, target: str) -> int:
    """Keep everybody else from starting or committing a run of this target until the transaction ends."""
    upsert(conn, schema.targets, [{"target": target, "fence": 0}])
    present: int = conn.execute(sa.select(T.fence).where(T.target == target).with_for_update()).scalar_one()
    return present


def put(conn: sa.Connection, target: str, fence: int) -> None:
    conn.execute(sa.update(schema.targets).where(T.target == target).values(fence=fence))


def demand(conn: sa.Connection, target: str, fence: int) -> None:
    present = _fence(conn, target)
    if present != fence:
        raise FencedOut(
            f"fence {fence} of {target} is not the present one, which is {present}: "
            "another run owns it; this one stops and writes nothing more"
        )


def _fence(conn: sa.Connection, target: str) -> int:
    return conn.execute(sa.select(T.fence).where(T.target == target)).scalar_one_or_none() or 0
