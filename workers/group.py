"""Groups for people: who is in one and why, who left and until when what is kept of them stays, who would leave."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import datetime

from workers import membership
from workers.catalogue import KnownVm
from workers.errors import BadInput, NotFound
from workers.members import Roll, settle
from workers.models import Model
from workers.run import Here


class Inside(Model):
    """A VM in a group; `why` is what of the rule it matches. `since` is None until the next tick has recorded it."""

    vm: str
    uuid: str
    since: datetime | None
    why: str


class Leaving(Model):
    """A VM that would leave, were the exodus not held."""

    vm: str
    uuid: str
    why: str


class Left(Model):
    """A VM that left; `until` is when its grace ends."""

    vm: str
    uuid: str
    left: datetime
    why: str
    until: datetime


class Shown(Model):
    """A group as `understudy group show` has it. `rule` is empty when it is not in the configuration any more."""

    name: str
    rule: str
    source: str | None
    store: str | None
    #: recovery targets
    targets: tuple[str, ...]
    #: when the inventory that this goes by was recorded
    read: datetime | None
    members: tuple[Inside, ...]
    held: tuple[Leaving, ...]
    left: tuple[Left, ...]
    concerns: tuple[str, ...]


class Answer(Model):
    """What one group's rule says of one VM."""

    group: str
    inside: bool
    why: str


class Outside(Model):
    """A VM that no group covers."""

    vm: str
    uuid: str
    site: str
    folder: str
    #: group of that site -> what of its rule the VM does not match
    why: dict[str, str]


def overview(here: Here) -> list[Shown]:
    """Every group that is configured, and those that are not any more but have members that left."""
    roll, now = Roll(here), here.catalogue.now()
    return [_shown(roll, name, now) for name in _names(roll)]


def show(here: Here, name: str) -> Shown:
    """Raises `NotFound` with what is known instead."""
    roll = Roll(here)
    _known(roll, name)
    return _shown(roll, name, here.catalogue.now())


def accept(here: Here, name: str) -> list[Leaving]:
    """Let those go who would leave a group, of whom a person was asked. Raises `BadInput` when nobody is waiting."""
    before = Roll(here)
    _known(before, name)
    if name not in before.outcomes or not before.outcomes[name].held:
        raise BadInput(f"nobody waits to be let go from the group {name}; nothing was changed")
    after = settle(here, {name})
    return _leaving(after, after.outcomes[name].leaving)


def why(here: Here, name: str) -> list[Answer]:
    """What each group of a VM's site says of it. Raises `NotFound` when no such VM is known."""
    roll = Roll(here)
    found = [vm for vm in roll.vms if name in (vm.identity.name, vm.identity.instance_uuid)]
    if not found:
        near = difflib.get_close_matches(name, [vm.identity.name for vm in roll.vms], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise NotFound(f"no VM {name!r} is known at any site ({len(roll.vms)} VMs are){hint}")
    return [answer for vm in found for answer in _answers(roll, vm)]


def unprotected(here: Here) -> list[Outside]:
    """Every VM that its vCenter has and no group covers, by site and name. Replicas of ours are not among them."""
    roll = Roll(here)
    groups = roll.settings.groups.items()
    found = [
        Outside(
            vm=vm.identity.name,
            uuid=vm.identity.instance_uuid,
            site=vm.identity.site,
            folder=vm.folder,
            why={name: membership.explain(g.rule, vm) for name, g in groups if g.source == vm.identity.site},
        )
        for vm in roll.outside()
    ]
    return sorted(found, key=lambda each: (each.site, each.vm, each.uuid))


def unprotected_in_words(roll: Roll) -> str:
    """For `status`, or empty. VMs of a site that is no group's source, as the recovery site's own, are no news."""
    sources = {group.source for group in roll.settings.groups.values()}
    names = sorted(vm.identity.name for vm in roll.outside() if vm.identity.site in sources)
    if not names:
        return ""
    some = f"{', '.join(names[:3])}{', ...' if names[3:] else ''}"
    are = "VM is" if len(names) == 1 else "VMs are"
    return f"{len(names)} {are} in no group ({some}): `understudy group unprotected` has them all, and why"


def _answers(roll: Roll, vm: KnownVm) -> Iterable[Answer]:
    uuid = vm.identity.instance_uuid
    absent = roll.absent.get((vm.identity.site, uuid))
    for name, group in roll.settings.groups.items():
        if group.source != vm.identity.site:
            yield Answer(group=name, inside=False, why=f"it is at {vm.identity.site}, the group is of {group.source}")
            continue
        outcome = roll.outcomes[name]
        reason = absent or membership.explain(group.rule, vm)
        if uuid in outcome.held:
            reason = f"kept until somebody decides: {reason}"
        yield Answer(group=name, inside=uuid in outcome.inside, why=reason)


def _names(roll: Roll) -> list[str]:
    return [*roll.settings.groups, *sorted({row.group for row in roll.rows} - roll.settings.groups.keys())]


def _known(roll: Roll, name: str) -> None:
    names = _names(roll)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise NotFound(f"there is no group {name!r}; there are {', '.join(names) or 'none'}{hint}")


def _shown(roll: Roll, name: str, now: datetime) -> Shown:
    group, outcome = roll.settings.groups.get(name), roll.outcomes.get(name)
    known = roll.inventories.get(group.source) if group is not None else None
    left = sorted((row for row in roll.left() if row.group == name), key=lambda row: (row.name, row.vm))
    return Shown(
        name=name,
        rule=membership.sentence(group.rule) if group is not None else "",
        source=group.source if group is not None else None,
        store=group.store if group is not None else None,
        targets=group.targets if group is not None else (),
        read=known.complete if known is not None else None,
        members=tuple(_inside(roll, name)),
        held=tuple(_leaving(roll, outcome.held)) if outcome is not None else (),
        left=tuple(
            Left(vm=row.name, uuid=row.vm, left=row.left, why=row.why or "", until=roll.kept_until(row))
            for row in left
            if row.left is not None
        ),
        concerns=tuple(roll.concerns(now, name)),
    )


def _inside(roll: Roll, name: str) -> Iterable[Inside]:
    since = {row.vm: row.since for row in roll.recorded.get(name, ())}
    for member in roll.members():
        if member.name == name:
            uuid = member.vm.identity.instance_uuid
            reason = membership.explain(member.group.rule, member.vm)
            yield Inside(vm=member.vm.identity.name, uuid=uuid, since=since.get(uuid), why=reason)


def _leaving(roll: Roll, leaving: dict[str, str]) -> list[Leaving]:
    found = [Leaving(vm=roll.name_of(uuid), uuid=uuid, why=reason) for uuid, reason in leaving.items()]
    return sorted(found, key=lambda each: (each.vm, each.uuid))
