"""What people say about pairs and backups: pause, disable, approve, and the taking back of each. Asks no vCenter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from workers import approval, backup, dispatch, quarantine, replicate
from workers.catalogue import ENDS, HoldKind
from workers.errors import BadInput, NotFound, Refused
from workers.members import last_groups_of
from workers.models import Model, Pair, Run, RunState
from workers.run import Here

#: which of a VM's targets are meant
Which = Literal["replicas", "backups", "both"]


class Subject(Model):
    """A target of runs, as people call it."""

    vm: str
    #: "the replica dr/web-01_replica", "the backups to main"
    what: str
    target: str
    #: of the groups that cover it: what they say about full reads
    full: str
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
    """What is meant by these VMs and groups. A VM whose policy is gone is meant as long as it has a pair.

    Raises `NotFound` or `BadInput` with what is known instead.
    """
    if not names and not groups:
        raise BadInput("nothing is named: give names of VMs, or --group")
    _demand("group", groups, sorted(here.settings.groups))
    _demand("target", targets, sorted(here.settings.targets))
    found = list({each.target: each for each in _found(here, names, groups)}.values())
    if targets:
        found = [each for each in found if each.pair is not None and each.pair.recovery_target in targets]
    elif which != "both":
        found = [each for each in found if (each.pair is None) == (which == "backups")]
    if not found:
        kind = f"a replica at {', '.join(targets)}" if targets else "a replica" if which == "replicas" else "backups"
        raise BadInput(f"none of {', '.join([*names, *groups])} has {kind}; for backups say --backups")
    return sorted(found, key=lambda each: (each.vm, each.what))


def _demand(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            raise BadInput(f"--{option} {word!r} is not configured; there are: {', '.join(known) or 'none'}")


def _found(here: Here, names: Sequence[str], groups: Sequence[str]) -> Iterator[Subject]:
    members = [member for member in dispatch.members(here) if member.name in groups]
    for name in names:
        left = here.catalogue.pairs(name)
        for pair in left:
            yield _replica(here, pair)
        try:
            members += dispatch.find(here, name)
        except (NotFound, BadInput):
            if not left:
                raise
    for member in members:
        if (made := dispatch.pair_of(here, member)) is not None:
            yield _replica(here, made)
        uuid, store = member.vm.identity.instance_uuid, member.group.store
        policy = approval.strictest(
            group for group in (here.settings.groups[name] for name in member.groups) if group.store == store
        )
        yield Subject(
            vm=member.vm.identity.name,
            what=f"the backups to {store}",
            target=backup.target_of(store, uuid),
            full=policy.full,
        )


def _replica(here: Here, pair: Pair) -> Subject:
    groups = last_groups_of(here, pair.source).values()
    policy = approval.strictest(group for group in groups if pair.recovery_target in group.targets)
    what = f"the replica {pair.site}/{pair.replica_name}"
    return Subject(vm=pair.vm, what=what, target=replicate.target_of(pair.id), full=policy.full, pair=pair)


# --- holding --------------------------------------------------------------------------------------------------------


def pause(here: Here, subject: Subject, *, who: str, reason: str, now: bool = False) -> Answer:
    """Its schedules are skipped until it is resumed. What runs goes on to its end, or with `now` to its checkpoint."""
    return _hold(here, subject, HoldKind.PAUSED, who, reason, now)


def disable(here: Here, subject: Subject, *, who: str, reason: str, now: bool = False) -> Answer:
    """Nothing is started for it until it is enabled, whoever asks."""
    return _hold(here, subject, HoldKind.DISABLED, who, reason, now)


def _hold(here: Here, subject: Subject, kind: HoldKind, who: str, reason: str, now: bool) -> Answer:
    here.catalogue.hold(subject.target, kind, who=who, reason=reason)
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
    if subject.full == "never":
        raise Refused(
            f'{subject}: its group says full = "never"; `understudy {last.run.kind} {subject.vm} --full` does it all '
            "the same, once, or change groups.<name>.full"
        )
    here.catalogue.hold(subject.target, HoldKind.APPROVED, who=who, reason=reason)
    return _answer(subject, f"approved, it starts at the next tick: {last.run.memory.get('approval', '')}")


def _live(here: Here, subject: Subject) -> Run | None:
    latest = here.catalogue.runs(target=subject.target, limit=1)
    return latest[0] if latest and latest[0].live else None


def _answer(subject: Subject, sentence: str, *, done: bool = True) -> Answer:
    return Answer(vm=subject.vm, what=subject.what, target=subject.target, done=done, sentence=sentence)
