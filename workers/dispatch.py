"""What is due, and what was asked for: from policy and inventory to runs. The only place where a run is requested."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import structlog

from workers import backup, copy, due, quarantine, replicate, scrub, sources, store_scrub, verify
from workers.destination import governing, name_of_member
from workers.errors import BadInput, ConfigError, NotFound, Refused, UnderstudyError
from workers.members import Member as Member
from workers.members import members as members
from workers.members import members_of, settle
from workers.models import Failure, Pair, Run, RunKind, Trigger
from workers.quarantine import Turn
from workers.run import Here
from workers.settings import Schedule
from workers.vsphere import inventory, tags
from workers.vsphere.session import connect

log = structlog.get_logger()

#: makes a run of some target, or finds it: (run, was it made now?)
Ask = Callable[[Trigger, str], tuple[Run, bool]]


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


def pair_of(here: Here, member: Member, known: Mapping[tuple[str, str], Pair] | None = None) -> Pair | None:
    """The pair of a VM under a group with a recovery target.

    `known`: by source and recovery target, those just read; one of them that is as it should be costs no transaction.
    """
    if member.target is None:
        return None
    if (sentence := objection(here, member)) is not None:
        raise ConfigError(sentence)
    wanted = {
        "source_site": member.vm.identity.site,
        "source": member.vm.identity.instance_uuid,
        "vm": member.vm.identity.name,
        "store": member.group.store,
        "recovery_target": member.target,
        "site": here.settings.targets[member.target].site,
        "replica_name": _replica_name(here, member, member.target),
    }
    pair = (known or {}).get((wanted["source"], wanted["recovery_target"]))
    if pair is not None:
        is_so = pair.model_dump(include=set(wanted))
        if is_so == wanted or (pair.replica is not None and is_so == {**wanted, "replica_name": pair.replica_name}):
            return pair  # a replica that was built keeps its name
    return here.catalogue.ensure_pair(**wanted)


def _replica_name(here: Here, member: Member, target: str) -> str:
    vm = member.vm.identity.name
    group = governing(here.settings, member.groups, vm, target) or member.name
    return name_of_member(here.settings, group, vm, target)


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


def misplaced(here: Here, pair: Pair | None) -> str | None:
    """Why a replica that was built gets nothing new: its recovery target now means another place (`ensure_pair`)."""
    aim = here.settings.targets.get(pair.recovery_target) if pair is not None else None
    if pair is None or aim is None or pair.replica is None or aim.site == pair.site:
        return None
    return (
        f"the recovery target {pair.recovery_target} now means the site {aim.site}, but the replica of {pair.vm} was "
        f"built at {pair.site}: nothing new comes to it. Name the new place as a recovery target of its own"
    )


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
            if targets[other].site == targets[aim].site and _replica_name(here, member, other) == mine:
                return (
                    f"the recovery targets {other} and {aim} would both have a replica {mine} of {who.name} at the "
                    f"site {targets[aim].site}: give one of them another prefix or suffix"
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
    `full`: why every block is compared. Raises `TargetBusy` when somebody asks while the replica is being compared."""

    def ask() -> tuple[Run, bool]:
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

    run, made = ask()
    if run.kind is RunKind.VERIFY and trigger is Trigger.AD_HOC:
        verify.give_way(here, run)
        run, made = ask()
    return run, made


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
        kinds = (RunKind.BACKUP, RunKind.SYNC, RunKind.COPY, RunKind.VERIFY)
        self.used = {kind: catalogue.used_slots(kind) for kind in kinds}
        self.newest = {(p.store, p.vm): p for p in catalogue.newest_points()}
        self.held_by = {p.pair: p for p in catalogue.latest_sync_points()}
        self.scrubs = catalogue.scrubs()
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

    def compare(self, member: Member, pair: Pair, late: datetime | None = None) -> None:
        """The part of the replica that is due is compared, unless something else of it is under way."""
        target, group = replicate.target_of(pair.id), member.group
        if target in self.live or self._turn(target)[0] is not Turn.GO:
            return
        slot = scrub.slot(self.scrubs.get(target), pair.source, self.now)
        if slot == self.used[RunKind.VERIFY].get(target):
            return  # it had its try: thousands without a place are not asked for at each tick
        run, made = verify.request_part(self.here, pair, slot, share=group.scrub, repair=group.scrub_repair, late=late)
        self.fresh += [run] if made else []
        self.live |= {target} if run.live else set()

    def _turn(self, target: str) -> tuple[Turn, str]:
        held = {str(kind): said for kind, said in self.held.get(target, {}).items()}
        return quarantine.turn(held, self.last.get(target), self.here.settings.tuning, self.now)


def dispatch(here: Here, now: datetime) -> list[Run]:
    """One tick: a run for each VM that is due and has none. Idempotent per (target, slot), so two Beats do no harm."""
    tick = _Tick(here, now)
    for member in settle(here).members():
        try:
            _due_of(tick, member)
        except UnderstudyError as err:  # one VM's trouble must not keep the others waiting
            log.error(str(err), vm=member.vm.identity.name, group=member.name)
    try:
        tick.fresh += store_scrub.due(here, now)
    except UnderstudyError as err:
        log.error(str(err))
    return tick.fresh


def _due_of(tick: _Tick, member: Member) -> None:
    uuid, group = member.vm.identity.instance_uuid, member.group
    chain = backup.target_of(group.store, uuid)
    tick.start(
        chain,
        lambda trigger, slot: request_backup(tick.here, member, trigger, slot),
        _slots(group.backup, uuid, tick.used[RunKind.BACKUP].get(chain), tick.now),
    )
    _copy_due(tick, member)
    pair = pair_of(tick.here, member, tick.pairs)
    if pair is None:
        return
    target = replicate.target_of(pair.id)
    slots = _slots(group.replicate.schedule, uuid, tick.used[RunKind.SYNC].get(target), tick.now)
    held = tick.held_by.get(pair.id)
    groups = [tick.here.settings.groups[name] for name in member.groups]
    at = sources.newest_of(
        groups, member.target, group.store, lambda store: tick.newest.get((store, uuid)), held, tick.now
    )
    point = at.id if at is not None else None
    if group.replicate.after_backup and point is not None and (held is None or held.point != point):
        slots.append((Trigger.AFTER_BACKUP, after(point)))
    part_due = verify.part_due([group], pair, held, tick.scrubs.get(target), tick.now)
    if scrub.goes_first(part_due, tick.used[RunKind.VERIFY].get(target), pair.source, tick.now):
        tick.compare(member, pair, part_due)
    tick.start(target, lambda trigger, slot: request_sync(tick.here, pair, trigger, slot), slots)
    if part_due is not None:
        tick.compare(member, pair)


def _copy_due(tick: _Tick, member: Member) -> None:
    uuid, group, copying = member.vm.identity.instance_uuid, member.group, member.group.copying
    if copying is None:
        return
    point, copied = tick.newest.get((group.store, uuid)), tick.newest.get((copying.to, uuid))
    if point is None:
        return
    target = backup.target_of(copying.to, uuid)
    slots = _slots(copying.schedule, uuid, tick.used[RunKind.COPY].get(target), tick.now)
    if copying.after_backup and (copied is None or copied.id != point.id):
        slots.append((Trigger.AFTER_BACKUP, after(point.id)))
    tick.start(target, lambda trigger, slot: copy.request_due(tick.here, member, trigger, slot), slots)


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
    fresh = copy.after_backup(here, uuid, store, after(point), lambda target: _may_follow(here, target))
    for member in members_of(here, uuid):
        first = (*member.group.sources, member.group.store)[0]
        if first == store and member.group.replicate.after_backup:
            try:
                pair = pair_of(here, member)
                if pair is not None and _may_follow(here, replicate.target_of(pair.id)):
                    run, created = request_sync(here, pair, Trigger.AFTER_BACKUP, after(point))
                    fresh += [run] if created else []
            except UnderstudyError as err:  # one target's trouble must not keep the others waiting
                log.error(str(err), vm=member.vm.identity.name, group=member.name, target=member.target)
    return fresh


def _may_follow(here: Here, target: str) -> bool:
    """Whether nobody holds it and it is not set aside."""
    held = {str(kind): said for kind, said in here.catalogue.holds(target).get(target, {}).items()}
    last = next(iter(here.catalogue.latest_ended(target, uncounted=quarantine.UNCOUNTED)), None)
    return quarantine.turn(held, last, here.settings.tuning, here.catalogue.now())[0] is not Turn.SKIP


def find(here: Here, name: str) -> list[Member]:
    """The memberships of the VM of this name or instance UUID. Raises `NotFound` or `BadInput` with what is known
    instead."""
    if not isinstance(name, str) or not name:
        raise BadInput(f"a VM's name is needed, not {name!r}")
    known = [vm.identity for vm in here.catalogue.inventory() if vm.gone_since is None]
    uuids = dict.fromkeys(vm.instance_uuid for vm in known if name in (vm.name, vm.instance_uuid))
    if not uuids:
        near = difflib.get_close_matches(name, [vm.name for vm in known], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise NotFound(
            f"no VM {name!r} is known at any site ({len(known)} VMs are){hint}. "
            "Is it new? `understudy check` reads the inventories"
        )
    found = [member for uuid in uuids for member in members_of(here, uuid)]
    if not found:
        raise BadInput(
            f"the VM {name} is under no group's policy; `understudy group why {name}` says why. Add its name or a "
            "pattern to groups.<name>.vms, or widen groups.<name>.members"
        )
    if len({member.vm.identity.instance_uuid for member in found}) > 1:
        where = ", ".join(f"{m.vm.identity.site} ({m.vm.identity.instance_uuid})" for m in found)
        raise BadInput(f"several VMs are called {name}: {where}; say which by its instance UUID")
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
    if not isinstance(target, str) or target not in found:
        raise BadInput(f"the VM {name} has no recovery target {target!r}; it has {', '.join(sorted(map(str, found)))}")
    return [found[target]]
