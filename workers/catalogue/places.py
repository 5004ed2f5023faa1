"""Places that are few: who has one of a link, a host, a datastore, a vCenter just now. A lease each, by the
database's clock, so that they die with their holder."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from workers.catalogue import schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.catalogue.runs import free_at

P = schema.places.c


def take_places(db: Database, holder: str, wanted: Mapping[str, int], lease_s: float) -> str | None:
    """A place of each of these for so long, or none of them: then which of them has no place free. Taking what the
    holder has already changes only the lease. `wanted`: how many places there are of each."""
    with db.write() as conn:
        moment = _begin(conn)
        for resource, most in wanted.items():
            if _others(conn, resource, holder) >= most:
                return resource
        _put(conn, list(wanted), holder, moment + timedelta(seconds=lease_s))
        return None


def share(db: Database, resource: str, holder: str, lease_s: float) -> int:
    """Be one of those who share it, for so long: how many they are, the holder among them."""
    with db.write() as conn:
        moment = _begin(conn)
        _put(conn, [resource], holder, moment + timedelta(seconds=lease_s))
        return _others(conn, resource, holder) + 1


def keep_places(db: Database, holder: str, lease_s: float) -> None:
    """All that the holder has, for another while."""
    with db.write() as conn:
        until = now(conn) + timedelta(seconds=lease_s)
        conn.execute(sa.update(schema.places).where(P.holder == holder).values(lease_until=until))


def leave_places(db: Database, holder: str) -> None:
    """All that the holder has."""
    with db.write() as conn:
        conn.execute(sa.delete(schema.places).where(P.holder == holder))


def places(db: Database) -> dict[str, list[str]]:
    """Who has a place, by resource."""
    found: dict[str, list[str]] = {}
    with db.read() as conn:
        taken = ~free_at(P.lease_until, now(conn))
        for row in conn.execute(sa.select(P.resource, P.holder).where(taken).order_by(P.resource, P.holder)):
            found.setdefault(row.resource, []).append(row.holder)
    return found


def _begin(conn: sa.Connection) -> datetime:
    """One after the other, and without those whose time is over."""
    take_turns(conn, "places")
    moment = now(conn)
    conn.execute(sa.delete(schema.places).where(free_at(P.lease_until, moment)))
    return moment


def _others(conn: sa.Connection, resource: str, holder: str) -> int:
    count = sa.select(sa.func.count()).where(P.resource == resource, P.holder != holder)
    return int(conn.execute(count.select_from(schema.places)).scalar_one())


def _put(conn: sa.Connection, resources: list[str], holder: str, until: datetime) -> None:
    lines = [{"resource": each, "holder": holder, "lease_until": until} for each in sorted(resources)]
    upsert(conn, schema.places, lines, update=("lease_until",))
