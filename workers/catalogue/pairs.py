"""Pairs: which VM is replicated to where, and whether that is paused."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa

from workers.catalogue import fences, holds, rows, schema, scrubs
from workers.catalogue.database import Database, now, take_turns
from workers.errors import NotFound, Refused
from workers.models import Pair

P = schema.pairs.c
H = schema.holds.c


def ensure_pair(
    db: Database,
    *,
    source_site: str,
    source: str,
    vm: str,
    store: str,
    recovery_target: str,
    site: str,
    replica_name: str,
) -> Pair:
    """The pair of this source VM and recovery target, made if it is new.

    A known pair follows what is given (the VM may have been renamed, the store exchanged), but a replica that was
    built stays where it is and keeps its name. Raises `Refused` when the recovery target now means another site.
    """
    given = {"source_site": source_site, "vm": vm, "store": store}
    place = {"site": site, "replica_name": replica_name}
    key = {"source": source, "recovery_target": recovery_target}
    with db.write() as conn:
        take_turns(conn, "pair:" + source)  # on PostgreSQL a new pair has no row yet to wait for
        row = conn.execute(select().where(P.source == source, P.recovery_target == recovery_target)).one_or_none()
        if row is None:
            pair = Pair.model_validate({"id": secrets.token_hex(6), **key, **given, **place, "created": now(conn)})
            conn.execute(sa.insert(schema.pairs).values(**pair.model_dump(exclude={"paused"})))
            return pair
        pair = rows.read(row, Pair)
        if pair.replica is not None:
            if pair.site != site:
                raise Refused(
                    f"the recovery target {recovery_target} now means the site {site}, but the replica of {vm} "
                    f"was built at {pair.site}; name the new place as a recovery target of its own"
                )
            place = {}
        return _change(conn, pair, {**given, **place})


def pair(db: Database, pair_id: str) -> Pair:
    with db.read() as conn:
        return _get(conn, pair_id)


def pairs(db: Database, vm: str | None = None) -> list[Pair]:
    """By VM and recovery target; of one VM when its name or instance UUID is given."""
    query = select().order_by(P.vm, P.recovery_target, P.id)
    if vm is not None:
        query = query.where((P.vm == vm) | (P.source == vm))
    with db.read() as conn:
        return [rows.read(row, Pair) for row in conn.execute(query)]


def replicas_being_built(db: Database) -> set[str]:
    """Instance UUIDs that runs chose for replicas which their pairs do not know yet: such a VM may be there already."""
    R = schema.runs.c
    chosen = R.memory["replica"].as_string()
    of_pair = (R.target == "pair:" + P.id) & P.replica.is_(None)
    with db.read() as conn:
        return set(conn.scalars(sa.select(chosen).distinct().where(of_pair & chosen.is_not(None))))


def set_replica(db: Database, pair_id: str, instance_uuid: str | None, name: str | None = None) -> Pair:
    """The replica was built, and is called `name` (or is gone). Raises `Refused` when the pair has another one."""
    with db.write() as conn:
        known = _get(conn, pair_id, lock=True)
        if None not in (known.replica, instance_uuid) and known.replica != instance_uuid:
            raise Refused(
                f"the pair {known.vm} -> {known.recovery_target} has the replica {known.replica} already; "
                f"{instance_uuid} cannot become its replica before that one is given up"
            )
        named = {"replica_name": name} if name is not None else {}
        return _change(conn, known, {"replica": instance_uuid, **named})


def pause(db: Database, pair_id: str, reason: str | None, *, who: str = "understudy") -> Pair:
    """Its schedules are skipped until it is resumed, which is to pause it for no reason (None)."""
    target = target_of(pair_id)
    with db.write() as conn:
        fences.lock(conn, target)
        known = _get(conn, pair_id, lock=True)
        if reason is None:
            conn.execute(sa.delete(schema.holds).where(H.target == target, H.kind == holds.HoldKind.PAUSED))
        else:
            said = holds.Hold(target=target, kind=holds.HoldKind.PAUSED, since=now(conn), who=who, reason=reason)
            holds.put(conn, said)
        return known.model_copy(update={"paused": reason})


def disown(db: Database, pair_id: str) -> None:
    """What was on record as held by the pair's replica counts no more."""
    with db.write() as conn:
        fences.lock(conn, target_of(pair_id))
        conn.execute(sa.delete(schema.sync_points).where(schema.sync_points.c.pair == pair_id))
        scrubs.forget(conn, target_of(pair_id))
        conn.execute(sa.delete(schema.half_applied).where(schema.half_applied.c.pair == pair_id))


def forget_pair(db: Database, pair_id: str, *, who: str, reason: str) -> Pair:
    """There is no replica any more, nor anything that it holds; nothing starts until the pair is enabled again.

    The runs of the pair stay on record.
    """
    target = target_of(pair_id)
    with db.write() as conn:
        fences.lock(conn, target)
        known = _get(conn, pair_id, lock=True)
        conn.execute(sa.delete(schema.sync_points).where(schema.sync_points.c.pair == pair_id))
        scrubs.forget(conn, target_of(pair_id))
        conn.execute(sa.delete(schema.half_applied).where(schema.half_applied.c.pair == pair_id))
        conn.execute(sa.delete(schema.holds).where(H.target == target))
        said = holds.Hold(target=target, kind=holds.HoldKind.FORGOTTEN, since=now(conn), who=who, reason=reason)
        holds.put(conn, said)
        return _change(conn, known.model_copy(update={"paused": None}), {"replica": None})


def target_of(pair_id: str) -> str:
    """What the runs of a pair fence."""
    return f"pair:{pair_id}"


def set_failover(db: Database, pair_id: str, failover: str) -> Pair:
    with db.write() as conn:
        return _change(conn, _get(conn, pair_id, lock=True), {"failover": failover})


def bump_generation(db: Database, pair_id: str, *, at_least: int = 0) -> Pair:
    """The generation becomes 1 + max(catalogue, at_least)."""
    with db.write() as conn:
        known = _get(conn, pair_id, lock=True)
        return _change(conn, known, {"generation": 1 + max(known.generation, at_least)})


def select() -> sa.Select[Any]:
    paused = sa.select(H.reason).where(H.target == sa.literal("pair:") + P.id, H.kind == holds.HoldKind.PAUSED)
    columns = [P[name] for name in Pair.model_fields if name != "paused"]
    return sa.select(*columns, paused.scalar_subquery().label("paused"))


def _get(conn: sa.Connection, pair_id: str, *, lock: bool = False) -> Pair:
    query = select().where(P.id == pair_id)
    row = conn.execute(query.with_for_update(of=schema.pairs) if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"the catalogue has no pair {pair_id}; `understudy status` shows those it has")
    return rows.read(row, Pair)


def _change(conn: sa.Connection, known: Pair, values: dict[str, Any]) -> Pair:
    changed = known.model_copy(update=values)
    if changed != known:
        conn.execute(sa.update(schema.pairs).where(P.id == known.id).values(**values))
    return changed
