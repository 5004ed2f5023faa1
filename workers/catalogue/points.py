"""A mirror of the stores' restore points, for status and dispatch. The stores are the truth."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database, upsert
from workers.models import Model, RestorePoint

P = schema.points.c


class PointSummary(Model):
    """A restore point in a line. `vm` is the instance UUID, `name` what the VM was called then."""

    store: str
    vm: str
    id: str
    seq: int
    parent: str | None
    run: str
    name: str
    consistency: str
    created: datetime
    data_time: datetime
    #: bytes: of all disks, read from the source, that differ from the parent, added to the store
    capacity: int
    read: int
    changed: int
    stored: int


def summary(store: str, point: RestorePoint) -> PointSummary:
    return PointSummary(
        store=store,
        vm=point.vm.instance_uuid,
        id=point.id,
        seq=point.seq,
        parent=point.parent,
        run=point.run,
        name=point.vm.name,
        consistency=point.consistency,
        created=point.created,
        data_time=point.data_time,
        capacity=sum(disk.disk.capacity for disk in point.disks),
        read=sum(disk.read for disk in point.disks),
        changed=sum(disk.changed for disk in point.disks),
        stored=sum(disk.stored for disk in point.disks),
    )


def record_point(db: Database, store: str, point: RestorePoint) -> PointSummary:
    """May be told again: a point never changes."""
    line = summary(store, point)
    with db.write() as conn:
        upsert(conn, schema.points, [line.model_dump()])
    return line


def points(db: Database, vm: str, store: str | None = None) -> list[PointSummary]:
    """Of one VM (its instance UUID), by store and number."""
    query = _select().where(P.vm == vm).order_by(P.store, P.seq)
    return _list(db, query if store is None else query.where(P.store == store))


def newest_points(db: Database, store: str | None = None) -> list[PointSummary]:
    """The newest of each VM in each store: that of the highest number."""
    top = sa.select(P.store, P.vm, sa.func.max(P.seq).label("seq")).group_by(P.store, P.vm)
    if store is not None:
        top = top.where(P.store == store)
    newest = top.subquery().c
    query = _select().join(newest.store.table, (P.store == newest.store) & (P.vm == newest.vm) & (P.seq == newest.seq))
    return _list(db, query.order_by(P.store, P.vm))


def drop_point(db: Database, store: str, vm: str, point_id: str) -> None:
    """The store no longer has it. One that is not there is fine."""
    with db.write() as conn:
        conn.execute(sa.delete(schema.points).where(P.store == store, P.vm == vm, P.id == point_id))


def _select() -> sa.Select[Any]:
    return sa.select(*rows.fields(schema.points, PointSummary))


def _list(db: Database, query: sa.Select[Any]) -> list[PointSummary]:
    with db.read() as conn:
        return [rows.read(row, PointSummary) for row in conn.execute(query)]
