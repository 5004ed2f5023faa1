"""Which replicas are half applied: a mirror of their cursors, so that a status need not ask their vCenters."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database, now, upsert
from workers.models import Model

H = schema.half_applied.c


class HalfApplied(Model):
    """Blocks of the replica hold `base`, or `toward`, or an earlier point that was begun since `base`."""

    pair: str
    base: str
    toward: str
    #: what is kept of `base` (the cursor's `undo`); "" = nothing
    undo: str
    #: when the first sync began that left it so
    since: datetime


def applying(db: Database, pair: str, *, base: str, toward: str, undo: str) -> None:
    """Its cursor says so. Said again, the time at which it began stays."""
    with db.write() as conn:
        table = schema.half_applied
        said = {"base": base, "toward": toward, "undo": undo}
        upsert(conn, table, [{"pair": pair, "since": now(conn), **said}], update=tuple(said))


def applied(db: Database, pair: str) -> None:
    """Its cursor says `committed`."""
    if pair in half_applied(db):  # most never were, and on SQLite a write has the whole catalogue to itself
        with db.write() as conn:
            conn.execute(sa.delete(schema.half_applied).where(H.pair == pair))


def half_applied(db: Database) -> dict[str, HalfApplied]:
    """By pair."""
    with db.read() as conn:
        found = conn.execute(sa.select(schema.half_applied))
        return {row.pair: rows.read(row, HalfApplied) for row in found}
