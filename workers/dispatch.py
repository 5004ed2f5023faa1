"""What is due, and what was asked for: from policy and inventory to runs. The only place where a run is requested."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

import structlog

from workers import backup, due, quarantine, replicate
from workers.catalogue import KnownVm
from workers.errors import BadInput, ConfigError, NotFound, Refused, UnderstudyError
from workers.models import Pair, Run, RunKind, Trigger
from workers.quarantine import Turn
from workers.run import Here
from workers.settings import Group, Schedule
from workers.vsphere import inventory
from workers.vsphere.session import connect

log = structlog.get_logger()

#: makes a run of some target, or finds it: (run, was it made now?)
Ask = Callable[[Trigger, str], tuple[Run, bool]]


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
        if vm.gone_since is None and not vm.template and vm.identity.instance_uuid not in replicas
        for name, group in here.settings.groups.items()
        if group.covers(vm.identity.site, vm.identity.name)
    ]


def discover(here: Here, site: str) -> int:
    """Read a site's whole inventory into the catalogue. A failed or partial answer changes nothing and is an error."""
    found = inventory.list_vms(connect(site, here.settings.site(site)))
    here.catalogue.record_inventory(site, found)
    return len(found)


def pair_of(here: Here, member: Member, known: Mapping[tuple[str, str], Pair] | None = None) -> Pair | None:
    """The pair of a VM under a group with a recovery target.

    `known`: by source and recovery target, those just read; one of them that is as it should be costs no transaction.
    """
    if member.group.target is None:
        return None
    if (sentence := objection(here, member)) is not None:
        raise ConfigError(sentence)
    target = here.settings.targets[member.group.target]
    override = member.group.overrides.get(member.vm.identity.name)
    name = (override.name if override else None) or f"{target.prefix}{member.vm.identity.name}{target.suffix}"
    wanted = {
        "source_site": member.vm.identity.site,
        "source": member.vm.identity.instance_uuid,
        "vm": member.vm.identity.name,
        "store": member.group.store,
        "recovery_target": member.group.target,
        "site": target.site,
        "replica_name": name,
    }
    pair = (known or {}).get((wanted["source"], wanted["recovery_target"]))
    if pair is not None:
        is_so = pair.model_dump(include=set(wanted))
        if is_so == wanted or (pair.replica is not None and is_so == {**wanted, "replica_name": pair.replica_name}):
            return pair  # a replica that was built keeps its name
    return here.catalogue.ensure_pair(**wanted)


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


def request_backup(
    here: Here, member: Member, trigger: Trigger, slot: str | None = None, *, full: str | None = None
) -> tuple[Run, bool]:
    """The live backup run of this VM's chain, or a new one: (run, was it made now?). `full`: why all is compared."""
    return here.catalogue.request_run(
        RunKind.BACKUP,
        backup.target_of(member.group.store, member.vm.identity.instance_uuid),
        vm=member.vm.identity.name,
        site=member.vm.identity.site,
        trigger=trigger,
        slot=slot,
        memory={"full": full} if full else {},
    )


def request_sync(
    here: Here,
    pair: Pair,
    trigger: Trigger,
    slot: str | None = None,
    *,
    discard: bool = False,
    full: str | None = None,
) -> tuple[Run, bool]:
    """The live sync run of this pair, or a new one. `discard`: a person gave up what others changed on the replica.
    `full`: why every block is compared."""
    return here.catalogue.request_run(
        RunKind.SYNC,
        replicate.target_of(pair.id),
        vm=pair.vm,
        site=pair.site,
        trigger=trigger,
        slot=slot,
        pair=pair.id,
        memory={**({"discard": "yes"} if discard else {}), **({"full": full} if full else {})},
    )


def request_care(here: Here, pair: Pair, kind: RunKind, *, memory: Mapping[str, str]) -> tuple[Run, bool]:
    """A run that adopts or forgets. Raises `Refused` while anything else is under way for the pair."""
    run, created = here.catalogue.request_run(
        kind,
        replicate.target_of(pair.id),
        vm=pair.vm,
        site=pair.site,
        trigger=Trigger.AD_HOC,
        pair=pair.id,
        memory=memory,
    )
    if not created and (run.kind is not kind or any(run.memory.get(key) != value for key, value in memory.items())):
        raise Refused(
            f"the {run.kind} {run.id} of {pair.vm} is under way, so that nothing was requested: wait for its end, or "
            f"stop it with `understudy pause {pair.vm} --now`"
        )
    return run, created


class _Tick:
    """What one tick knows, read once for all VMs, and the runs that it has made: sent whatever refuses the next one."""

    def __init__(self, here: Here, now: datetime) -> None:
        catalogue = here.catalogue
        self.here = here
        self.now = now
        self.used = {kind: catalogue.used_slots(kind) for kind in (RunKind.BACKUP, RunKind.SYNC)}
        self.newest = {(p.store, p.vm): p.id for p in catalogue.newest_points()}
        self.synced = {p.pair: p.point for p in catalogue.latest_sync_points()}
        self.pairs = {(pair.source, pair.recovery_target): pair for pair in catalogue.pairs()}
        self.held = catalogue.holds()
        self.last = {each.run.target: each for each in catalogue.latest_ended(uncounted=quarantine.UNCOUNTED)}
        self.live = {run.target for run in catalogue.live_runs()}
        self.fresh: list[Run] = []

    def start(self, target: str, ask: Ask, slots: Iterable[tuple[Trigger, str]]) -> None:
        """What is due of a target, unless it is held or set aside; or its probe. One run does for all that is due."""
        if target in self.live:
            return
        turn, last = self._turn(target)
        if turn is Turn.SKIP:
            return
        wanted = list(slots)
        if turn is Turn.PROBE:  # what is due serves as the probe, unless its slot is used up
            wanted.append((Trigger.PROBE, f"after {last}"))
        for trigger, slot in wanted:
            run, created = ask(trigger, slot)
            if created:
                self.fresh.append(run)
            if run.live:
                self.live.add(target)
                return

    def _turn(self, target: str) -> tuple[Turn, str]:
        held = {str(kind): said for kind, said in self.held.get(target, {}).items()}
        return quarantine.turn(held, self.last.get(target), self.here.settings.tuning, self.now)


def dispatch(here: Here, now: datetime) -> list[Run]:
    """One tick: a run for each VM that is due and has none. Idempotent per (target, slot), so two Beats do no harm."""
    tick = _Tick(here, now)
    for member in members(here):
        try:
            _due_of(tick, member)
        except UnderstudyError as err:  # one VM's trouble must not keep the others waiting
            log.error(str(err), vm=member.vm.identity.name, group=member.name)
    return tick.fresh


def _due_of(tick: _Tick, member: Member) -> None:
    uuid, group = member.vm.identity.instance_uuid, member.group
    chain = backup.target_of(group.store, uuid)
    tick.start(
        chain,
        lambda trigger, slot: request_backup(tick.here, member, trigger, slot),
        _slots(group.backup, uuid, tick.used[RunKind.BACKUP].get(chain), tick.now),
    )
    pair = pair_of(tick.here, member, tick.pairs)
    if pair is None:
        return
    point, target = tick.newest.get((group.store, uuid)), replicate.target_of(pair.id)
    slots = _slots(group.replicate.schedule, uuid, tick.used[RunKind.SYNC].get(target), tick.now)
    if group.replicate.after_backup and point is not None and tick.synced.get(pair.id) != point:
        slots.append((Trigger.AFTER_BACKUP, after(point)))
    tick.start(target, lambda trigger, slot: request_sync(tick.here, pair, trigger, slot), slots)


def _slots(schedule: Schedule | None, uuid: str, last: str | None, now: datetime) -> list[tuple[Trigger, str]]:
    """The slot that is due, if one is. However many were missed, it is one."""
    if schedule is None or not due.is_due(schedule, uuid, last, now):
        return []
    latest = due.slot(schedule, uuid, now)
    return [(Trigger.SCHEDULE, due.slot_name(latest))] if latest is not None else []


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
            if pair is not None and _may_follow(here, pair):
                run, created = request_sync(here, pair, Trigger.AFTER_BACKUP, after(point))
                fresh += [run] if created else []
    return fresh


def _may_follow(here: Here, pair: Pair) -> bool:
    """Whether nobody holds the pair and it is not set aside."""
    target = replicate.target_of(pair.id)
    held = {str(kind): said for kind, said in here.catalogue.holds(target).get(target, {}).items()}
    last = next(iter(here.catalogue.latest_ended(target, uncounted=quarantine.UNCOUNTED)), None)
    return quarantine.turn(held, last, here.settings.tuning, here.catalogue.now())[0] is not Turn.SKIP


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
    if not found and any(vm.template for vm in known if vm.identity.name == name):
        raise BadInput(f"{name} is a template: vSphere takes no snapshots of templates, so it is not backed up")
    if not found:
        raise BadInput(f"the VM {name} is under no group's policy; add its name or a pattern to groups.<name>.vms")
    if len({member.vm.identity.instance_uuid for member in found}) > 1:
        where = ", ".join(f"{m.vm.identity.site} ({m.vm.identity.instance_uuid})" for m in found)
        raise BadInput(f"several VMs are called {name}: {where}; rename one, or name them in different groups")
    return found
