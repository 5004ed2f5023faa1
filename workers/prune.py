"""Prune: retire the restore points that no rule, replica or pin keeps, then free what only they needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from workers import grace, retention
from workers.catalogue import Membership
from workers.errors import NotFound, Refused, UnderstudyError
from workers.members import Roll, groups_of, kept_until
from workers.models import Model, Pair, RestorePoint
from workers.run import Here, storage_in_words
from workers.settings import Group, Keep, Settings, size
from workers.store import CompactReport, PruneReport, Store

#: bytes that a compaction must free to be begun unasked: it exchanges manifests of every VM that it touches
WORTH = 64 << 20


class Retired(Model):
    """What retention did, or would do, with the restore points of one VM in one store."""

    store: str
    vm: str
    name: str
    kept: int
    points: tuple[str, ...] = ()
    #: what could not be done, in sentences; those points are kept
    troubles: tuple[str, ...] = ()


class Freed(Model):
    """What was deleted in a store, and how far a compaction of it has come."""

    store: str
    pruned: PruneReport
    compacted: CompactReport | None = None


def store(here: Here, name: str, *, dry_run: bool = False, now: datetime | None = None) -> list[Retired]:
    """Retention for every VM of a store, also for those whose backups stand still. Repeatable at any time.

    One VM's trouble does not keep the others waiting. A VM that no group names any more keeps all its points.
    """
    opened = Store.at(here.settings.store(name))
    rules = Rules(here, now)
    return [_of_vm(here, name, opened, uuid, rules, dry_run) for uuid in opened.vms()]


def free(here: Here, name: str, *, compact: bool = True, seconds: float | None = None, worth: int = WORTH) -> Freed:
    """Delete what nothing needs, and compact what is mostly dead, for so long at most. Safe beside everything."""
    configured = here.settings.store(name)
    opened = Store.at(configured)
    with storage_in_words():
        _end_writers(here, opened)
        pruned = opened.prune()
        if not compact or not configured.compact_below:
            return Freed(store=name, pruned=pruned)
        compacted = opened.compact(
            below=configured.compact_below,
            rate=size(configured.compact_rate) if configured.compact_rate else 0,
            worth=worth,
            seconds=seconds,
        )
        if compacted.state == "done":
            again = opened.prune()
            pruned = again.model_copy(
                update={
                    "packs": pruned.packs + again.packs,
                    "maps": pruned.maps + again.maps,
                    "freed": pruned.freed + again.freed,
                }
            )
    return Freed(store=name, pruned=pruned, compacted=compacted)


def _end_writers(here: Here, opened: Store) -> None:
    """Of runs that have ended: a helper may have registered after that, and died before it could say goodbye."""
    for run in opened.runs():
        with suppress(NotFound):  # another catalogue's
            if not here.catalogue.run(run).live:
                opened.abandon(run)


def _of_vm(here: Here, name: str, opened: Store, uuid: str, rules: Rules, dry_run: bool) -> Retired:
    try:
        with storage_in_words():
            return retire(here, name, opened, uuid, rules.of(name, uuid), dry_run=dry_run)
    except UnderstudyError as err:
        return Retired(store=name, vm=uuid, name=uuid, kept=0, troubles=(str(err),))


def retire(here: Here, name: str, opened: Store, uuid: str, rules: Sequence[Keep], *, dry_run: bool = False) -> Retired:
    """Retire what of one VM none of `rules` keeps and nobody holds; without rules nothing. The catalogue follows."""
    points = opened.points(uuid)
    gone, troubles = [], []
    for point in retention.expired(points, rules, needed(here, name, opened, uuid)):
        try:
            if not dry_run:
                opened.retire(uuid, point.id)
        except NotFound:
            pass  # another one retired it just now
        except Refused as err:  # somebody pinned it just now
            troubles.append(str(err))
            continue
        gone.append(point.id)
    if not dry_run:
        _tell_catalogue(here, name, uuid, [point for point in points if point.id not in gone])
    return Retired(
        store=name,
        vm=uuid,
        name=points[-1].vm.name if points else uuid,
        kept=len(points) - len(gone),
        points=tuple(gone),
        troubles=tuple(troubles),
    )


def needed(here: Here, name: str, opened: Store, uuid: str) -> dict[str, list[str]]:
    """Point -> who holds it, in words: the pins in the store, which are what counts; and what the next copy builds on,
    or it would have to look at all of the disks."""
    pairs = here.catalogue.pairs(uuid)
    replicas = {f"{here.catalogue.realm}:{pair.id}": f"replica {_replica(pair)}" for pair in pairs}
    found = {
        point: sorted(f"pinned by {replicas.get(holder, holder)}" for holder in holders)
        for point, holders in opened.pins(uuid).items()
    }
    for to in sorted(_copied_to(here, name, uuid)):
        for point in here.catalogue.points(uuid, to)[-1:]:
            found.setdefault(point.id, []).append(f"the next copy to {to} builds on it")
    return found


def _copied_to(here: Here, name: str, uuid: str) -> set[str]:
    if not any(group.copying is not None and group.store == name for group in here.settings.groups.values()):
        return set()
    inside = groups_of(here, uuid).values()
    return {group.copying.to for group in inside if group.copying is not None and group.store == name}


class Rules:
    """What is to be kept of VMs, by one reading of who is in which group."""

    def __init__(self, here: Here, now: datetime | None = None) -> None:
        self._settings = here.settings
        self._roll = Roll(here)
        self._now = now or here.catalogue.now()
        self._over = set(grace.over(self._roll, self._now))

    def of(self, store: str, uuid: str) -> list[Keep]:
        """Those of the groups that back the VM up to the store, or did and whose grace runs; none = everything is kept.

        Of a VM that left its groups everything is kept until the grace ends, after it the newest point.
        """
        if uuid in self._over:
            return [Keep(last=1)]
        inside = [self._settings.groups[name] for name in self._roll.groups_of(uuid)]
        left = [(row, min(self._now, self._roll.asked(row.site) or row.since)) for row in self._roll.left(uuid)]
        return _keeps(self._settings, store, inside, left)


def rules_of(here: Here, store: str, uuid: str) -> list[Keep]:
    """`Rules` of one VM, as each backup asks: without a look at all others."""
    inside = groups_of(here, uuid)
    asked, now = {each.site: each.asked for each in here.catalogue.inventories()}, here.catalogue.now()
    left = [
        (row, min(now, asked.get(row.site) or row.since))
        for row in here.catalogue.memberships(vm=uuid)
        if row.left is not None and row.group not in inside
    ]
    return _keeps(here.settings, store, list(inside.values()), left)


def _keeps(
    settings: Settings, store: str, inside: Sequence[Group], left: Sequence[tuple[Membership, datetime]]
) -> list[Keep]:
    """`left`: the groups that the VM left, each with until when it is known to be away."""
    covering = [keep for group in inside for keep in group.kept_in(store)]
    former = [(settings.groups.get(row.group), kept_until(settings, row) > seen) for row, seen in left]
    if any(group is None and runs for group, runs in former):
        return []  # what a group kept that is not configured any more is not known
    mine = [(keep, runs) for group, runs in former if group is not None for keep in group.kept_in(store)]
    running = [keep for keep, runs in mine if runs]
    if covering:
        return [*covering, *running]
    return [Keep(last=1)] if mine and not running else []


def _tell_catalogue(here: Here, name: str, uuid: str, points: Sequence[RestorePoint]) -> None:
    """Whoever made or retired a point may have died before it could say so. And the store may have had another name:
    what a name held that is not configured any more, and is here, is the same.
    """
    lines = here.catalogue.points(uuid)
    known = {line.id for line in lines if line.store == name}
    same = {(point.id, point.run) for point in points}
    for line in lines:
        if line.store not in here.settings.stores and (line.id, line.run) in same:
            here.catalogue.drop_point(line.store, uuid, line.id)
    for point in points:
        if point.id not in known:
            here.catalogue.record_point(name, point)
    for gone in known - {point.id for point in points}:
        here.catalogue.drop_point(name, uuid, gone)


def _replica(pair: Pair) -> str:
    return f"{pair.site}/{pair.replica_name}"
