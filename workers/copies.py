"""What a copy of a VM's restore points to another store will do, and why: pure. `copy --plan` and the run ask the same.

A restore point is the same point in every store that has it: same id, same number, same content. A chain only grows,
so a copy goes on top of what is there. It builds on the newest point that both stores have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from workers.errors import BadInput, NotFound, Refused
from workers.models import Model, PointDisk, RestorePoint
from workers.settings import Settings


class Decision(NamedTuple):
    mode: Literal["nothing", "full", "delta"]
    reason: str
    point: RestorePoint | None = None
    #: the same point as the source store has it, and as the target store has it
    base: tuple[RestorePoint, RestorePoint] | None = None


class DiskToCopy(Model):
    label: str
    mode: str
    #: that differ from what is there; less of it is sent: compressed, and without what is found by its digest
    bytes: int


class CopyPlan(Model):
    vm: str
    source: str
    to: str
    point: str | None
    base: str | None
    nothing_new: bool
    reason: str
    #: whose workers do it, and why theirs
    where: str
    disks: tuple[DiskToCopy, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(disk.bytes for disk in self.disks)


def decide(
    there: Sequence[RestorePoint],
    here: Sequence[RestorePoint],
    *,
    vm: str,
    names: tuple[str, str],
    ids: tuple[str, str],
    wanted: str | None = None,
) -> Decision:
    """How the point `wanted` (None = the newest) of `there` comes `here`. Both are ordered by number.

    `names` and `ids` are those of the two stores, the source first. Raises `NotFound`, and `Refused` where the point
    cannot go on top of what is there.
    """
    source, to = names
    point = _meant(there, wanted, vm, source)
    if point is None:
        return Decision("nothing", f"there is no restore point of {vm} in {source} yet; the first backup makes one")
    if any(point.id == held.id for held in here):
        return Decision("nothing", f"{to} has the restore point {point.id} of {vm} already", point)
    known = {held.id: held for held in here}
    common = next(((mine, known[mine.id]) for mine in reversed(there) if mine.id in known), None)
    if here and here[-1].seq >= point.seq:
        raise Refused(
            f"{to} has {here[-1].id} of {vm}, which is not older than {point.id}: a chain only grows, so nothing was "
            f"copied. Copy a newer point of {source}, or restore from {source} itself"
        )
    if here and common is None and not _one_line(there, here, ids):
        raise Refused(
            f"the restore points of {vm} in {to} (the newest is {here[-1].id}) have nothing to do with those in "
            f"{source}: one order for both would be wrong, so nothing was copied. Copy to another store"
        )
    if common is None:
        why = f"{source} and {to} have no restore point in common" if here else f"{to} has nothing of {vm} yet"
        return Decision("full", f"{why}: what is there already is found by its digests", point)
    if common[1].id != here[-1].id and here[-1].copied_from != ids[0]:
        raise Refused(
            f"{to} has {here[-1].id} of {vm}, which is not in {source}: the two have gone separate ways since "
            f"{common[1].id}, so nothing was copied. Copy from {to} to {source}, or to another store"
        )
    return Decision("delta", f"{to} has {common[1].id}", point, common)


def _meant(there: Sequence[RestorePoint], wanted: str | None, vm: str, source: str) -> RestorePoint | None:
    if wanted is None:
        return there[-1] if there else None
    found = next((point for point in there if point.id == wanted), None)
    if found is None:
        known = ", ".join(point.id for point in there[-4:]) or "none"
        raise NotFound(f"the restore point {wanted} of {vm} is not in {source} any more; it has {known}")
    return found


def _one_line(there: Sequence[RestorePoint], here: Sequence[RestorePoint], ids: tuple[str, str]) -> bool:
    """Whether points came from one store to the other before, in either direction; what was common is retired."""
    return here[-1].copied_from == ids[0] or any(point.copied_from == ids[1] for point in there)


def base_of(decision: Decision, disk: str) -> tuple[PointDisk, PointDisk] | None:
    """What of the common point a disk builds on, in both stores."""
    if decision.base is None:
        return None
    mine, theirs = ({part.disk.id: part for part in point.disks} for point in decision.base)
    return (mine[disk], theirs[disk]) if disk in mine and disk in theirs else None


def check_ends(settings: Settings, source: str, to: str) -> None:
    """Raises `BadInput` where both ends are one store, `ConfigError` where one is not configured."""
    here, there = settings.store(source), settings.store(to)
    if source == to or (here.path, here.s3) == (there.path, there.s3):
        raise BadInput(
            f"{source} and {to} are one store: a copy needs two. `understudy store list` has what is configured"
        )


def keeper(settings: Settings, store: str) -> str | None:
    """The site whose workers prune and check a store: that of a group that fills it, with backups or with copies."""
    for group in settings.groups.values():
        if group.store == store:
            return group.source
    for group in settings.groups.values():
        if group.copying is not None and group.copying.to == store:
            return where(settings, group.store, store)[0]
    return None


def where(settings: Settings, source: str, to: str) -> tuple[str, str]:
    """The site whose workers copy, which must have both stores mounted; and why that one, in words."""
    for store in (to, source):
        if (site := settings.store(store).site) and site in settings.sites:
            return site, f"by workers of {site}, where {store} stands"
    site = next(iter(settings.sites))
    return site, f"by workers of {site}: neither {source} nor {to} says where it stands"
