"""How far each replica or store was compared with what it should hold, and where a replica was found to differ."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from workers.catalogue import leases, rows, schema
from workers.catalogue.database import Database, now, upsert
from workers.extents import GRANULE
from workers.models import Model, Run, RunKind, RunState

S = schema.scrubs.c
D = schema.damages.c
R = schema.runs.c


class Scrub(Model):
    """A round over a replica's disks, or over a store's packs. Everything before `part` and `offset` was compared."""

    target: str
    round: int = 1
    began: datetime
    #: of this round; the next one has not begun yet
    ended: datetime | None = None
    #: a disk's id; of a store, nothing
    part: str = ""
    offset: int = 0
    #: bytes of this round, and of the whole when it was last looked at
    covered: int = 0
    total: int = 0
    #: bytes of this round that could not be compared, for the store is damaged there
    unread: int = 0
    #: between these two every byte was compared, last
    whole_began: datetime | None = None
    whole_ended: datetime | None = None


class Damage(Model):
    """A range of a replica's disk in which `granules` granules are not what the sync point's digests say."""

    target: str
    #: id of the source's disk
    disk: str
    start: int
    end: int
    granules: int
    label: str
    point: str
    run: str
    found: datetime


def scrubs(db: Database, target: str | None = None) -> dict[str, Scrub]:
    query = sa.select(*rows.fields(schema.scrubs, Scrub))
    if target is not None:
        query = query.where(S.target == target)
    with db.read() as conn:
        return {row.target: rows.read(row, Scrub) for row in conn.execute(query)}


def scrubbed(db: Database, run_id: str, owner: str, scrub: Scrub) -> None:
    """How far the run's target has been compared. Raises `FencedOut` unless the owner holds the run."""
    with db.write() as conn:
        leases.held(conn, run_id, owner)
        columns = tuple(name for name in Scrub.model_fields if name != "target")
        upsert(conn, schema.scrubs, [scrub.model_dump()], update=columns)


def damages(db: Database, target: str | None = None) -> list[Damage]:
    """By target, disk and offset."""
    query = sa.select(*rows.fields(schema.damages, Damage)).order_by(D.target, D.disk, D.start)
    if target is not None:
        query = query.where(D.target == target)
    with db.read() as conn:
        return [rows.read(row, Damage) for row in conn.execute(query)]


def compared(db: Database, run_id: str, owner: str, disk: str, start: int, end: int, found: Sequence[Damage]) -> None:
    """`found` is all that differs in this range of a disk now; what was known of it before counts no more.

    Repeatable. Raises `FencedOut` unless the owner holds the run.
    """
    with db.write() as conn:
        target = leases.held(conn, run_id, owner).target
        moment = now(conn)
        here = (D.target == target) & (D.disk == disk) & (D.start < end) & (D.end > start)
        kept = []
        for row in conn.execute(sa.select(*rows.fields(schema.damages, Damage)).where(here)):
            known = rows.read(row, Damage)
            kept += [_cut(known, known.start, start)] if known.start < start else []
            kept += [_cut(known, end, known.end)] if known.end > end else []
        conn.execute(sa.delete(schema.damages).where(here))
        fresh = [each.model_copy(update={"found": moment}) for each in found]
        if kept or fresh:
            conn.execute(sa.insert(schema.damages), [each.model_dump() for each in (*kept, *fresh)])


def _cut(known: Damage, start: int, end: int) -> Damage:
    """A part of a range: it may hold all of the granules that differ, or as many as fit."""
    most = -(-(end - start) // GRANULE)
    return known.model_copy(update={"start": start, "end": end, "granules": min(known.granules, most)})


def mended(db: Database, run_id: str, owner: str) -> None:
    """All that was known to differ on the run's target was written again. Raises `FencedOut`, as above."""
    with db.write() as conn:
        forget_damage(conn, leases.held(conn, run_id, owner).target)


def forget_damage(conn: sa.Connection, target: str) -> None:
    conn.execute(sa.delete(schema.damages).where(D.target == target))


def forget(conn: sa.Connection, target: str) -> None:
    """There is nothing any more to which this could belong."""
    forget_damage(conn, target)
    conn.execute(sa.delete(schema.scrubs).where(S.target == target))


def latest_verifications(db: Database) -> dict[str, Run]:
    """Of every target the verification that ended last."""
    ended: Any = (R.kind == RunKind.VERIFY) & R.state.not_in((RunState.QUEUED, RunState.RUNNING))
    top = sa.select(R.target, sa.func.max(R.fence).label("fence")).where(ended).group_by(R.target).subquery()
    query = sa.select(*rows.fields(schema.runs, Run)).join(top, (R.target == top.c.target) & (R.fence == top.c.fence))
    with db.read() as conn:
        return {row.target: rows.read(row, Run) for row in conn.execute(query)}
