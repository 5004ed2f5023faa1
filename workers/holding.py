"""What people say about pairs and backups: pause, disable, approve, and the taking back of each. Asks no vCenter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import structlog

from workers import approval, backup, dispatch, quarantine, replicate
from workers.catalogue import ENDS, HoldKind
from workers.errors import BadInput, NotFound, Refused, UnderstudyError
from workers.members import policies_of
from workers.models import Model, Pair, Run, RunState
from workers.replica_held import BACK_TO, ROLLED_BACK
from workers.run import Here
from workers.settings import Group

log = structlog.get_logger()

#: between the reason of a pause that a rollback made, and that of a person who paused it once more
ALSO = ". Also: "

#: which of a VM's targets are meant
Which = Literal["replicas", "backups", "both"]


class Subject(Model):
    """A target of runs, as people call it."""

    vm: str
    #: the VM's instance UUID
    source: str
    store: str
    #: "the replica dr/web-01_replica", "the backups to main"
    what: str
    target: str
    pair: Pair | None = None

    def __str__(self) -> str:
        return f"{self.vm}, {self.what}"


class Answer(Model):
    """What became of it, for one subject."""

    vm: str
    what: str
    target: str
    #: whether anything was changed
    done: bool
    sentence: str


def subjects(
    here: Here, names: Sequence[str], *, groups: Sequence[str] = (), targets: Sequence[str] = (), which: Which
) -> list[Subject]:
    """What is meant by these VMs (names or instance UUIDs) and groups. A VM whose policy is gone is meant as long as
    it has a pair.

    Raises `NotFound` or `BadInput` with what is known instead; nothing that is named is passed over.
    """
    if not names and not groups:
        raise BadInput("nothing is named: give names of VMs, or --group")
    _demand("group", groups, sorted(here.settings.groups))
    _demand("target", targets, sorted(here.settings.targets))
    known = _Known(here)
    found: dict[str, Subject] = {}
    for word, several in (*((name, known.of_vm(name)) for name in names), *known.of_groups(groups)):
        fit = [each for each in several if _fits(each, targets, which)]
        if not fit:
            kind = (
                f"a replica at {', '.join(targets)}" if targets else "a replica" if which == "replicas" else "backups"
            )
            raise BadInput(f"none of {word} has {kind}; for backups say --backups")
        found |= {each.target: each for each in fit}
    return sorted(found.values(), key=lambda each: (each.vm, each.what, each.target))


def _demand(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            raise BadInput(f"--{option} {word!r} is not configured; there are: {', '.join(known) or 'none'}")


def _fits(each: Subject, targets: Sequence[str], which: Which) -> bool:
    if targets:
        return each.pair is not None and each.pair.recovery_target in targets
    return which == "both" or (each.pair is None) == (which == "backups")


class _Known:
    """Who there is, read once however many are named."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.pairs = {(pair.source, pair.recovery_target): pair for pair in here.catalogue.pairs()}

    def of_vm(self, name: str) -> list[Subject]:
        """Its pairs, those that no group wants any more among them, and its backups."""
        there = [vm.identity for vm in self.here.catalogue.inventory() if vm.gone_since is None]
        uuids = {vm.instance_uuid for vm in there if name in (vm.name, vm.instance_uuid)}
        left = [p for p in self.pairs.values() if p.source in uuids or (not uuids and name in (p.vm, p.source))]
        if not uuids and len({pair.source for pair in left}) > 1:
            which = ", ".join(sorted({pair.source for pair in left}))
            raise BadInput(f"several VMs were called {name}: {which}; say which by its instance UUID")
        found = [_replica(pair) for pair in left]
        try:
            for member in dispatch.find(self.here, name):
                made = dispatch.pair_of(self.here, member, self.pairs)
                found += [_replica(made)] if made is not None else []
                found += _chains(member)
        except (NotFound, BadInput):
            if len(uuids) > 1 or not left:
                raise
        return found

    def of_groups(self, names: Sequence[str]) -> Iterator[tuple[str, list[Subject]]]:
        """A VM that can not be replicated as its groups say has no replica, and keeps the others not waiting."""
        members = dispatch.members(self.here) if names else []
        for name in names:
            found: list[Subject] = []
            for member in (each for each in members if each.name == name):
                found += _chains(member)
                try:
                    pair = dispatch.pair_of(self.here, member, self.pairs)
                except UnderstudyError as err:
                    log.warning(str(err), vm=member.vm.identity.name, group=name)
                    pair = self.pairs.get((member.vm.identity.instance_uuid, member.target or ""))
                found += [_replica(pair)] if pair is not None else []
            yield name, found


def _chains(member: dispatch.Member) -> list[Subject]:
    """Its restore points, and their copies."""
    who, group = member.vm.identity, member.group
    whats = {group.store: f"the backups to {group.store}"}
    if group.copying is not None:
        whats[group.copying.to] = f"the copies to {group.copying.to}"
    return [
        Subject(
            vm=who.name,
            source=who.instance_uuid,
            store=store,
            what=what,
            target=backup.target_of(store, who.instance_uuid),
        )
        for store, what in whats.items()
    ]


def _replica(pair: Pair) -> Subject:
    what = f"the replica {pair.site}/{pair.replica_name}"
    target = replicate.target_of(pair.id)
    return Subject(vm=pair.vm, source=pair.source, store=pair.store, what=what, target=target, pair=pair)


def _policy(here: Here, subject: Subject) -> approval.Policy:
    """What the groups that cover it say about full reads."""

    def concerns(group: Group) -> bool:
        if subject.pair is not None:
            return subject.pair.recovery_target in group.targets
        return bool(group.kept_in(subject.store))

    return approval.strictest(policies_of(here, subject.source, concerns))


# --- holding --------------------------------------------------------------------------------------------------------


def pause(here: Here, subject: Subject, *, who: str, reason: str, now: bool = False) -> Answer:
    """Its schedules are skipped until it is resumed. What runs goes on to its end, or with `now` to its checkpoint."""
    return _hold(here, subject, HoldKind.PAUSED, who, reason, now)


def disable(here: Here, subject: Subject, *, who: str, reason: str, now: bool = False) -> Answer:
    """Nothing is started for it until it is enabled, whoever asks."""
    return _hold(here, subject, HoldKind.DISABLED, who, reason, now)


def _hold(here: Here, subject: Subject, kind: HoldKind, who: str, reason: str, now: bool) -> Answer:
    here.catalogue.hold(subject.target, kind, who=who, reason=_said(subject, kind, reason))
    skipped = "its schedules are skipped" if kind is HoldKind.PAUSED else "nothing starts"
    sentence = f"{kind}: {skipped} until `understudy {ENDS[kind]} {subject.vm}`"
    run = _live(here, subject)
    if run is not None and now:
        stopped = here.catalogue.ask_to_stop(run.id, f"stopped by {who}, who {kind} it ({reason})")
        ends = "was stopped" if stopped.state is RunState.STOPPED else "stops at its next checkpoint"
        sentence += f"; the run {run.id} {ends}"
    elif run is not None:
        sentence += f"; the run {run.id} goes on to its end (--now stops it at a checkpoint)"
    return _answer(subject, sentence)


def _said(subject: Subject, kind: HoldKind, reason: str) -> str:
    """Who pauses what was rolled back does not take that back: a sync by name would undo it."""
    paused = (subject.pair.paused if subject.pair is not None else None) or ""
    if kind is not HoldKind.PAUSED or not paused.startswith(ROLLED_BACK):
        return reason
    return f"{paused.partition(ALSO)[0]}{ALSO}{reason}"


def resume(here: Here, subject: Subject) -> Answer:
    """End a pause and a quarantine: what is due starts at the next tick."""
    released = here.catalogue.release(subject.target, [HoldKind.PAUSED])
    last = next(iter(here.catalogue.latest_ended(subject.target, uncounted=quarantine.UNCOUNTED)), None)
    aside = quarantine.quarantined(last, here.settings.tuning)
    said = [f"resumed; it was paused by {held.who} ({held.reason})" for held in released]
    if aside is not None:
        here.catalogue.forgive(subject.target)
        said.append(f"its quarantine ({aside.family}, {aside.failures} failed runs) is ended, what is due is tried")
    off = here.catalogue.holds(subject.target).get(subject.target, {})
    if kind := next((kind for kind in (HoldKind.DISABLED, HoldKind.FORGOTTEN) if kind in off), None):
        said.append(f"it is {kind} (`understudy enable {subject.vm}` ends that)")
    done = bool(released or aside)
    return _answer(subject, "; ".join(said) or "was neither paused nor in quarantine", done=done)


def enable(here: Here, subject: Subject) -> Answer:
    """End what disabled it. A forgotten pair begins anew: with a new replica."""
    released = here.catalogue.release(subject.target, [HoldKind.DISABLED, HoldKind.FORGOTTEN])
    said = [f"enabled; it was {held.kind} by {held.who} ({held.reason})" for held in released]
    return _answer(subject, "; ".join(said) or "was not disabled", done=bool(released))


def approve(here: Here, subject: Subject, *, who: str, reason: str) -> Answer:
    """Let the run that waits for it read or compare everything, once."""
    last = next(iter(here.catalogue.latest_ended(subject.target)), None)
    if last is None or last.run.state is not RunState.NEEDS_APPROVAL:
        return _answer(subject, "nothing waits for approval", done=False)
    if (back_to := last.run.memory.get(BACK_TO)) is not None:
        again = f"`understudy rollback {subject.vm} --to {back_to} --full`"
        return _answer(subject, f"what waits is a rollback, which {again} does, once", done=False)
    if _policy(here, subject).full == "never":
        raise Refused(
            f'{subject}: its group says full = "never"; `understudy {last.run.kind} {subject.vm} --full` does it all '
            "the same, once, or change groups.<name>.full"
        )
    here.catalogue.hold(subject.target, HoldKind.APPROVED, who=who, reason=reason)
    held = here.catalogue.holds(subject.target)[subject.target]
    off = next((kind for kind in ENDS if kind in held), None)
    when = "it starts at the next tick" if off is None else f"but it is {off}: it starts after `understudy {ENDS[off]}"
    when += f" {subject.vm}`" if off is not None else ""
    return _answer(subject, f"approved, {when}: {last.run.memory.get('approval', '')}")


def refused(subject: Subject, why: Exception) -> Answer:
    """The answer for one of several where it can not be done: the others have theirs."""
    return _answer(subject, str(why), done=False)


def _live(here: Here, subject: Subject) -> Run | None:
    latest = here.catalogue.runs(target=subject.target, limit=1)
    return latest[0] if latest and latest[0].live else None


def _answer(subject: Subject, sentence: str, *, done: bool = True) -> Answer:
    return Answer(vm=subject.vm, what=subject.what, target=subject.target, done=done, sentence=sentence)
