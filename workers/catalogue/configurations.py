"""Which configuration is in force at which worker, and which newer one it refuses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from workers.catalogue import failures, rows, schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.models import Failure, Model

C = schema.configurations.c

#: a worker that has not been seen for so long will not come back
FORGOTTEN = timedelta(days=90)


class InForce(Model):
    """One worker's configuration. `refused` and `waits` are sentences, empty when all is well."""

    #: whose: control@host or <site>@host
    worker: str
    path: str
    digest: str
    #: the configuration without any secret, so that it can be looked at when the files cannot be read any more
    data: dict[str, Any]
    since: datetime
    #: what of it waits for a restart
    waits: str
    #: why the newer one is refused
    refused: str
    #: which one that is
    mark: str
    seen: datetime


def configuration_taken(db: Database, worker: str, path: str, *, digest: str, data: dict[str, Any], waits: str) -> None:
    """It is in force; nothing is refused any more. `since` stays when it was in force already."""
    with db.write() as conn:
        known = _known(conn, worker, path)
        at = now(conn)
        conn.execute(sa.delete(schema.configurations).where(C.seen < at - FORGOTTEN))  # hosts that are no more
        since = known.since if known is not None and known.digest == digest else at
        line = InForce(
            worker=worker, path=path, digest=digest, data=data, since=since, waits=waits, refused="", mark="", seen=at
        )
        changed = tuple(name for name in InForce.model_fields if name not in ("worker", "path"))
        upsert(conn, schema.configurations, [line.model_dump()], update=changed)


def configuration_refused(db: Database, worker: str, path: str, *, mark: str, sentence: str) -> bool:
    """The newer one is refused. The first of the worker's processes to say so adds a failure, and is told True."""
    with db.write() as conn:
        known = _known(conn, worker, path)
        if known is None or known.mark == mark:
            return known is None
        at = now(conn)
        conn.execute(_update(worker, path).values(refused=sentence, mark=mark, seen=at))
        message = f"{worker}: the new configuration {path} is refused, the old one stays in force: {sentence}"
        told = Failure(
            at=at, run=None, task=None, vm=None, kind="configuration", family="configuration", message=message
        )
        failures.insert(conn, told)
        return True


def configuration_seen(db: Database, worker: str, path: str) -> None:
    """The worker is still there and works by it."""
    with db.write() as conn:
        conn.execute(_update(worker, path).values(seen=now(conn)))


def configurations(db: Database) -> list[InForce]:
    """The newest first."""
    with db.read() as conn:
        found = conn.execute(_select().order_by(C.since.desc(), C.worker, C.path))
        return [rows.read(row, InForce) for row in found]


def _select() -> sa.Select[Any]:
    return sa.select(*rows.fields(schema.configurations, InForce))


def _update(worker: str, path: str) -> sa.Update:
    return sa.update(schema.configurations).where(C.worker == worker, C.path == path)


def _known(conn: sa.Connection, worker: str, path: str) -> InForce | None:
    take_turns(conn, f"configuration:{worker}:{path}")
    row = conn.execute(_select().where(C.worker == worker, C.path == path)).one_or_none()
    return rows.read(row, InForce) if row is not None else None
