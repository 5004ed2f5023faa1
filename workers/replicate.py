"""Replicate a VM: from a restore point in a store (the point) to a replica in another vCenter (the target)."""

from __future__ import annotations

from workers import helper, places
from workers.links import toll, turn
from workers.models import Pair, RunKind, RunReport, RunState, SyncPlan, Trigger
from workers.replica import Replica
from workers.replica_held import BACK_TO, ROLLED_BACK, SOURCE, stay_there
from workers.replica_target import ReplicaTarget
from workers.run import Here, Live, execute
from workers.stored_point import StoredPoint
from workers.sync import bring_over, sync
from workers.undo import SYNC_POINT, roll_back


def target_of(pair: str) -> str:
    """What a sync run fences: the pair's replica."""
    return f"pair:{pair}"


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a sync run."""
    return execute(here, run_id, RunKind.SYNC, _replicate)


def preview(here: Here, pair: Pair, *, discard: bool = False, full: str | None = None) -> SyncPlan:
    """What a sync of this pair would do now, and why. Reads only. `full`: a reason to compare every block."""
    return Replica(here, pair, discard=discard, full=full).plan()


def _replicate(live: Live) -> RunReport:
    pair = live.here.catalogue.pair(live.run.target.removeprefix("pair:"))
    back_to = live.recall(BACK_TO)
    if pair.paused is not None and back_to is None and live.recall("point") is None and _kept_back(live, pair.paused):
        # whoever requested it may have looked before the pause: the last look is this one
        reason = f"nothing was done, for the pair is paused: {pair.paused}; `understudy resume {pair.vm}` ends that"
        live.note(reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
    if back_to == SYNC_POINT:
        return roll_back(live, pair, first=lambda point: stay_there(live.here, pair, point))
    target = ReplicaTarget(live, pair)
    if target.committed_by(live.run.id):  # stopped between the cursor and the catalogue
        return target.conclude()
    if target.goal is not None:
        live.remember(point=target.goal.id, **{SOURCE: target.source})
    if target.decision.mode != "nothing" and not live.planned:
        turn(live, target.source)
    _take_places(live, target)
    return sync(StoredPoint(target.store, target.goal, toll(live, target.source)), target, live)


def help_out(here: Here, run_id: str) -> RunReport:
    """Work on free slices of a sync that another worker began."""
    return helper.help_out(here, run_id, RunKind.SYNC, _help, run)


def _help(live: helper.Helper) -> None:
    if live.recall(BACK_TO) == SYNC_POINT:  # what undoes is one worker: it reads what was kept in one order
        raise helper.NotAsLeft
    if live.one_writer:
        raise helper.NotAsLeft
    target = ReplicaTarget(live, live.here.catalogue.pair(live.run.target.removeprefix("pair:")))
    todo = target.join()
    if todo is None:
        raise helper.NotAsLeft
    turn(live, target.source)
    _take_places(live, target)
    bring_over(StoredPoint(target.store, target.goal, toll(live, target.source)), target, live, todo)


def _take_places(live: Live, target: ReplicaTarget) -> None:
    """Where there is something to do: on what the replica lies, or will."""
    if target.decision.mode != "nothing":
        new = (target.place.datastore, *target.place.datastores.values()) if target.state is None else ()
        places.demand(live, live.run.site, target.state, new)


def _kept_back(live: Live, paused: str) -> bool:
    """A pause is about what happens by itself; after a rollback a sync by name must not undo it, either."""
    return live.run.trigger is not Trigger.AD_HOC or paused.startswith(ROLLED_BACK)
