"""The restore points of a VM as its stores have them, and what keeps each of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from workers import prune, retention
from workers.catalogue import PointSummary
from workers.errors import BadInput, NotFound, UnderstudyError
from workers.models import Model, PointDisk, RestorePoint
from workers.point import Dated
from workers.run import Here
from workers.store import Store


class KeptDisk(Model):
    label: str
    mode: str
    reason: str
    capacity: int
    read: int
    changed: int
    stored: int


class Kept(Model):
    """A restore point. What only its store knows is empty when that can not be read from here; `remark` says so."""

    store: str
    #: the VM's instance UUID: several may have had the name that was asked for
    source: str
    id: str
    seq: int
    parent: str | None
    data_time: datetime
    consistency: str
    capacity: int
    read: int
    changed: int
    stored: int
    disks: tuple[KeptDisk, ...] = ()
    #: why it is kept: the rules that keep it, and who holds it; empty = it goes at the next prune, or, with a remark,
    #: nobody here knows
    kept_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remark: str = ""


def kept(here: Here, name: str) -> list[Kept]:
    """By store and number. Raises `NotFound` when no VM of that name or instance UUID was ever seen."""
    uuids = uuids_of(here, name)
    found = []
    for store, configured in here.settings.stores.items():
        for uuid in uuids:
            try:
                found += _of_store(here, store, Store.at(configured), uuid)
            except UnderstudyError as err:
                remark = f"the store {store} can not be read from here ({err}); this is what the catalogue knows of it"
                found += [_of_catalogue(point, remark) for point in here.catalogue.points(uuid, store)]
    for point in (point for uuid in uuids for point in here.catalogue.points(uuid)):
        if point.store not in here.settings.stores:
            remark = f"the store {point.store} is not in the configuration any more; this is what the catalogue knows"
            found.append(_of_catalogue(point, remark))
    return found


#: how a time may be written where a restore point is asked for; UTC where no offset is given
_TIMES = "2026-11-20, '2026-11-20 08:00' or 2026-11-20T08:00:00+01:00"

P = TypeVar("P", bound=Dated)


def choose(points: Sequence[P], wanted: str, *, whose: str) -> P:
    """The point that is meant: "newest", an id or its start, or a time: then the newest of that time or before.

    A time chooses among points by when their data is of; of two of the same time the later number counts.
    """
    if not points:
        raise NotFound(f"there is no restore point of {whose} yet; `understudy backup {whose}` makes one")
    ordered = sorted(points, key=lambda point: point.seq)
    if wanted == "newest":
        return ordered[-1]
    starting = [point for point in ordered if point.id.startswith(wanted)]
    if len(starting) == 1:
        return starting[0]
    if len(starting) > 1:
        names = ", ".join(point.id for point in starting[:4])
        raise BadInput(f"{wanted!r} starts {len(starting)} restore points of {whose}, e.g. {names}; give more of it")
    try:
        moment = datetime.fromisoformat(wanted)
    except ValueError as err:
        raise NotFound(
            f"{wanted!r} is no restore point of {whose}: give 'newest', an id or its start, or a time, e.g. {_TIMES} "
            f"(`understudy points {whose}` lists them)"
        ) from err
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    before = [point for point in ordered if point.data_time <= moment]
    if not before:
        first = min(ordered, key=lambda point: point.data_time)
        raise NotFound(
            f"there is no restore point of {whose} as old as {wanted}; the oldest is of "
            f"{first.data_time:%Y-%m-%d %H:%M:%S} UTC"
        )
    return max(before, key=lambda point: (point.data_time, point.seq))


def uuids_of(here: Here, name: str) -> list[str]:
    known = [vm.identity for vm in here.catalogue.inventory()]
    found = [vm.instance_uuid for vm in known if name in (vm.name, vm.instance_uuid)]
    # A VM that was renamed is still found by the name that its points have.
    found += [point.vm for point in here.catalogue.newest_points() if name in (point.name, point.vm)]
    if not found:
        near = difflib.get_close_matches(name, [vm.name for vm in known], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise NotFound(f"no VM {name!r} is known ({len(known)} VMs are){hint}")
    return list(dict.fromkeys(found))


def _of_store(here: Here, store: str, opened: Store, uuid: str) -> list[Kept]:
    points = opened.points(uuid)
    rules = prune.rules_of(here, store, uuid)
    why = retention.reasons(points, rules, prune.needed(here, store, opened, uuid))
    unruled = () if rules else ("no rule of a group is about it now: everything is kept",)
    return [_line(store, point, (*why[point.id], *unruled)) for point in points]


def _line(store: str, point: RestorePoint, kept_as: Sequence[str]) -> Kept:
    return Kept(
        store=store,
        source=point.vm.instance_uuid,
        id=point.id,
        seq=point.seq,
        parent=point.parent,
        data_time=point.data_time,
        consistency=point.consistency,
        capacity=sum(part.disk.capacity for part in point.disks),
        read=sum(part.read for part in point.disks),
        changed=sum(part.changed for part in point.disks),
        stored=sum(part.stored for part in point.disks),
        disks=tuple(_disk(part) for part in point.disks),
        kept_as=tuple(kept_as),
        notes=point.notes,
    )


def _disk(part: PointDisk) -> KeptDisk:
    return KeptDisk(
        label=part.disk.label,
        mode=part.mode,
        reason=part.reason,
        capacity=part.disk.capacity,
        read=part.read,
        changed=part.changed,
        stored=part.stored,
    )


def _of_catalogue(point: PointSummary, remark: str) -> Kept:
    return Kept(
        store=point.store,
        source=point.vm,
        id=point.id,
        seq=point.seq,
        parent=point.parent,
        data_time=point.data_time,
        consistency=point.consistency,
        capacity=point.capacity,
        read=point.read,
        changed=point.changed,
        stored=point.stored,
        remark=remark,
    )
