"""Places that are few: who has one of a link, a host, a datastore, a vCenter just now, and who waits for one. A lease
each, by the database's clock, so that they die with their holder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa

from workers.catalogue import schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.catalogue.runs import free_at

P = schema.places.c
HELD, WAITS = P.waits_since.is_(None), P.waits_since.is_not(None)


class Full(NamedTuple):
    """What has no place for the holder, and how many stand before it in the line there; None = it is in no line."""

    resource: str
    ahead: int | None


def take_places(
    db: Database,
    holder: str,
    wanted: Mapping[str, int],
    lease_s: float,
    *,
    since: datetime | None = None,
    patience_s: float = 0,
) -> Full | None:
    """A place of each of these for so long, or none of them: then which of them has no place free. Taking what the
    holder has already changes only the lease. `wanted`: how many places there are of each.

    Who is refused, and has waited for longer than `patience_s` since then, stands in the line of each for so long, too:
    the last place of each is kept for who is first there. So nobody waits for ever who needs several at once; whoever
    is oldest of all is kept waiting by nobody's coming, and one place of each is all that lies idle for it.
    """
    with db.write() as conn:
        moment = _begin(conn, holder)
        until = moment + timedelta(seconds=lease_s)
        known = _others(conn, wanted, holder, since)
        for resource, most in wanted.items():
            taken, older, mine = known.get(resource, (0, 0, 0))
            if taken >= most or (older and not mine and taken + 1 >= most):
                if since is None or since > moment - timedelta(seconds=patience_s):
                    return Full(resource, None)
                _put(conn, wanted, holder, until, waits_since=since)
                return Full(resource, older)
        _put(conn, wanted, holder, until)
        return None


def share(db: Database, resource: str, holder: str, lease_s: float) -> int:
    """Be one of those who share it, for so long: how many they are, the holder among them."""
    with db.write() as conn:
        moment = _begin(conn, holder)
        _put(conn, [resource], holder, moment + timedelta(seconds=lease_s))
        return _others(conn, [resource], holder, None)[resource][0] + 1


def keep_places(db: Database, holder: str, lease_s: float) -> None:
    """All that the holder has, for another while."""
    with db.write() as conn:
        until = now(conn) + timedelta(seconds=lease_s)
        conn.execute(sa.update(schema.places).where(P.holder == holder).values(lease_until=until))


def leave_places(db: Database, holder: str) -> None:
    """All that the holder has or waits for."""
    with db.write() as conn:
        conn.execute(sa.delete(schema.places).where(P.holder == holder))


def places(db: Database) -> dict[str, list[str]]:
    """Who has a place, by resource."""
    found: dict[str, list[str]] = {}
    with db.read() as conn:
        taken = ~free_at(P.lease_until, now(conn))
        for row in conn.execute(sa.select(P.resource, P.holder).where(taken, HELD).order_by(P.resource, P.holder)):
            found.setdefault(row.resource, []).append(row.holder)
    return found


def _begin(conn: sa.Connection, holder: str) -> datetime:
    """One after the other, and without those whose time is over, and what the holder waited for until now."""
    take_turns(conn, "places")
    moment = now(conn)
    conn.execute(sa.delete(schema.places).where(free_at(P.lease_until, moment) | ((P.holder == holder) & WAITS)))
    return moment


def _others(
    conn: sa.Connection, resources: Iterable[str], holder: str, since: datetime | None
) -> dict[str, tuple[int, int, int]]:
    """Of each: places that others have, who has waited for longer, whether the holder has one. One query for all."""
    count, first = sa.func.count(), WAITS if since is None else P.waits_since < since
    taken, mine = count.filter(HELD, P.holder != holder), count.filter(P.holder == holder)
    query = sa.select(P.resource, taken, count.filter(first), mine).where(P.resource.in_(list(resources)))
    return {row[0]: (row[1], row[2], row[3]) for row in conn.execute(query.group_by(P.resource))}


def _put(
    conn: sa.Connection,
    resources: Iterable[str],
    holder: str,
    until: datetime,
    *,
    waits_since: datetime | None = None,
) -> None:
    """To wait changes nothing of what the holder has."""
    lines = [
        {"resource": each, "holder": holder, "lease_until": until, "waits_since": waits_since}
        for each in sorted(resources)
    ]
    upsert(conn, schema.places, lines, update=("lease_until",) if waits_since is None else ())
