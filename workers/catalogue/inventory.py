"""The inventory: what each vCenter's last complete answer named. VMs are marked as gone, never removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.errors import BadInput
from workers.models import Model, VmIdentity, VmSummary

V = schema.vms.c
I = schema.inventories.c  # noqa: E741

_IDENTITY = tuple(VmIdentity.model_fields)
_FACTS = tuple(name for name in VmSummary.model_fields if name != "identity")
_REST = (*_FACTS, "last_seen", "gone_since")


class KnownVm(VmSummary):
    """A VM as it was last seen; `gone_since` is when a complete answer first lacked it."""

    last_seen: datetime
    gone_since: datetime | None


class Inventory(Model):
    """How the reading of a site's inventory goes: when it last was complete, and what came in between since."""

    site: str
    #: when the answer that counts was asked for, and when it was recorded; None = there never was one
    asked: datetime | None
    complete: datetime | None
    #: since when it fails, and why; None = the last attempt was a success
    failed: datetime | None
    why: str | None


def record_inventory(db: Database, site: str, vms: Sequence[VmSummary], asked: datetime | None = None) -> None:
    """Record a *complete* answer: what it lacks is marked as gone. Never call it with what a failed query returned.

    `asked`: when it was asked for, by the database's clock. An answer that was overtaken by a younger one counts
    nothing: it would take as gone what has come since.
    """
    seen = {vm.identity.instance_uuid: vm for vm in vms}
    if len(seen) != len(vms):
        twice = next(vm for vm in vms if seen[vm.identity.instance_uuid] is not vm).identity
        raise BadInput(
            f"the site {site} has two VMs with the instance UUID {twice.instance_uuid} "
            f"({twice.name} and {seen[twice.instance_uuid].identity.name}); give one of them a new one in vCenter"
        )
    if any(vm.identity.site != site for vm in vms):
        raise ValueError(f"a VM of another site was given for {site}")
    with db.write() as conn:
        take_turns(conn, "inventory:" + site)
        moment = now(conn)
        known = conn.execute(sa.select(I.asked).where(I.site == site)).scalar()
        if known is not None and asked is not None and asked < known <= moment:
            return
        answer = {"site": site, "asked": asked or moment, "complete": moment, "failed": None, "why": None}
        upsert(conn, schema.inventories, [answer], update=("asked", "complete", "failed", "why"))
        lines = [_line(vm) | {"last_seen": moment, "gone_since": None} for vm in vms]
        upsert(conn, schema.vms, lines, update=tuple(sorted({*_IDENTITY, *_REST} - {"site", "instance_uuid"})))
        there = sa.select(V.instance_uuid).where(V.site == site, V.gone_since.is_(None))
        for uuid in sorted(set(conn.execute(there).scalars()) - seen.keys()):
            conn.execute(sa.update(schema.vms).where(V.site == site, V.instance_uuid == uuid).values(gone_since=moment))


def inventory_failed(db: Database, site: str, why: str) -> bool:
    """Note that a site's inventory could not be read, or not completely. Whether that is news: the first time, or
    another reason."""
    with db.write() as conn:
        take_turns(conn, "inventory:" + site)
        known = conn.execute(sa.select(I.failed, I.why).where(I.site == site)).one_or_none()
        since = known.failed if known is not None and known.failed is not None else now(conn)
        upsert(conn, schema.inventories, [{"site": site, "failed": since, "why": why}], update=("failed", "why"))
        return known is None or known.failed is None or known.why != why


def inventories(db: Database) -> list[Inventory]:
    """Of each site that was ever asked."""
    with db.read() as conn:
        query = sa.select(*rows.fields(schema.inventories, Inventory)).order_by(I.site)
        return [rows.read(row, Inventory) for row in conn.execute(query)]


def inventory(db: Database, site: str | None = None) -> list[KnownVm]:
    """Everything ever seen, by site and name."""
    query = sa.select(*(V[name] for name in _IDENTITY + _REST)).order_by(V.site, V.name, V.instance_uuid)
    with db.read() as conn:
        return [_vm(row) for row in conn.execute(query if site is None else query.where(V.site == site))]


def sightings(db: Database, uuid: str) -> list[KnownVm]:
    """What is known of one VM, at each site that ever had it."""
    query = sa.select(*(V[name] for name in _IDENTITY + _REST)).where(V.instance_uuid == uuid).order_by(V.site)
    with db.read() as conn:
        return [_vm(row) for row in conn.execute(query)]


def _vm(row: sa.Row[Any]) -> KnownVm:
    line = dict(row._mapping)
    return KnownVm(identity=VmIdentity(**{name: line[name] for name in _IDENTITY}), **{n: line[n] for n in _REST})


def _line(vm: VmSummary) -> dict[str, Any]:
    return vm.identity.model_dump() | {name: getattr(vm, name) for name in _FACTS}
