"""How every VM is protected, in one word and one sentence: derived from the catalogue, never stored."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from workers import backup, dispatch, quarantine, replicate, scrub, store_scrub, verify
from workers.catalogue import Damage, Ended, HalfApplied, HoldKind, KnownVm, PointSummary, Scrub
from workers.errors import BadInput, NotFound, ValidationFailed
from workers.grace import farewell
from workers.members import Roll
from workers.membership import matches
from workers.models import Model, Pair, Run, RunKind, RunState, SyncPoint
from workers.replica_held import BACK_TO
from workers.replica_verify import differs
from workers.run import Here
from workers.settings import seconds
from workers.state import PROBLEMS, Failover, State, Status, status


class Protected(Model):
    """A line of `understudy status`: a VM's backups in one store and, with a recovery target, their replica."""

    vm: str
    #: instance UUID
    source: str
    source_site: str
    #: configured groups that cover it; none = its policy is gone, what is kept is not
    groups: tuple[str, ...]
    store: str
    recovery_target: str | None
    pair: Pair | None
    backup: Status
    sync: Status | None
    newest: PointSummary | None
    sync_point: SyncPoint | None
    live: tuple[Run, ...]
    last_backup: Ended | None
    last_sync: Ended | None
    #: how far the replica was compared with its sync point, and where it differs
    scrub: Scrub | None = None
    #: seconds since a part of it was to be compared; None = nothing is due
    scrub_late: float | None = None
    #: the same of the store
    store_scrub: Scrub | None = None
    store_scrub_late: float | None = None
    damages: tuple[Damage, ...] = ()
    last_verify: Run | None = None
    #: a sync stopped half way, or is under way
    half_applied: HalfApplied | None = None
    #: what concerns the VM itself: gone from its vCenter, under no policy any more
    remark: str = ""
    #: why nothing is replicated, whatever the states say: the configuration contradicts itself
    objection: str = ""

    @property
    def state(self) -> State:
        return (self.sync or self.backup).state

    @property
    def failover(self) -> Failover:
        return (self.sync or self.backup).failover

    @property
    def lag(self) -> float | None:
        return (self.sync or self.backup).lag

    @property
    def problem(self) -> bool:
        """Whether somebody should look at it: at the replica, or at the backups that feed it."""
        blocked = bool(self.objection) and self.state is not State.DISABLED
        return blocked or any(part is not None and part.problem for part in (self.backup, self.sync))

    @property
    def troubles(self) -> Iterator[str]:
        """Every sentence there is: a pair in sync whose backups fail is in trouble too."""
        for label, part in (("backup", self.backup), ("sync", self.sync)):
            if part is not None and part.sentence:
                yield f"{label}: {part.sentence}"
        checked = self.last_verify
        if checked is not None and checked.family not in (None, ValidationFailed.family):
            yield f"verify: {checked.error}"
        if self.state not in (State.DISABLED, State.PAUSED):
            whole = self.scrub.whole_ended if self.scrub is not None else None
            yield from filter(None, [scrub.lateness("verify: the scrub of the replica", self.scrub_late, whole)])
        if self.half_applied is not None and not any(_writes(run) for run in self.live):
            yield f"replica: {half_applied_words(self.vm, self.half_applied)}"
        yield from filter(None, (self.objection, self.remark))


def _writes(run: Run) -> bool:
    return run.kind is RunKind.SYNC and run.state is RunState.RUNNING


def half_applied_words(vm: str, half: HalfApplied) -> str:
    kept = ", by what was kept of it beside the replica's disks" if half.undo else ""
    return (
        f"half-applied since {half.since:%Y-%m-%d %H:%M} UTC: its disks hold parts of {half.base} and of "
        f"{half.toward}. `understudy sync {vm}` completes it, `understudy rollback {vm} --to-sync-point` brings "
        f"it back to {half.base}{kept}"
    )


def half_applied(here: Here, name: str) -> list[str]:
    """Of the replicas of a VM (name or instance UUID): which are half-applied, and what can be done, in sentences."""
    known = here.catalogue.half_applied()
    return [
        f"the replica {pair.site}/{pair.replica_name} is {half_applied_words(pair.vm, known[pair.id])}"
        for pair in here.catalogue.pairs(name)
        if pair.id in known
    ]


class _Known:
    """All that the lines are made of, in a fixed number of queries however many VMs there are."""

    def __init__(self, here: Here) -> None:
        catalogue = here.catalogue
        self.now = catalogue.now()
        self.roll = Roll(here)
        self.vms = {vm.identity.instance_uuid: vm for vm in self.roll.vms}
        self.pairs = {(pair.source, pair.store, pair.recovery_target): pair for pair in catalogue.pairs()}
        self.newest = {(point.vm, point.store): point for point in catalogue.newest_points()}
        self.synced = {point.pair: point for point in catalogue.latest_sync_points()}
        self.live = {run.target: run for run in catalogue.live_runs()}
        ended = catalogue.latest_ended(uncounted=quarantine.UNCOUNTED)
        self.last = {each.run.target: each for each in ended}
        self.held = catalogue.holds()
        self.scrubs = catalogue.scrubs()
        self.verified = catalogue.latest_verifications()
        self.damages: dict[str, list[Damage]] = {}
        for each in catalogue.damages():
            self.damages.setdefault(each.target, []).append(each)
        self.half = catalogue.half_applied()
        self.stores = store_scrub.parts_due(here, self.scrubs, self.newest.values(), self.now)
        self.groups = here.settings.groups
        self.tuning = here.settings.tuning

    def status(
        self, pair: Pair | None, newest: PointSummary | None, target: str, groups: Iterable[str], *, alone: bool
    ) -> Status:
        """Of a pair or of a chain of backups; the RPO counts for the replica, or for backups that stand alone."""
        limits = [rpo for name in groups if (rpo := self.groups[name].rpo) is not None] if alone else []
        return status(
            pair,
            newest,
            self.synced.get(pair.id) if pair is not None else None,
            self.live.get(target),
            self.last.get(target),
            self.now,
            held={str(kind): said for kind, said in self.held.get(target, {}).items()},
            rpo=min(map(seconds, limits), default=None),
            tuning=self.tuning,
            damage=self._damage(pair, target),
            back=(last := self.last.get(target)) is not None and BACK_TO in last.run.memory,
        )

    def late(self, part_due: datetime | None) -> float | None:
        return (self.now - part_due).total_seconds() if part_due is not None else None

    def _damage(self, pair: Pair | None, target: str) -> str:
        found = self.damages.get(target)
        return differs(pair.replica_name, pair.vm, found, {}) if pair is not None and found else ""


def overview(here: Here, names: Sequence[str] = ()) -> list[Protected]:
    """One line for each pair and for each VM that is only backed up: all of them, or the named VMs'.

    What is kept of a VM that is gone, or that no group covers any more, stays in it. Raises `NotFound`.
    """
    known = _Known(here)
    lines = sorted(_lines(here, known), key=lambda line: (line.vm, line.source, line.store, line.recovery_target or ""))
    if not names:
        return lines
    for name in names:
        if not any(name in (line.vm, line.source) for line in lines):
            raise NotFound(_unknown(name, lines, known.vms.values()))
    return [line for line in lines if line.vm in names or line.source in names]


def _lines(here: Here, known: _Known) -> Iterator[Protected]:
    keys: dict[tuple[str, str, str | None], list[str]] = {}
    objections: dict[tuple[str, str, str | None], str] = {}
    members = known.roll.members()
    for member in members:
        key = (member.vm.identity.instance_uuid, member.group.store, member.target)
        pair = known.pairs.get((key[0], key[1], key[2])) if key[2] is not None else None
        objections[key] = dispatch.objection(here, member) or dispatch.misplaced(here, pair) or ""
        keys.setdefault(key, []).append(member.name)
    for pair_key, pair in known.pairs.items():
        if HoldKind.FORGOTTEN not in known.held.get(replicate.target_of(pair.id), {}):
            keys.setdefault(pair_key, [])
    copied = {(m.vm.identity.instance_uuid, m.group.copying.to): m.group.store for m in members if m.group.copying}
    for uuid, store in copied:
        keys.setdefault((uuid, store, None), [])
    covered = {(uuid, store) for uuid, store, _ in keys}
    for uuid, store in known.newest.keys() - covered:
        keys[uuid, store, None] = []
    for (uuid, store, target), groups in keys.items():
        copied_from = copied.get((uuid, store), "") if target is None else ""
        yield _line(known, uuid, store, target, groups, objections.get((uuid, store, target), ""), copied_from)


def _line(
    known: _Known, uuid: str, store: str, target: str | None, groups: Iterable[str], objection: str, copied_from: str
) -> Protected:
    vm, newest = known.vms.get(uuid), known.newest.get((uuid, store))
    pair = known.pairs.get((uuid, store, target)) if target is not None else None
    chain = backup.target_of(store, uuid)
    fenced = replicate.target_of(pair.id) if pair is not None else ""
    synced = known.synced.get(pair.id) if pair is not None else None
    live = [known.live[t] for t in (chain, fenced) if t in known.live]
    sync: Status | None = None
    if pair is not None:
        sync = known.status(pair, newest, fenced, groups, alone=True)
    elif target is not None:
        sync = Status(state=State.NEVER_SYNCED)
    return Protected(
        vm=vm.identity.name if vm is not None else pair.vm if pair is not None else newest.name if newest else uuid,
        source=uuid,
        source_site=vm.identity.site if vm is not None else pair.source_site if pair is not None else "",
        groups=tuple(groups),
        store=store,
        recovery_target=target,
        pair=pair,
        backup=known.status(None, newest, chain, groups, alone=target is None),
        sync=sync,
        newest=newest,
        sync_point=synced,
        live=tuple(live),
        last_backup=known.last.get(chain),
        last_sync=known.last.get(fenced),
        scrub=known.scrubs.get(fenced),
        scrub_late=known.late(_part_due(known, pair, groups)),
        store_scrub=known.scrubs.get(store_scrub.target_of(store)),
        store_scrub_late=known.late(known.stores.get(store)),
        damages=tuple(known.damages.get(fenced, [])),
        last_verify=known.verified.get(fenced),
        half_applied=known.half.get(pair.id) if pair is not None else None,
        remark=_remark(vm, groups, farewell(known.roll, uuid), _moved(known.roll, uuid, pair, store, copied_from)),
        objection=objection,
    )


def _part_due(known: _Known, pair: Pair | None, groups: Iterable[str]) -> datetime | None:
    if pair is None:
        return None
    compared = known.scrubs.get(replicate.target_of(pair.id))
    return verify.part_due(map(known.groups.__getitem__, groups), pair, known.synced.get(pair.id), compared, known.now)


def late_stores(lines: Iterable[Protected]) -> list[str]:
    """Of the stores of these lines whose scrub is late, a sentence each."""
    said = (
        scrub.lateness(
            f"the scrub of the store {line.store}",
            line.store_scrub_late,
            line.store_scrub.whole_ended if line.store_scrub is not None else None,
        )
        for line in lines
    )
    return list(dict.fromkeys(filter(None, said)))


def _moved(roll: Roll, uuid: str, pair: Pair | None, store: str, copied_from: str) -> str:
    """What becomes of a line that no group asks for, of a VM that is in others; empty when it is in none."""
    names = ", ".join(roll.groups_of(uuid))
    if not names:
        return ""
    if copied_from:
        return f"copies of the restore points in {copied_from}"
    if pair is None:
        return f"its groups now ({names}) have another store: what is in {store} stays, nothing new is added"
    command = f"`understudy forget {pair.vm} --target {pair.recovery_target}`"
    return (
        f"its groups now ({names}) do not replicate it to {pair.recovery_target} from {store}: this replica stays as "
        f"it is. When nobody needs it any more, {command} ends that, and --with-replica removes it"
    )


def _remark(vm: KnownVm | None, groups: Iterable[str], farewell: str, moved: str) -> str:
    if vm is None:
        return "no inventory has this VM; what is kept of it stays"
    if vm.gone_since is not None:
        gone = f"the VM is gone from its vCenter since {vm.gone_since:%Y-%m-%d %H:%M} UTC"
        return f"{gone}; {farewell or 'what is kept of it stays'}"
    if groups:
        return ""
    if moved:
        return moved
    return f"no group covers this VM any more: nothing new is made; {farewell or 'what is kept of it stays'}"


def _unknown(name: str, lines: Sequence[Protected], vms: Iterable[KnownVm]) -> str:
    if any(name in (vm.identity.name, vm.identity.instance_uuid) for vm in vms):
        return f"the VM {name} is under no group's policy; `understudy group why {name}` says why"
    near = difflib.get_close_matches(name, [line.vm for line in lines], n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    return f"no VM {name!r} is protected or known{hint}. Is it new? `understudy check` reads the inventories"


def kind_of(run: Run) -> str:
    """What a run does, for people."""
    return "rollback" if run.kind is RunKind.SYNC and BACK_TO in run.memory else str(run.kind)


class Filter(Model):
    """Which lines are asked for: all that is set must fit."""

    states: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    #: of the source or of the replica
    sites: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    #: patterns with * and ?
    names: tuple[str, ...] = ()
    #: seconds: the data is older, or there is none
    older: float | None = None
    problems: bool = False


def selected(here: Here, lines: Sequence[Protected], wanted: Filter) -> list[Protected]:
    """The lines that fit. Raises `BadInput` for a word that can fit none."""
    _demand("state", wanted.states, [str(state) for state in (*State, *Failover)])
    _demand("group", wanted.groups, here.settings.groups)
    _demand("site", wanted.sites, here.settings.sites)
    _demand("target", wanted.targets, here.settings.targets)
    return [line for line in lines if _fits(line, wanted)]


def _demand(option: str, given: Iterable[str], known: Collection[str]) -> None:
    for word in given:
        if word not in known:
            raise BadInput(f"--{option} {word!r} is not known here; it is one of: {', '.join(sorted(known))}")


def _fits(line: Protected, wanted: Filter) -> bool:
    sites = {line.source_site, *([line.pair.site] if line.pair is not None else [])}
    return (
        (not wanted.states or not {line.state, line.backup.state, line.failover}.isdisjoint(wanted.states))
        and (not wanted.groups or not set(wanted.groups).isdisjoint(line.groups))
        and (not wanted.sites or not sites.isdisjoint(wanted.sites))
        and (not wanted.targets or line.recovery_target in wanted.targets)
        and (not wanted.names or any(matches(pattern, line.vm) for pattern in wanted.names))
        and (wanted.older is None or line.lag is None or line.lag > wanted.older)
        and (not wanted.problems or line.problem)
    )


#: how lines may be ordered: by name, the oldest data first, the worst first
ORDERS = ("name", "lag", "state")


def ordered(lines: Sequence[Protected], by: str) -> list[Protected]:
    """Stable, so that lines of equal rank stay in the order of their names."""
    if by == "lag":
        return sorted(lines, key=lambda line: (line.lag is not None, -(line.lag or 0)))
    if by == "state":
        ranks = {state: number for number, state in enumerate(PROBLEMS)}
        return sorted(lines, key=lambda line: (not line.problem, ranks.get(line.state, len(ranks)), line.state))
    if by != "name":
        raise BadInput(f"--sort {by!r} is not known; it is one of: {', '.join(ORDERS)}")
    return list(lines)


def summary(lines: Sequence[Protected]) -> str:
    """How many of each state, the most frequent first."""
    counts = Counter(str(line.state) for line in lines).most_common()
    problems = sum(line.problem for line in lines)
    told = ", ".join(f"{count} {state}" for state, count in counts)
    return f"{len(lines)} shown: {told or 'none'}; {problems or 'none'} with a problem"
