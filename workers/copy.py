"""Copy a VM's restore point: from one store (the point) to the VM's chain in another one (the target)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from workers import copies, faults, helper, prune
from workers.backup import target_of
from workers.copies import CopyPlan, Decision, DiskToCopy, base_of, check_ends, decide
from workers.errors import ConfigError, Conflict, Refused, UnderstudyError
from workers.extents import Extents
from workers.links import toll, turn
from workers.members import Member, members_of
from workers.models import PointDisk, RestorePoint, Run, RunKind, RunReport, RunState, Slice, Trigger
from workers.point import Reader
from workers.restore_held import holder
from workers.run import Here, Live, execute, storage_in_words
from workers.store import Intake, Store
from workers.store.layout import SEGMENT
from workers.stored_point import StoredPoint
from workers.sync import bring_over, sync

log = structlog.get_logger()

#: keys of a run's memory: the source store, the point that was asked for (none = the newest), the one that it is, and
#: what it builds on
FROM, WANTED, POINT, SITUATION = "from", "wanted", "point", "situation"

#: finished segments are made durable and checkpointed this often: what a killed worker sends again at most
FLUSH_EVERY = 20.0


def request(
    here: Here,
    vm: str,
    uuid: str,
    source: str,
    to: str,
    *,
    trigger: Trigger = Trigger.AD_HOC,
    slot: str | None = None,
    point: str | None = None,
) -> tuple[Run, bool]:
    """The run that copies, or the live one that does just that: (run, was it made now?). Nothing is touched yet."""
    check_ends(here.settings, source, to)
    memory = {FROM: source, **({WANTED: point} if point is not None else {})}
    run, made = here.catalogue.request_run(
        RunKind.COPY,
        target_of(to, uuid),
        vm=vm,
        site=copies.where(here.settings, source, to)[0],
        trigger=trigger,
        slot=slot,
        memory=memory,
    )
    same = run.kind is RunKind.COPY and all(run.memory.get(key) == memory.get(key) for key in (FROM, WANTED))
    if not made and not same and trigger is Trigger.AD_HOC:
        raise Refused(
            f"the {run.kind} {run.id} is at work on the restore points of {vm} in {to} just now; nothing was "
            f"requested. Wait until it has ended (`understudy show {run.id}`), then ask again"
        )
    return run, made


def request_due(here: Here, member: Member, trigger: Trigger, slot: str) -> tuple[Run, bool]:
    """What a schedule or a backup sets off. Raises `ConfigError` where the group has no store for copies."""
    if member.group.copying is None:
        raise ConfigError(f"the group {member.name} has no store for copies; set groups.{member.name}.copy")
    who, stores = member.vm.identity, (member.group.store, member.group.copying.to)
    return request(here, who.name, who.instance_uuid, *stores, trigger=trigger, slot=slot)


def after_backup(here: Here, uuid: str, store: str, slot: str, may: Callable[[str], bool]) -> list[Run]:
    """The copies that a finished backup sets off; a tick would find them too. `may`: whether nobody holds it."""
    fresh: dict[str, Run] = {}
    for member in members_of(here, uuid):
        group = member.group
        if group.copying is None or group.store != store or not group.copying.after_backup:
            continue
        if may(target_of(group.copying.to, uuid)):
            try:
                run, made = request_due(here, member, Trigger.AFTER_BACKUP, slot)
                fresh |= {run.id: run} if made else {}
            except UnderstudyError as err:  # a copy's trouble must not keep the replicas waiting
                log.error(str(err), vm=member.vm.identity.name, group=member.name)
    return list(fresh.values())


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a copy run."""
    return execute(here, run_id, RunKind.COPY, _copy)


def help_out(here: Here, run_id: str) -> RunReport:
    """Work on free slices of a copy that another worker began."""
    return helper.help_out(here, run_id, RunKind.COPY, _help, run)


class _Ends:
    """The two stores of a run."""

    def __init__(self, live: Live) -> None:
        _, self.to, self.uuid = live.run.target.split(":", 2)
        self.source = live.recall(FROM) or ""
        settings = live.here.settings
        check_ends(settings, self.source, self.to)
        self.there = Store.at(settings.store(self.source))
        self.here = Store.at(settings.store(self.to))
        if self.there.id == self.here.id:
            raise Refused(
                f"{self.source} and {self.to} are one and the same store, under two names; nothing was copied"
            )

    def decide(self, live: Live) -> Decision:
        return _decide(
            self.there,
            self.here,
            self.uuid,
            live.run.vm,
            (self.source, self.to),
            live.recall(POINT) or live.recall(WANTED),
        )


def _decide(there: Store, here: Store, uuid: str, vm: str, names: tuple[str, str], wanted: str | None) -> Decision:
    ids = (there.id, here.id)
    return decide(there.points(uuid), here.points(uuid), vm=vm, names=names, ids=ids, wanted=wanted)


def _copy(live: Live) -> RunReport:
    ends = _Ends(live)
    newest = ends.here.newest(ends.uuid)
    if newest is not None and newest.run == live.run.id:  # stopped between the manifest and the catalogue
        ends.here.abandon(live.run.id)
        return _committed(live, ends, newest)
    decision = ends.decide(live)
    if decision.mode == "nothing" or decision.point is None:
        ends.here.abandon(live.run.id)
        _unpin(live, ends)
        live.note(decision.reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", decision.reason))
    if not live.planned:
        turn(live, ends.source, ends.to)
    _hold(live, ends, decision)
    with ends.here.intake(live.run.id, ends.there, toll(live, ends.source, ends.to)) as intake:
        target = CopiedChain(live, ends, intake, decision)
        try:
            return sync(StoredPoint(ends.there, decision.point), target, live)
        except Conflict:
            live.forget_slices()  # somebody was faster: what is there is looked at again
            raise


def _help(live: helper.Helper) -> None:
    ends = _Ends(live)
    decision = ends.decide(live)
    if decision.point is None or live.recall(SITUATION) != _situation(decision):
        raise helper.NotAsLeft
    turn(live, ends.source, ends.to)
    try:
        with ends.here.intake(live.run.id, ends.there, toll(live, ends.source, ends.to)) as intake:
            target = CopiedChain(live, ends, intake, decision)
            bring_over(StoredPoint(ends.there, decision.point), target, live, target.take())
    finally:
        if not live.here.catalogue.run(live.run.id).live:
            ends.here.abandon(live.run.id)  # it ended before we registered: prune would wait for us


def _hold(live: Live, ends: _Ends, decision: Decision) -> None:
    """The point stays in the source store until it is copied; the plan of an earlier message, if it is still so."""
    assert decision.point is not None
    situation = _situation(decision)
    if live.planned and live.recall(SITUATION) != situation:
        live.forget_slices()
        live.note("the checkpoints of this run are given up: what the two stores have is not what they were made for")
    live.remember(pinned="yes", **{POINT: decision.point.id, SITUATION: situation})
    ends.there.pin(ends.uuid, decision.point.id, holder(live.here.catalogue.realm, live.run.id))
    faults.at("copy.pinned")
    live.note(
        f"{decision.point.id} from {ends.source} to {ends.to}: {decision.reason}",
        copies.where(live.here.settings, ends.source, ends.to)[1],
    )


def _situation(decision: Decision) -> str:
    return f"{decision.point.id if decision.point else ''} on {decision.base[1].id if decision.base else 'nothing'}"


class CopiedChain:
    """A VM's restore points in one store, as the target of a copy from another store."""

    def __init__(self, live: Live, ends: _Ends, intake: Intake, decision: Decision) -> None:
        assert decision.point is not None
        self.live = live
        self.ends = ends
        self.intake = intake
        self.decision = decision
        self.point = decision.point
        self._parts = {part.disk.id: part for part in self.point.disks}
        self._bases = {disk: _base(ends.here, decision, disk) for disk in self._parts}
        self._pending: list[Slice] = []
        self._flushed = time.monotonic()

    def nothing_new(self) -> str | None:
        return None

    def take(self) -> Mapping[str, Extents]:
        return {disk: _differs(self.ends.there, self._bases[disk], part) for disk, part in self._parts.items()}

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        part, base = self._parts[disk], self._bases[disk]
        size = part.disk.capacity
        for start in range(0, size, SEGMENT):
            end = min(start + SEGMENT, size)
            # Where a disk ended or ends, its last segment may hold less than the base's.
            edge = base is not None and base[0].disk.capacity != size and end in (size, base[0].disk.capacity)
            if edge or todo.clip(start, end):
                yield start, end

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        disk, base = self._parts[part.disk], self._bases[part.disk]
        made = self.intake.bring(
            part.start // SEGMENT,
            there=disk,
            todo=_differs(self.ends.there, base, disk).clip(part.start, part.end),
            base=base[1] if base is not None else None,
            threads=self.live.threads,
            until=self.live.deadline,
        )
        sums = {"read": part.read + made.sent, "stored": part.stored + made.stored}
        if made.segment is None:
            self._pending.append(part.model_copy(update={**sums, "done": max(part.done, made.done)}))
            return self.flush()
        done = {"done": part.end, "made": made.segment.name, "written": made.segment.changed}
        self._pending.append(part.model_copy(update={**sums, **done}))
        now = time.monotonic()
        if now > self.live.deadline or now - self._flushed > FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self.intake.flush()
            self.live.checkpoint(*self._pending)
            self._pending.clear()
        self._flushed = time.monotonic()

    def commit(self) -> RunReport:
        self.flush()
        self.live.check()
        made = self.live.here.catalogue.slices(self.live.run.id)
        copied = self.point.model_copy(
            update={
                "run": self.live.run.id,
                "fence": self.live.run.fence,
                "created": self.live.here.catalogue.now(),
                "copied_from": self.ends.there.id,
                "disks": tuple(
                    self._disk(part, [s for s in made if s.disk == part.disk.id]) for part in self.point.disks
                ),
            }
        )
        faults.at("copy.before")
        self.intake.commit(copied)
        faults.at("copy.after")
        return _committed(self.live, self.ends, copied)

    def _disk(self, part: PointDisk, made: list[Slice]) -> PointDisk:
        """The base's segments, with those that this run made in their places."""
        base = self._bases[part.disk.id]
        names = list(base[1].segments[: len(part.segments)]) if base is not None else []
        names += [""] * (len(part.segments) - len(names))
        for each in made:
            names[each.start // SEGMENT] = each.made
        sums = {key: sum(getattr(each, key) for each in made) for key in ("read", "stored")}
        changed = sum(each.written for each in made)
        return part.model_copy(update={"segments": tuple(names), "changed": changed, **sums})


def _base(store: Store, decision: Decision, disk: str) -> tuple[PointDisk, PointDisk] | None:
    """What is damaged in the store is not built upon."""
    base = base_of(decision, disk)
    return None if base is None or decision.base is None or store.suspect(decision.base[1], disk) else base


def _differs(there: Store, base: tuple[PointDisk, PointDisk] | None, part: PointDisk) -> Extents:
    return there.diff(base[0] if base is not None else None, part)


def _committed(live: Live, ends: _Ends, point: RestorePoint) -> RunReport:
    """The manifest is in the store: tell the catalogue, let the source's go. Repeatable."""
    live.here.catalogue.record_point(ends.to, point)
    _unpin(live, ends)
    faults.at("copy.unpinned")
    report = live.report("succeeded", f"copied from {ends.source}", point.id)
    live.finish(RunState.SUCCEEDED, report)
    try:  # retention; the run itself has ended well
        with storage_in_words():
            rules = prune.rules_of(live.here, ends.to, ends.uuid)
            for trouble in prune.retire(live.here, ends.to, ends.here, ends.uuid, rules).troubles:
                live.note(trouble)
    except UnderstudyError as err:
        live.note(f"old copies are kept until the next one: {err}")
    return report


def _unpin(live: Live, ends: _Ends) -> None:
    if (point := live.recall(POINT)) is not None:
        ends.there.unpin(ends.uuid, point, holder(live.here.catalogue.realm, live.run.id))
        live.remember(pinned=None)


def preview(here: Here, vm: str, uuid: str, source: str, to: str, point: str | None = None) -> CopyPlan:
    """What a copy would do now, and why. Reads only."""
    check_ends(here.settings, source, to)
    there = Store.at(here.settings.store(source))
    target = Store.at(here.settings.store(to))
    if there.id == target.id:
        raise Refused(f"{source} and {to} are one and the same store, under two names")
    decision = _decide(there, target, uuid, vm, (source, to), point)
    disks = []
    if decision.mode != "nothing" and decision.point is not None:
        for part in decision.point.disks:
            base = _base(target, decision, part.disk.id)
            mode = "delta" if base is not None else "full"
            disks.append(DiskToCopy(label=part.disk.label, mode=mode, bytes=_differs(there, base, part).total))
    return CopyPlan(
        vm=vm,
        source=source,
        to=to,
        point=decision.point.id if decision.point is not None else None,
        base=decision.base[1].id if decision.base is not None else None,
        nothing_new=decision.mode == "nothing",
        reason=decision.reason,
        where=copies.where(here.settings, source, to)[1],
        disks=tuple(disks),
    )
