"""Roll a replica back, or forwards again, to a restore point that a person names: by differences, then it stays there.

It is a sync to another goal than the newest point. The pair is paused before anything is written, or the next
tick would undo what was asked for.
"""

from __future__ import annotations

from workers import sources
from workers.catalogue import PointSummary
from workers.errors import BadInput, NotFound, Refused
from workers.members import last_groups_of
from workers.models import Pair, Run, RunKind, SyncPlan, Trigger
from workers.replica import Replica
from workers.replica_held import BACK_TO
from workers.replicate import target_of
from workers.restore_points import choose
from workers.run import Here
from workers.undo import SYNC_POINT, WAY


def pair_of(here: Here, vm: str, target: str | None) -> Pair:
    """The pair of this VM (name or instance UUID); `target` says which where it has several."""
    found = [p for p in here.catalogue.pairs(vm) if target in (None, p.recovery_target)]
    if not found:
        wanted = f"to the recovery target {target} " if target else ""
        raise NotFound(f"the VM {vm} has no replica {wanted}here; `understudy status` shows those there are")
    if len(sources := {p.source for p in found}) > 1:
        raise BadInput(f"several VMs are called {vm}; say which by its instance UUID: {', '.join(sorted(sources))}")
    if len(found) > 1:
        names = ", ".join(f"{p.recovery_target} ({p.site}/{p.replica_name})" for p in found)
        raise BadInput(f"{vm} has {len(found)} replicas; say which with --target: {names}")
    return found[0]


def goal_of(here: Here, pair: Pair, wanted: str | None) -> PointSummary:
    """The restore point to go to; None is the one before the present one."""
    points = _points(here, pair)
    if wanted is not None:
        return choose(points, wanted, whose=pair.vm)
    held = here.catalogue.sync_point(pair.id)
    if held is None:
        raise Refused(f"the replica of {pair.vm} has no sync point yet, so there is nothing to go back from")
    before = [p for p in points if p.seq < _sequence(points, held.point)]
    if not before:
        raise NotFound(
            f"there is no restore point of {pair.vm} before {held.point}, which the replica holds; "
            f"`understudy points {pair.vm}` lists those there are"
        )
    return before[-1]


def _points(here: Here, pair: Pair) -> list[PointSummary]:
    """Of all stores that the pair is brought up from, each point once."""
    stores = sources.order(last_groups_of(here, pair.source).values(), pair.recovery_target, pair.store)
    found = {point.id: point for store in reversed(stores) for point in here.catalogue.points(pair.source, store)}
    return sorted(found.values(), key=lambda point: point.seq)


def _sequence(points: list[PointSummary], held: str) -> int:
    """A point that is retired by now still says its number, with which its id begins."""
    return next((p.seq for p in points if p.id == held), int(held.partition("-")[0]))


def request(here: Here, pair: Pair, point: str, *, full: str | None = None) -> tuple[Run, bool]:
    """The run that brings the pair's replica to `point`, or the live one that does just that. `full`: why every block
    is compared."""
    run, made = here.catalogue.request_run(
        RunKind.SYNC,
        target_of(pair.id),
        vm=pair.vm,
        site=pair.site,
        trigger=Trigger.AD_HOC,
        pair=pair.id,
        memory={BACK_TO: point, **({"full": full} if full else {})},
    )
    at_it = {run.memory.get(BACK_TO), SYNC_POINT if WAY in run.memory else None}
    if point not in at_it:
        raise Refused(
            f"run {run.id} is at work on the replica {pair.replica_name} just now; nothing was requested. "
            f"Wait until it has ended (`understudy show {run.id}`), then ask again"
        )
    return run, made


def preview(here: Here, pair: Pair, point: str, *, full: str | None = None) -> SyncPlan:
    """What the rollback would do now, and why. Reads only."""
    return Replica(here, pair, back_to=point, full=full).plan()
