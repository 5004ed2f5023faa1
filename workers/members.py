"""Who is under which policy: the rules over the last complete inventories, and who joined, left or is asked about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from workers import membership
from workers.catalogue import Inventory, KnownVm, Membership
from workers.membership import Outcome
from workers.run import Here
from workers.settings import Group, Settings, seconds

log = structlog.get_logger()


class Member(NamedTuple):
    """A VM under a group's policy."""

    name: str
    group: Group
    vm: KnownVm
    #: one of the group's recovery targets: a VM may have several of these. None in a group that only backs up
    target: str | None = None
    #: the names of all groups that the VM is in
    groups: tuple[str, ...] = ()


class Roll:
    """One reading of the catalogue, and what the rules make of it. Writes nothing.

    `agreed`: groups of which a person has accepted that many leave.
    """

    def __init__(self, here: Here, agreed: Collection[str] = ()) -> None:
        self.settings = here.settings
        self.inventories: dict[str, Inventory] = {i.site: i for i in here.catalogue.inventories()}
        self.vms = here.catalogue.inventory()
        self.identities = {vm.identity.instance_uuid: vm.identity for vm in self.vms}
        self.rows = here.catalogue.memberships()
        #: who is recorded as being in a group: group -> row
        self.recorded: dict[str, list[Membership]] = {}
        for row in self.rows:
            if row.left is None:
                self.recorded.setdefault(row.group, []).append(row)
        #: what can be in no group, and why: by site and instance UUID
        replicas = {pair.replica for pair in here.catalogue.pairs() if pair.replica is not None}
        self.absent = self._absent(replicas | here.catalogue.replicas_being_built())
        self.outcomes: dict[str, Outcome] = {
            name: self._outcome(name, group, name in agreed) for name, group in here.settings.groups.items()
        }
        self._left: dict[str, list[Membership]] = {}
        for row in self.rows:
            if row.left is not None and not (row.group in self.outcomes and row.vm in self.outcomes[row.group].inside):
                self._left.setdefault(row.vm, []).append(row)
        self._groups: dict[str, list[str]] = {}
        for name, outcome in self.outcomes.items():
            for uuid in outcome.inside:
                self._groups.setdefault(uuid, []).append(name)

    def _absent(self, replicas: set[str]) -> dict[tuple[str, str], str]:
        found = {}
        for vm in self.vms:
            who = (vm.identity.site, vm.identity.instance_uuid)
            if vm.gone_since is not None:
                found[who] = f"it is gone from its vCenter since {vm.gone_since:%Y-%m-%d %H:%M} UTC"
            elif vm.identity.instance_uuid in replicas:  # their names match easily
                found[who] = "it is a replica of ours"
        return found

    def _outcome(self, name: str, group: Group, agreed: bool) -> Outcome:
        return membership.settle(
            group.rule,
            {vm.identity.instance_uuid: vm for vm in self.of_site(group.source)},
            {row.vm for row in self.recorded.get(name, ())},
            {uuid: why for (site, uuid), why in self.absent.items() if site == group.source},
            asked=self.asked_about(name).keys(),
            exodus=self.settings.tuning.exodus,
            agreed=agreed,
        )

    def asked_about(self, group: str) -> dict[str, str]:
        """Of whom it is recorded that a person is asked: instance UUID -> why they would leave."""
        return {row.vm: row.why for row in self.recorded.get(group, ()) if row.why is not None}

    def of_site(self, site: str) -> Iterator[KnownVm]:
        return (vm for vm in self.vms if vm.identity.site == site)

    def members(self) -> list[Member]:
        """By VM, then by group. Who would leave, but is asked about, is among them; who is gone or absent is not."""
        found = []
        for vm in self.vms:
            site, uuid = vm.identity.site, vm.identity.instance_uuid
            if (site, uuid) not in self.absent:
                names = tuple(name for name in self.groups_of(uuid) if self.settings.groups[name].source == site)
                found += _under({name: self.settings.groups[name] for name in names}, vm)
        return found

    def outside(self) -> list[KnownVm]:
        """Whom no group covers, of the VMs that there are and that are no replicas of ours."""
        return [
            vm
            for vm in self.vms
            if (vm.identity.site, vm.identity.instance_uuid) not in self.absent
            and not self.groups_of(vm.identity.instance_uuid)
        ]

    def asked(self, site: str) -> datetime | None:
        """When the last complete answer of a site was asked for."""
        known = self.inventories.get(site)
        return known.asked if known is not None else None

    def groups_of(self, uuid: str) -> list[str]:
        """The groups that a VM is in, also when it cannot be worked on (gone, but its group is asked about)."""
        return self._groups.get(uuid, [])

    def left(self, uuid: str | None = None) -> list[Membership]:
        """Who was in a group and is not in it any more: one VM's, or all."""
        if uuid is not None:
            return self._left.get(uuid, [])
        return [row for rows in self._left.values() for row in rows]

    def kept_until(self, row: Membership) -> datetime:
        """When the grace of a VM that left ends."""
        return kept_until(self.settings, row)

    def name_of(self, uuid: str) -> str:
        known = self.identities.get(uuid)
        return known.name if known is not None else uuid

    def concerns(self, now: datetime, only: str | None = None) -> list[str]:
        """What must not stay unseen of all groups, or of one: an inventory that is not read, many who would leave."""
        groups = {name: group for name, group in self.settings.groups.items() if only in (None, name)}
        sites = sorted({group.source for group in groups.values()})
        held = [name for name in groups if self.outcomes[name].held]
        return [*filter(None, (self._unread(site, now) for site in sites)), *map(self._exodus, held)]

    def _unread(self, site: str, now: datetime) -> str:
        known, tuning = self.inventories.get(site), self.settings.tuning
        why = known.why if known is not None else None
        reason = why or "no answer has come since; does a worker of that site run, and Beat?"
        if known is None or known.complete is None:
            return f"the inventory of {site} was never read: {reason}"
        age = (now - known.complete).total_seconds()
        if why is None and age <= max(seconds(tuning.inventory_stale), 2 * seconds(tuning.inventory_every)):
            return ""
        return (
            f"the inventory of {site} was last read {_ago(age)} ago: {reason}. Until it is read completely again, "
            "nobody joins or leaves a group"
        )

    def _exodus(self, group: str) -> str:
        held = self.outcomes[group].held
        names = sorted(map(self.name_of, held))
        return (
            f"{len(held)} VMs would leave the group {group} ({', '.join(names[:3])}{', ...' if names[3:] else ''}; "
            f"{next(iter(held.values()))}). A wrong rule or a right that is missing looks like this, so nobody "
            f"leaves; `understudy group show {group}` has them all, `understudy group accept {group}` lets them go"
        )


def kept_until(settings: Settings, row: Membership) -> datetime:
    """When the grace of a VM that left a group ends."""
    assert row.left is not None
    group = settings.groups.get(row.group)
    return row.left + timedelta(seconds=seconds((group.grace if group else None) or settings.grace))


def _ago(age: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= length:
            return f"{age // length:.0f} {unit}"
    return f"{max(age, 0):.0f} s"


def members(here: Here) -> list[Member]:
    """Every VM that a group's rule covers and that its vCenter has."""
    return Roll(here).members()


def _under(groups: dict[str, Group], vm: KnownVm) -> list[Member]:
    """One for each recovery target of each of the VM's groups."""
    return [
        Member(name, group, vm, target, tuple(groups))
        for name, group in groups.items()
        for target in group.targets or (None,)
    ]


def members_of(here: Here, uuid: str) -> list[Member]:
    """Of one VM, as `members` has them."""
    groups = groups_of(here, uuid)
    seen = [vm for vm in here.catalogue.sightings(uuid) if vm.gone_since is None]
    return [
        each
        for vm in seen
        for each in _under({name: group for name, group in groups.items() if group.source == vm.identity.site}, vm)
    ]


def groups_of(here: Here, uuid: str) -> dict[str, Group]:
    """The policies that cover one VM now, by name, in the configuration's order.

    Asked in every run, so it looks at this VM alone: a whole `Roll` takes 0.9 s for 5,000 VMs and 20 groups. Who is
    recorded as being in a group is in it until the control plane records that it left.
    """
    recorded = {row.group for row in here.catalogue.memberships(vm=uuid) if row.left is None}
    seen = [vm for vm in here.catalogue.sightings(uuid) if vm.gone_since is None]
    if seen and not recorded and _is_replica(here, uuid):
        return {}
    return {
        name: group
        for name, group in here.settings.groups.items()
        if name in recorded or any(vm.identity.site == group.source and membership.holds(group.rule, vm) for vm in seen)
    }


def _is_replica(here: Here, uuid: str) -> bool:
    known = any(pair.replica == uuid for pair in here.catalogue.pairs())
    return known or uuid in here.catalogue.replicas_being_built()


def last_groups_of(here: Here, uuid: str) -> dict[str, Group]:
    """The policies that cover a VM, or that did before it left: what holds for what is still kept of it."""
    found = groups_of(here, uuid)
    before = (row.group for row in here.catalogue.memberships(vm=uuid))
    return found | {name: here.settings.groups[name] for name in before if name in here.settings.groups.keys() - found}


def policies_of(here: Here, uuid: str, concerns: Callable[[Group], bool]) -> list[Group]:
    """Of the policies that cover a VM those that concern something; where none does, of those that it left: a run that
    was under way goes on as it began."""
    covering = [group for group in groups_of(here, uuid).values() if concerns(group)]
    return covering or [group for group in last_groups_of(here, uuid).values() if concerns(group)]


def settle(here: Here, agreed: Collection[str] = ()) -> Roll:
    """Record who has joined and who has left since the last tick of dispatch, by inventory or by configuration.

    At the control plane alone: a site's worker may still have an older configuration. Repeatable; of two at once the
    second changes nothing.
    """
    roll = Roll(here, agreed)
    for group, outcome in roll.outcomes.items():
        if outcome.joining:
            site = here.settings.groups[group].source
            joining = [v.identity for v in roll.of_site(site) if v.identity.instance_uuid in outcome.joining]
            here.catalogue.join_group(group, joining)
            for identity in joining:
                log.info(f"joined the group {group}", vm=identity.name)
        if outcome.held != roll.asked_about(group):
            here.catalogue.hold_in_group(group, outcome.held)
        if outcome.leaving:
            _leave(here, roll, group, outcome.leaving)
    for group in roll.recorded.keys() - roll.outcomes.keys():
        why = "the group is not in the configuration any more"
        _leave(here, roll, group, {row.vm: why for row in roll.recorded[group]})
    return roll


def _leave(here: Here, roll: Roll, group: str, who: dict[str, str]) -> None:
    here.catalogue.leave_group(group, who)
    for uuid, why in who.items():
        log.info(f"left the group {group}: {why}", vm=roll.name_of(uuid))
