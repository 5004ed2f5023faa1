"""Memberships: who is in which group, and who left it when and why. Who that is decides workers/membership.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import sqlalchemy as sa

from workers.catalogue import rows, schema
from workers.catalogue.database import Database, now, take_turns, upsert
from workers.models import Model, VmIdentity

M = schema.memberships.c


class Membership(Model):
    """A VM that is in a group (`left` is None) or was in it."""

    group: str
    #: instance UUID
    vm: str
    site: str
    #: what the VM was called when it joined
    name: str
    #: since when it is, or was, in the group without a break
    since: datetime
    left: datetime | None = None
    #: why it left; of one that has not, why it would leave, were a person not asked first
    why: str | None = None


def memberships(db: Database, group: str | None = None, *, vm: str | None = None) -> list[Membership]:
    """By group and name, those who left among them: all, a group's, or a VM's (by instance UUID)."""
    query = sa.select(*rows.fields(schema.memberships, Membership)).order_by(M.group, M.name, M.vm)
    with db.read() as conn:
        query = query if group is None else query.where(M.group == group)
        found = conn.execute(query if vm is None else query.where(M.vm == vm))
        return [rows.read(row, Membership) for row in found]


def join_group(db: Database, group: str, vms: Iterable[VmIdentity]) -> None:
    """These are in the group from now on; who is in it already stays as it is."""
    with db.write() as conn:
        take_turns(conn, "members:" + group)
        moment = now(conn)
        known = {row.vm: row.left for row in conn.execute(sa.select(M.vm, M.left).where(M.group == group))}
        lines = [
            {"group": group, "vm": vm.instance_uuid, "site": vm.site, "name": vm.name, "since": moment}
            for vm in vms
            if vm.instance_uuid not in known or known[vm.instance_uuid] is not None
        ]
        fresh = [{**line, "left": None, "why": None} for line in lines]
        upsert(conn, schema.memberships, fresh, update=("site", "name", "since", "left", "why"))


def hold_in_group(db: Database, group: str, vms: Mapping[str, str]) -> None:
    """These (instance UUID -> why) would leave the group, and a person is asked; about nobody else in it."""
    with db.write() as conn:
        take_turns(conn, "members:" + group)
        inside = sa.update(schema.memberships).where(M.group == group, M.left.is_(None))
        conn.execute(inside.where(M.why.is_not(None), M.vm.not_in(list(vms))).values(why=None))
        for uuid, why in vms.items():
            conn.execute(inside.where(M.vm == uuid).values(why=why))


def leave_group(db: Database, group: str, vms: Mapping[str, str]) -> None:
    """These (instance UUID -> why) leave the group now; the grace of who had left before goes on."""
    with db.write() as conn:
        take_turns(conn, "members:" + group)
        moment = now(conn)
        for uuid, why in vms.items():
            inside = sa.update(schema.memberships).where(M.group == group, M.vm == uuid, M.left.is_(None))
            conn.execute(inside.values(left=moment, why=why))


def drop_memberships(db: Database, vm: str) -> None:
    """Forget that the VM ever was in a group. Who is in one now is kept."""
    with db.write() as conn:
        conn.execute(sa.delete(schema.memberships).where(M.vm == vm, M.left.is_not(None)))
