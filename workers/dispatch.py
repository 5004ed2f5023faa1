"""What is due, and what was asked for: from policy and inventory to runs. The only place where a run is requested."""

from __future__ import annotations

import difflib
from datetime import datetime

import structlog

from workers import backup, due, replicate
from workers.destination import of_member
from workers.errors import BadInput, ConfigError, NotFound, UnderstudyError
from workers.members import Member as Member
from workers.members import members as members
from workers.members import settle
from workers.models import Failure, Pair, Run, RunKind, Trigger
from workers.run import Here
from workers.settings import Schedule
from workers.vsphere import inventory, tags
from workers.vsphere.session import connect

log = structlog.get_logger()


def discover(here: Here, site: str) -> int:
    """Read a site's whole inventory into the catalogue. A failed or partial answer changes nothing, is an error, and
    is said in `status` until one succeeds."""
    asked = here.catalogue.now()
    try:
        session = connect(site, here.settings.site(site))
        found = inventory.list_vms(session)
        if any(group.source == site and group.rule.uses_tags for group in here.settings.groups.values()):
            found = tags.with_tags(session, found)
        here.catalogue.record_inventory(site, found, asked)
    except UnderstudyError as err:
        _not_read(here, site, err)
        raise
    return len(found)


def _not_read(here: Here, site: str, err: UnderstudyError) -> None:
    """Noted with the site; a row of failures when it is news, not one for each of a night's attempts."""
    try:
        if here.catalogue.inventory_failed(site, str(err)):
            here.catalogue.record_failure(
                Failure(
                    at=here.catalogue.now(),
                    run=None,
                    task=None,
                    vm=None,
                    kind="inventory",
                    family=err.family,
                    message=f"the inventory of {site} could not be read, so nobody joins or leaves a group: {err}",
                )
            )
    except UnderstudyError as second:  # it must not hide the first
        log.error(f"that the inventory of {site} could not be read was not recorded: {second}")


def pair_of(here: Here, member: Member) -> Pair | None:
    """The pair of a VM under a group with a recovery target."""
    if member.target is None:
        return None
    if (sentence := objection(here, member)) is not None:
        raise ConfigError(sentence)
    target = here.settings.targets[member.target]
    return here.catalogue.ensure_pair(
        source_site=member.vm.identity.site,
        source=member.vm.identity.instance_uuid,
        vm=member.vm.identity.name,
        store=member.group.store,
        recovery_target=member.target,
        site=target.site,
        replica_name=_replica_name(here, member, member.target),
    )


def _replica_name(here: Here, member: Member, target: str) -> str:
    vm = member.vm.identity.name
    return of_member(here.settings, member.name, vm, target).name


def objection(here: Here, member: Member) -> str | None:
    """Why this VM cannot be replicated as its groups say, whatever vCenter has."""
    who, aim = member.vm.identity, member.target
    if aim is None:
        return None
    groups = {name: here.settings.groups[name] for name in member.groups}
    sharing = [f"{name} ({group.store})" for name, group in groups.items() if aim in group.targets]
    if len({entry.partition(" (")[2] for entry in sharing}) > 1:
        return (
            f"{who.name} is in several groups with the recovery target {aim} but different stores: "
            f"{', '.join(sharing)}. A replica follows one store: take the VM out of the others, or give them a target "
            "of their own"
        )
    return _taken_name(here, member, aim)


def _taken_name(here: Here, member: Member, aim: str) -> str | None:
    """Two VMs of one name at one site: which is which nobody could say afterwards."""
    who, targets = member.vm.identity, here.settings.targets
    mine = _replica_name(here, member, aim)
    if targets[aim].site == who.site and mine == who.name:
        return (
            f"the replica of {who.name} would have the same name at the same site {who.site}: give the recovery target "
            f"{aim} a prefix or suffix, or this VM's replica a name (overrides.NAME.name)"
        )
    for name in member.groups:
        group = here.settings.groups[name]
        for other in group.targets:
            if other == aim:
                return None  # the first one in the configuration may have the name
            also = member._replace(name=name, group=group, target=other)
            if targets[other].site == targets[aim].site and _replica_name(here, also, other) == mine:
                return (
                    f"the recovery targets {other} and {aim} would both have a replica {mine} of {who.name} at the "
                    f"site {targets[aim].site}: give one of them another prefix or suffix"
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
    for member in settle(here).members():
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
            try:
                pair = pair_of(here, member)
                if pair is not None and pair.paused is None:
                    run, created = request_sync(here, pair, Trigger.AFTER_BACKUP, after(point))
                    fresh += [run] if created else []
            except UnderstudyError as err:  # one target's trouble must not keep the others waiting
                log.error(str(err), vm=member.vm.identity.name, group=member.name, target=member.target)
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
        raise BadInput(
            f"the VM {name} is under no group's policy; `understudy group why {name}` says why. Add its name or a "
            "pattern to groups.<name>.vms, or widen groups.<name>.members"
        )
    if len({member.vm.identity.instance_uuid for member in found}) > 1:
        where = ", ".join(f"{m.vm.identity.site} ({m.vm.identity.instance_uuid})" for m in found)
        raise BadInput(f"several VMs are called {name}: {where}; rename one, or name them in different groups")
    return found


def replicated(here: Here, name: str, target: str | None = None) -> list[Member]:
    """The memberships with a recovery target, each target once: all of them, or the one called `target`."""
    found = {member.target: member for member in reversed(find(here, name)) if member.target is not None}
    if not found:
        raise BadInput(
            f"the VM {name} is backed up but not replicated: its group has no recovery target; set groups.<name>.target"
        )
    if target is None:
        return list(reversed(found.values()))
    if target not in found:
        raise BadInput(f"the VM {name} has no recovery target {target!r}; it has {', '.join(sorted(map(str, found)))}")
    return [found[target]]
