"""The inventory: what each vCenter's last complete answer named. VMs are marked as gone, never removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from workers.catalogue import schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.errors import BadInput
from workers.models import VmIdentity, VmSummary

V = schema.vms.c

_IDENTITY = tuple(VmIdentity.model_fields)
_REST = ("power", "template", "folder", "last_seen", "gone_since")


class KnownVm(VmSummary):
    """A VM as it was last seen; `gone_since` is when a complete answer first lacked it."""

    last_seen: datetime
    gone_since: datetime | None


def record_inventory(db: Database, site: str, vms: Sequence[VmSummary]) -> None:
    """Record a *complete* answer: what it lacks is marked as gone. Never call it with what a failed query returned."""
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
        lines = [_line(vm) | {"last_seen": moment, "gone_since": None} for vm in vms]
        upsert(conn, schema.vms, lines, update=tuple(sorted({*_IDENTITY, *_REST} - {"site", "instance_uuid"})))
        there = sa.select(V.instance_uuid).where(V.site == site, V.gone_since.is_(None))
        for uuid in sorted(set(conn.execute(there).scalars()) - seen.keys()):
            conn.execute(sa.update(schema.vms).where(V.site == site, V.instance_uuid == uuid).values(gone_since=moment))


def inventory(db: Database, site: str | None = None) -> list[KnownVm]:
    """Everything ever seen, by site and name."""
    query = sa.select(*(V[name] for name in _IDENTITY + _REST)).order_by(V.site, V.name, V.instance_uuid)
    with db.read() as conn:
        return [_vm(row) for row in conn.execute(query if site is None else query.where(V.site == site))]


def _vm(row: sa.Row[Any]) -> KnownVm:
    line = dict(row._mapping)
    return KnownVm(identity=VmIdentity(**{name: line[name] for name in _IDENTITY}), **{n: line[n] for n in _REST})


def _line(vm: VmSummary) -> dict[str, Any]:
    return vm.identity.model_dump() | {"power": vm.power, "template": vm.template, "folder": vm.folder}
