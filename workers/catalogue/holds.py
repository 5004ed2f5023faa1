"""Holds: what people said about a target, until they take it back. One in force excludes runs."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from workers.catalogue import fences, rows, schema
from workers.catalogue.database import Database, now, upsert
from workers.errors import Refused
from workers.models import Model, RunKind, Trigger

H = schema.holds.c
T = schema.targets.c


class HoldKind(StrEnum):
    #: its schedules are skipped
    PAUSED = "paused"
    #: off, also for people who ask
    DISABLED = "disabled"
    #: the pair was ended; as disabled, and nothing is left of the replica here
    FORGOTTEN = "forgotten"
    #: the next run may read or compare everything
    APPROVED = "approved"


#: kind -> the verb that ends it
ENDS = {HoldKind.PAUSED: "resume", HoldKind.DISABLED: "enable", HoldKind.FORGOTTEN: "enable"}


class Hold(Model):
    target: str
    kind: HoldKind
    since: datetime
    who: str
    reason: str


def hold(db: Database, target: str, kind: HoldKind, *, who: str, reason: str) -> Hold:
    """Say so. Said again, the newer reason stands, and the time at which it began stays."""
    with db.write() as conn:
        fences.lock(conn, target)
        return put(conn, Hold(target=target, kind=kind, since=now(conn), who=who, reason=reason))


def release(db: Database, target: str, kinds: Collection[HoldKind]) -> list[Hold]:
    """Take back; what was in force."""
    with db.write() as conn:
        fences.lock(conn, target)
        mine = (H.target == target) & H.kind.in_(sorted(kinds))
        held = [rows.read(row, Hold) for row in conn.execute(_select().where(mine).order_by(H.kind))]
        conn.execute(sa.delete(schema.holds).where(mine))
        return held


def holds(db: Database, target: str | None = None) -> dict[str, dict[HoldKind, Hold]]:
    """Target -> kind -> hold; of all targets, in one query, or of one."""
    query = _select() if target is None else _select().where(H.target == target)
    found: dict[str, dict[HoldKind, Hold]] = {}
    with db.read() as conn:
        for row in conn.execute(query):
            held = rows.read(row, Hold)
            found.setdefault(held.target, {})[held.kind] = held
    return found


def forgive(db: Database, target: str) -> None:
    """The failures until now count no more: the next ones are the first."""
    with db.write() as conn:
        conn.execute(sa.update(schema.targets).where(T.target == target).values(forgiven=fences.lock(conn, target)))


def put(conn: sa.Connection, held: Hold) -> Hold:
    upsert(conn, schema.holds, [held.model_dump()], update=("who", "reason"))
    return held


def refuse(conn: sa.Connection, target: str, vm: str, kind: RunKind, trigger: Trigger) -> None:
    """Raise `Refused` when no run of this kind may start. The caller holds the target."""
    if kind in (RunKind.ADOPT, RunKind.FORGET):
        return
    stopping = [HoldKind.DISABLED, HoldKind.FORGOTTEN]
    if trigger is not Trigger.AD_HOC:
        stopping.append(HoldKind.PAUSED)
    row = conn.execute(_select().where(H.target == target, H.kind.in_(stopping)).order_by(H.kind)).first()
    if row is not None:
        held = rows.read(row, Hold)
        raise Refused(
            f"the {kind} of {vm} is {held.kind} since {held.since:%Y-%m-%d %H:%M} UTC by {held.who} ({held.reason}); "
            f"`understudy {ENDS[held.kind]} {vm}` ends that"
        )


def used_up(conn: sa.Connection, target: str) -> None:
    """A run has ended well: an approval was for one."""
    conn.execute(sa.delete(schema.holds).where(H.target == target, H.kind == HoldKind.APPROVED))


def _select() -> sa.Select[tuple[str, str, datetime, str, str]]:
    return sa.select(*rows.fields(schema.holds, Hold))
