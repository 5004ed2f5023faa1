"""What is due, and what was asked for: from policy and inventory to runs. The only place where a run is requested."""

from __future__ import annotations

import difflib
from datetime import datetime
from typing import NamedTuple

import structlog

from workers import backup, due, replicate
from workers.catalogue import KnownVm
from workers.errors import BadInput, ConfigError, NotFound, UnderstudyError
from workers.models import Pair, Run, RunKind, Trigger
from workers.run import Here
from workers.settings import Group, Schedule
from workers.vsphere import inventory
from workers.vsphere.session import connect

log = structlog.get_logger()


class Member(NamedTuple):
    """A VM under a group's policy."""

    name: str
    group: Group
    vm: KnownVm


def members(here: Here) -> list[Member]:
    """Every VM that a group names and that the inventory knows, but for our own replicas, whose names match easily.

    A VM that is gone from its vCenter is left alone.
    """
    replicas = {pair.replica for pair in here.catalogue.pairs()}
    return [
        Member(name, group, vm)
        for vm in here.catalogue.inventory()
        if vm.gone_since is None and vm.identity.instance_uuid not in replicas
        for name, group in here.settings.groups.items()
        if group.covers(vm.identity.site, vm.identity.name)
    ]


def discover(here: Here, site: str) -> int:
    """Read a site's whole inventory into the catalogue. A failed or partial answer changes nothing and is an error."""
    found = inventory.list_vms(connect(site, here.settings.site(site)))
    here.catalogue.record_inventory(site, found)
    return len(found)


def pair_of(here: Here, member: Member) -> Pair | None:
    """The pair of a VM under a group with a recovery target."""
    if member.group.target is None:
        return None
    if (sentence := objection(here, member)) is not None:
        raise ConfigError(sentence)
    target = here.settings.targets[member.group.target]
    override = member.group.overrides.get(member.vm.identity.name)
    name = (override.name if override else None) or f"{target.prefix}{member.vm.identity.name}{target.suffix}"
    return here.catalogue.ensure_pair(
        source_site=member.vm.identity.site,
        source=member.vm.identity.instance_uuid,
        vm=member.vm.identity.name,
        store=member.group.store,
        recovery_target=member.group.target,
        site=target.site,
        replica_name=name,
    )


def objection(here: Here, member: Member) -> str | None:
    """Why this VM cannot be replicated as its groups say, whatever vCenter has."""
    who, aim = member.vm.identity, member.group.target
    sharing = [
        f"{name} ({group.store})"
        for name, group in here.settings.groups.items()
        if group.target == aim and group.covers(who.site, who.name)
    ]
    if aim is not None and len({entry.partition(" (")[2] for entry in sharing}) > 1:
        return (
            f"{who.name} is in several groups with the recovery target {aim} but different stores: "
            f"{', '.join(sharing)}. A replica follows one store: take the VM out of the others, or give them a target "
            "of their own"
        )
    return None


def request_backup(here: Here, member: Member, trigger: Trigger, slot: str | None = None) -> tuple[Run, bool]:
    """The live backup run of this VM's chain, or a new one: (run, was it made now?)."""
    return here.catalogue.request_run(
        RunKind.BACKUP,
        backup.target_of(member.group.store, member.vm.identity.instance_uuid),
        vm=member.vm.identity.name,
        site=member.vm.identity.site,
        trigger=trigger,
        slot=slot,
    )


def request_sync(
    here: Here, pair: Pair, trigger: Trigger, slot: str | None = None, *, discard: bool = False
) -> tuple[Run, bool]:
    """The live sync run of this pair, or a new one. `discard`: a person gave up what others changed on the replica."""
    return here.catalogue.request_run(
        RunKind.SYNC,
        replicate.target_of(pair.id),
        vm=pair.vm,
        site=pair.site,
        trigger=trigger,
        slot=slot,
        pair=pair.id,
        memory={"discard": "yes"} if discard else {},
    )


def dispatch(here: Here, now: datetime) -> list[Run]:
    """One tick: a run for each VM that is due and has none. Idempotent per (target, slot), so two Beats do no harm."""
    used = {kind: here.catalogue.used_slots(kind) for kind in RunKind}
    newest = {(p.store, p.vm): p.id for p in here.catalogue.newest_points()}
    synced = {p.pair: p.point for p in here.catalogue.latest_sync_points()}
    fresh: list[Run] = []
    for member in members(here):
        try:
            _due_of(here, member, now, used, newest, synced, fresh)
        except UnderstudyError as err:  # one VM's trouble must not keep the others waiting
            log.error(str(err), vm=member.vm.identity.name, group=member.name)
    return fresh


def _due_of(
    here: Here,
    member: Member,
    now: datetime,
    used: dict[RunKind, dict[str, str]],
    newest: dict[tuple[str, str], str],
    synced: dict[str, str],
    fresh: list[Run],
) -> None:
    """Adds to `fresh` at once: a run that was made is sent, whatever refuses the next one."""
    uuid, group = member.vm.identity.instance_uuid, member.group

    def take(made: tuple[Run, bool]) -> None:
        fresh.extend([made[0]] if made[1] else [])

    if group.backup is not None:
        target = backup.target_of(group.store, uuid)
        slot = _slot(group.backup, uuid, used[RunKind.BACKUP].get(target), now)
        if slot is not None:
            take(request_backup(here, member, Trigger.SCHEDULE, slot))
    pair = pair_of(here, member)
    if pair is not None and pair.paused is None:
        point = newest.get((group.store, uuid))
        if group.replicate.schedule is not None:
            slot = _slot(group.replicate.schedule, uuid, used[RunKind.SYNC].get(replicate.target_of(pair.id)), now)
            if slot is not None:
                take(request_sync(here, pair, Trigger.SCHEDULE, slot))
        if group.replicate.after_backup and point is not None and synced.get(pair.id) != point:
            take(request_sync(here, pair, Trigger.AFTER_BACKUP, after(point)))


def _slot(schedule: Schedule, uuid: str, last: str | None, now: datetime) -> str | None:
    """The name of the slot that is due, if one is. However many were missed, it is one."""
    latest = due.slot(schedule, uuid, now)
    return due.slot_name(latest) if latest is not None and due.is_due(schedule, uuid, last, now) else None


def after(point: str) -> str:
    """The slot of a replication that a restore point set off: one try per point."""
    return f"point {point}"


def after_backup(here: Here, uuid: str, store: str, point: str) -> list[Run]:
    """The runs that a finished backup sets off at once; a tick would find them too."""
    fresh = []
    for member in members(here):
        if (
            member.vm.identity.instance_uuid == uuid
            and member.group.store == store
            and member.group.replicate.after_backup
        ):
            pair = pair_of(here, member)
            if pair is not None and pair.paused is None:
                run, created = request_sync(here, pair, Trigger.AFTER_BACKUP, after(point))
                fresh += [run] if created else []
    return fresh


def find(here: Here, name: str) -> list[Member]:
    """The memberships of the VM called `name`. Raises `NotFound` or `BadInput` with what is known instead."""
    if not isinstance(name, str) or not name:
        raise BadInput(f"a VM's name is needed, not {name!r}")
    known = [vm for vm in here.catalogue.inventory() if vm.gone_since is None]
    if not any(vm.identity.name == name for vm in known):
        near = difflib.get_close_matches(name, [vm.identity.name for vm in known], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise NotFound(
            f"no VM {name!r} is known at any site ({len(known)} VMs are){hint}. "
            "Is it new? `understudy check` reads the inventories"
        )
    found = [member for member in members(here) if member.vm.identity.name == name]
    if not found:
        raise BadInput(f"the VM {name} is under no group's policy; add its name or a pattern to groups.<name>.vms")
    if len({member.vm.identity.instance_uuid for member in found}) > 1:
        where = ", ".join(f"{m.vm.identity.site} ({m.vm.identity.instance_uuid})" for m in found)
        raise BadInput(f"several VMs are called {name}: {where}; rename one, or name them in different groups")
    return found
