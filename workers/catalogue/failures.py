"""Failures: what went wrong, with which run, task and VM. Rows are only ever added."""

from __future__ import annotations

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database, now
from workers.models import Failure

F = schema.failures.c


def record_failure(db: Database, failure: Failure) -> None:
    """Add a row, at the database's time. The same message of the same run or task is not added twice."""
    with db.write() as conn:
        insert(conn, failure.model_copy(update={"at": now(conn)}))


def failures(db: Database, limit: int = 100, vm: str | None = None, *, run: str | None = None) -> list[Failure]:
    """The newest first."""
    query = sa.select(*rows.fields(schema.failures, Failure)).order_by(F.number.desc()).limit(limit)
    if vm is not None:
        query = query.where(F.vm == vm)
    if run is not None:
        query = query.where(F.run == run)
    with db.read() as conn:
        return [rows.read(row, Failure) for row in conn.execute(query)]


def insert(conn: sa.Connection, failure: Failure) -> None:
    same = [column == value for column, value in ((F.run, failure.run), (F.task, failure.task)) if value is not None]
    if same:
        told = sa.select(F.number).where(F.message == failure.message, sa.or_(*same)).limit(1)
        if conn.execute(told).first() is not None:
            return
    conn.execute(sa.insert(schema.failures).values(**failure.model_dump()))
