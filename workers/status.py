"""How every VM is protected, in one word and one sentence: derived from the catalogue, never stored."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum

from workers import backup, dispatch, replicate
from workers.catalogue import Ended, KnownVm, PointSummary
from workers.errors import NotFound
from workers.grace import farewell
from workers.members import Roll
from workers.models import Model, Pair, Run, RunKind, RunState, SyncPoint
from workers.replica_held import BACK_TO
from workers.run import Here


class State(StrEnum):
    """The words of a status. The first two pairs are of what is kept, the others of the work on it."""

    NEVER_BACKED_UP = "never backed up"
    BACKED_UP = "backed up"
    NEVER_SYNCED = "never synced"
    IN_SYNC = "in sync"
    NEEDS_SYNC = "needs sync"
    QUEUED = "queued"
    STARTING = "starting"
    IN_PROGRESS = "in progress"
    PAUSED = "paused"
    TOUCHED = "touched"
    FAILED = "failed"


class Status(Model):
    state: State
    #: why, where there is more to say: an error, a person's reason to pause
    sentence: str = ""
    #: the age of the data in seconds; None when there is none
    lag: float | None = None


def status(
    pair: Pair | None,
    newest: PointSummary | None,
    synced: SyncPoint | None,
    live: Run | None,
    last: Ended | None,
    now: datetime,
) -> Status:
    """The status of a pair, or without one of a VM's backups. `live` and `last` are the runs of that very target.

    What is being done comes first, then what a person decided or has to decide, then how the data stand.
    """
    held = (newest if pair is None else synced) or None
    lag = None if held is None else max(0.0, (now - held.data_time).total_seconds())
    if live is not None:
        state, sentence = _live(live, now)
    elif pair is not None and pair.paused is not None:
        state, sentence = State.PAUSED, pair.paused
    elif last is not None and last.run.state is RunState.FAILED:
        state = State.TOUCHED if last.family == "touched" else State.FAILED
        sentence = last.run.error or "no reason was recorded"
    else:
        state, sentence = _settled(pair, newest, synced), ""
    return Status(state=state, sentence=sentence, lag=lag)


def _live(run: Run, now: datetime) -> tuple[State, str]:
    if run.state is RunState.QUEUED:
        if run.error is not None and run.not_before is not None and run.not_before > now:
            return State.QUEUED, f"tried again in {(run.not_before - now).total_seconds():.0f} s: {run.error}"
        return State.QUEUED, run.error or ""
    state = State.IN_PROGRESS if run.memory.get("planned") else State.STARTING
    if run.lease_until is not None and run.lease_until < now:
        silent = (now - run.lease_until).total_seconds()
        return state, f"its worker's lease ran out {silent:.0f} s ago; it is handed to another one by itself"
    return state, ""


def _settled(pair: Pair | None, newest: PointSummary | None, synced: SyncPoint | None) -> State:
    if pair is None:
        return State.BACKED_UP if newest is not None else State.NEVER_BACKED_UP
    if synced is None:
        return State.NEVER_SYNCED
    # Without a restore point in the pair's store (it was exchanged, say) nothing shows that the replica is current.
    return State.IN_SYNC if newest is not None and synced.point == newest.id else State.NEEDS_SYNC


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
    #: what concerns the VM itself: gone from its vCenter, under no policy any more
    remark: str = ""

    @property
    def state(self) -> State:
        return (self.sync or self.backup).state

    @property
    def troubles(self) -> Iterator[str]:
        """Every sentence there is: a pair in sync whose backups fail is in trouble too."""
        for label, part in (("backup", self.backup), ("sync", self.sync)):
            if part is not None and part.sentence:
                yield f"{label}: {part.sentence}"
        if self.remark:
            yield self.remark


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
        self.last = {ended.run.target: ended for ended in catalogue.latest_ended()}


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
    remarks: dict[tuple[str, str, str | None], str] = {}
    for member in known.roll.members():
        key = (member.vm.identity.instance_uuid, member.group.store, member.target)
        remarks[key] = dispatch.objection(here, member) or ""
        keys.setdefault(key, []).append(member.name)
    for pair_key in known.pairs:
        keys.setdefault(pair_key, [])
    covered = {(uuid, store) for uuid, store, _ in keys}
    for uuid, store in known.newest.keys() - covered:
        keys[uuid, store, None] = []
    for (uuid, store, target), groups in keys.items():
        yield _line(known, uuid, store, target, groups, remarks.get((uuid, store, target), ""))


def _line(known: _Known, uuid: str, store: str, target: str | None, groups: Iterable[str], remark: str) -> Protected:
    vm, newest = known.vms.get(uuid), known.newest.get((uuid, store))
    pair = known.pairs.get((uuid, store, target)) if target is not None else None
    chain = backup.target_of(store, uuid)
    fenced = replicate.target_of(pair.id) if pair is not None else ""
    synced = known.synced.get(pair.id) if pair is not None else None
    live = [known.live[t] for t in (chain, fenced) if t in known.live]
    sync: Status | None = None
    if pair is not None:
        sync = status(pair, newest, synced, known.live.get(fenced), known.last.get(fenced), known.now)
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
        backup=status(None, newest, None, known.live.get(chain), known.last.get(chain), known.now),
        sync=sync,
        newest=newest,
        sync_point=synced,
        live=tuple(live),
        last_backup=known.last.get(chain),
        last_sync=known.last.get(fenced),
        remark=_remark(vm, groups, farewell(known.roll, uuid)) or remark,
    )


def _remark(vm: KnownVm | None, groups: Iterable[str], farewell: str) -> str:
    if vm is None:
        return "no inventory has this VM; what is kept of it stays"
    if vm.gone_since is not None:
        gone = f"the VM is gone from its vCenter since {vm.gone_since:%Y-%m-%d %H:%M} UTC"
        return f"{gone}; {farewell or 'what is kept of it stays'}"
    if groups:
        return ""
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
