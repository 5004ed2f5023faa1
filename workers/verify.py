"""Verify a VM's replica: every byte, or what is due, against its sync point; mend what differs. Or a store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from workers import places, scrub, store_scrub
from workers.catalogue import Scrub
from workers.errors import Refused, TargetBusy
from workers.links import toll
from workers.models import Pair, Run, RunKind, RunReport, RunState, SyncPoint, Trigger
from workers.replica_mend import MendedReplica
from workers.replica_verify import MEND, REPAIR, SHARE, VerifiedReplica
from workers.replicate import target_of
from workers.run import Here, Live, NotYet, OutOfTime, execute
from workers.scrub import LATE
from workers.settings import Group
from workers.stored_point import StoredPoint
from workers.sync import sync


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a verification. Raises `ValidationFailed` where it found what it is not to mend."""
    return execute(here, run_id, RunKind.VERIFY, _verify)


def request(here: Here, pair: Pair, *, repair: bool = False) -> tuple[Run, bool]:
    """The run that compares all of the pair's replica, or the live one that does just that."""
    memory = {REPAIR: "yes"} if repair else {}
    run, made = _request(here, pair, Trigger.AD_HOC, None, memory)
    same = run.kind is RunKind.VERIFY and SHARE not in run.memory and (REPAIR in run.memory) == repair
    if not made and not same:
        raise Refused(
            f"the {run.kind} {run.id} is at work on the replica {pair.replica_name} just now; nothing was requested. "
            f"Wait until it has ended (`understudy show {run.id}`), then ask again"
        )
    return run, made


def request_part(
    here: Here, pair: Pair, slot: str, *, share: float, repair: bool, late: datetime | None = None
) -> tuple[Run, bool]:
    """The run that compares what of a round is due by now (workers/scrub.py). One for each slot.
    `late`: it was due at that time, and is so late that it waits for its places before all who came since."""
    memory = {SHARE: str(share), **({REPAIR: "yes"} if repair else {}), **({LATE: late.isoformat()} if late else {})}
    return _request(here, pair, Trigger.SCHEDULE, slot, memory)


def part_due(
    groups: Iterable[Group], pair: Pair, held: SyncPoint | None, known: Scrub | None, now: datetime
) -> datetime | None:
    """Since when a part of the replica is to be compared. A first one: since the day after the pair was made, not after
    the last sync, for there may be many a day."""
    if held is None:
        return None
    share = max((group.scrub for group in groups), default=0.0)
    return scrub.due_since(share, known, pair.created or held.committed, pair.source, now)


def give_way(here: Here, run: Run) -> None:
    """Somebody asks for a sync: a scheduled part ends now, at once or at its checkpoint, and is due again later.

    Raises `TargetBusy` while the run lives.
    """
    if SHARE in run.memory:
        run = here.catalogue.ask_to_stop(run.id, "a sync was asked for; what is left of this part is compared later")
    if run.live:
        when = "ends at its next checkpoint" if SHARE in run.memory else "was asked for, too"
        raise TargetBusy(
            f"the replica of {run.vm} is being compared just now by run {run.id}, which {when}; nothing was requested. "
            f"Ask again when it has ended (`understudy show {run.id}`); `understudy pause {run.vm} --now` ends it"
        )


def _request(here: Here, pair: Pair, trigger: Trigger, slot: str | None, memory: dict[str, str]) -> tuple[Run, bool]:
    return here.catalogue.request_run(
        RunKind.VERIFY,
        target_of(pair.id),
        vm=pair.vm,
        site=pair.site,
        trigger=trigger,
        slot=slot,
        pair=pair.id,
        memory=memory,
    )


def _verify(live: Live) -> RunReport:
    if live.run.target.startswith("store:"):
        return store_scrub.work(live)
    pair = live.here.catalogue.pair(live.run.target.removeprefix("pair:"))
    if live.recall(MEND) is None:
        report = _compare(live, VerifiedReplica(live, pair))
        if live.recall(MEND) is None:
            return report
    live.waits_since = live.run.created
    target = MendedReplica(live, pair)
    if target.committed_by(live.run.id):  # stopped between the cursor and the catalogue
        return target.conclude()
    places.demand(live, live.run.site, target.state)
    return sync(StoredPoint(target.store, target.goal, toll(live, target.source)), target, live)


def _compare(live: Live, target: VerifiedReplica) -> RunReport:
    late = live.recall(LATE)
    if SHARE in live.run.memory:
        live.waits_since = None if late is None else datetime.fromisoformat(late)
    reason = target.nothing_new()
    if reason is not None and live.run.trigger is Trigger.AD_HOC:
        raise Refused(f"{reason}; `understudy status {live.run.vm}` says how it stands")
    if reason is not None:
        live.note(reason)
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
    try:
        places.demand(live, live.run.site, target.state)
        return sync(StoredPoint(target.store, target.goal, toll(live, target.source)), target, live)
    except OutOfTime:
        if SHARE not in live.run.memory:
            raise
        return target.stop_here()  # a sync that is due meanwhile goes first
    except NotYet as err:
        if SHARE not in live.run.memory or late is not None:
            raise
        # It would hold up the syncs of this replica for as long as it waits; what it leaves out is due again.
        live.note(f"{err}; this part is compared later")
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", str(err)))
