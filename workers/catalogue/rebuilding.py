"""A new catalogue takes over what an older one, which was lost, has left in stores and on replicas."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from workers.catalogue import failures, fences, pairs, points, rows, schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.errors import Refused
from workers.models import Failure, Pair, RestorePoint, Run, RunState

P = schema.pairs.c
R = schema.runs.c


def is_new(db: Database) -> bool:
    """Nothing was ever recorded but inventories: then its realm's id is known to nobody else."""
    with db.read() as conn:
        return _is_new(conn)


def take_over_realm(db: Database, realm: str) -> None:
    """Become the realm `realm`. Raises `Refused` when this catalogue has already been used as another one."""
    with db.write() as conn:
        if conn.execute(sa.select(schema.realm.c.id)).scalar_one() == realm:
            return
        if not _is_new(conn):
            raise Refused(
                "this catalogue has been used already, so it can not become that of another realm: make a new one "
                "(another `catalogue` in the configuration, then `understudy init`), and rebuild before anything runs"
            )
        conn.execute(sa.update(schema.realm).values(id=realm))


def keep_fence(db: Database, target: str, seen: int, room: int) -> int:
    """The target's fence is at least `seen`; `room` above it when the target was not known. May be told again."""
    with db.write() as conn:
        known = fences.lock(conn, target)
        kept = max(known, seen) if known else seen + room
        fences.put(conn, target, kept)
        return kept


def adopt_points(db: Database, store: str, found: Sequence[RestorePoint]) -> None:
    """Mirror what a store has of a VM. May be told again."""
    with db.write() as conn:
        upsert(conn, schema.points, [points.summary(store, point).model_dump() for point in found])


def adopt_pair(db: Database, pair: Pair) -> Pair:
    """Record a pair under the id that its replica carries. Raises `Refused` when another one has its place."""
    with db.write() as conn:
        take_turns(conn, "pair:" + pair.source)
        known = conn.execute(pairs.select().where(P.id == pair.id)).one_or_none()
        if known is not None:
            return rows.read(known, Pair)
        place = (P.source == pair.source) & (P.recovery_target == pair.recovery_target)
        other = conn.execute(sa.select(P.id).where(place)).scalar_one_or_none()
        if other is not None:
            raise Refused(
                f"{pair.vm} -> {pair.recovery_target} was made a pair anew ({other}) before the catalogue was rebuilt; "
                f"its replica {pair.replica_name} belongs to the pair {pair.id}. Make a new catalogue, and rebuild it "
                "before Beat and the workers are started"
            )
        made = pair.model_copy(update={"created": now(conn)})
        conn.execute(sa.insert(schema.pairs).values(**made.model_dump(exclude={"paused"})))
        return made


def adopt_lost_run(db: Database, run: Run, error: str) -> None:
    """Record a run of the lost catalogue as failed: it was ended, so what it left may be removed. Once per run."""
    with db.write() as conn:
        fence = 1 + fences.lock(conn, run.target)
        if conn.execute(sa.select(R.id).where(R.id == run.id)).one_or_none() is not None:
            return
        fences.put(conn, run.target, fence)
        moment = now(conn)
        ended = run.model_copy(update={"fence": fence, "state": RunState.FAILED, "ended": moment, "error": error})
        conn.execute(sa.insert(schema.runs).values(**ended.model_dump(), sent=moment))
        failures.insert(
            conn,
            Failure(at=moment, run=run.id, task=None, vm=run.vm, kind=run.kind, family="catalogue lost", message=error),
        )


def _is_new(conn: sa.Connection) -> bool:
    used = (schema.pairs, schema.runs, schema.points, schema.sync_points)
    return all(conn.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is None for table in used)
