"""How a pair, or a VM's backups, stand: one word and one sentence, from what the catalogue knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from workers import quarantine
from workers.models import Model, Pair, Run, RunState, SyncPoint
from workers.quarantine import Ended
from workers.settings import Tuning


class State(StrEnum):
    """The words of a status. The first five are of what is kept, the others of the work on it."""

    NEVER_BACKED_UP = "never backed up"
    BACKED_UP = "backed up"
    NEVER_SYNCED = "never synced"
    IN_SYNC = "in sync"
    NEEDS_SYNC = "needs sync"
    RPO_BREACHED = "RPO breached"
    QUEUED = "queued"
    STARTING = "starting"
    IN_PROGRESS = "in progress"
    PAUSED = "paused"
    DISABLED = "disabled"
    APPROVAL_NEEDED = "approval needed"
    TOUCHED = "touched"
    VALIDATION_FAILED = "validation failed"
    REVERT_FAILED = "revert failed"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class Failover(StrEnum):
    """Where a pair stands between its two sides, as its row in the catalogue says: a word beside that of `State`."""

    NONE = "none"
    FAILOVER_RUNNING = "failover running"
    FAILOVER_COMPLETE = "failover complete"
    FAILOVER_FAILED = "failover failed"
    FAILOVER_PARTIAL = "failover partial"
    FAILBACK_RUNNING = "failback running"
    FAILBACK_COMPLETE = "failback complete"
    FAILBACK_FAILED = "failback failed"
    FAILBACK_PARTIAL = "failback partial"
    TEST_RUNNING = "test running"


#: of these somebody should look
UNFINISHED = (
    Failover.FAILOVER_FAILED,
    Failover.FAILOVER_PARTIAL,
    Failover.FAILBACK_FAILED,
    Failover.FAILBACK_PARTIAL,
)

#: somebody should look; the worst first
PROBLEMS = (
    State.TOUCHED,
    State.VALIDATION_FAILED,
    State.REVERT_FAILED,
    State.QUARANTINED,
    State.FAILED,
    State.APPROVAL_NEEDED,
    State.RPO_BREACHED,
)


class Status(Model):
    state: State
    #: why, where there is more to say: an error, a person's reason to pause
    sentence: str = ""
    #: the age of the data in seconds; None when there is none
    lag: float | None = None
    #: seconds by which the data is older than the policy allows
    late: float | None = None
    failover: Failover = Failover.NONE

    @property
    def problem(self) -> bool:
        """A pair that somebody disabled is none; one that is paused until its data is too old is."""
        late = self.late is not None and self.state is not State.DISABLED
        return self.state in PROBLEMS or self.failover in UNFINISHED or late


class Point(Protocol):
    """A restore point, as the catalogue mirrors it."""

    @property
    def id(self) -> str: ...
    @property
    def data_time(self) -> datetime: ...


class Held(Protocol):
    """What a person said: workers.catalogue.Hold."""

    @property
    def since(self) -> datetime: ...
    @property
    def who(self) -> str: ...
    @property
    def reason(self) -> str: ...


def status(
    pair: Pair | None,
    newest: Point | None,
    synced: SyncPoint | None,
    live: Run | None,
    last: Ended | None,
    now: datetime,
    *,
    held: Mapping[str, Held] | None = None,
    rpo: float | None = None,
    tuning: Tuning | None = None,
    damage: str = "",
    back: bool = False,
) -> Status:
    """The status of a pair, or without one of a VM's backups. `live` and `last` are the runs of that very target;
    `back`: the last one was a rollback.

    What is being done comes first, then what a person decided or has to decide, then how the data stand. `held`: by
    kind, what people said; `rpo`: seconds, the age that the data may reach; `damage`: what a comparison found.
    """
    holds, of = (newest if pair is None else synced), "newest restore point" if pair is None else "replica"
    lag = None if holds is None else max(0.0, (now - holds.data_time).total_seconds())
    late = _late(pair, lag, rpo, now)
    if live is not None:
        state, sentence = _live(live, now)
    else:
        found = _decided(held or {}, last, back) or _ended(last, held or {}, tuning or Tuning(), now, back)
        state, sentence = found or (State.VALIDATION_FAILED if damage else _settled(pair, newest, synced), "")
    if damage:
        sentence = f"{sentence}; {damage}" if sentence else damage
    if late is not None and rpo is not None:
        words = (
            f"the data of its {of} is {_age(lag)} old, {_age(late)} more than the RPO of {_age(rpo)} allows"
            if lag is not None
            else f"nothing was synced in the {_age(rpo + late)} since it is protected; its RPO is {_age(rpo)}"
        )
        sentence = f"{sentence}; {words}" if sentence else words
        if state in (State.NEVER_SYNCED, State.IN_SYNC, State.NEEDS_SYNC, State.BACKED_UP):
            state = State.RPO_BREACHED
    failover = Failover(pair.failover) if pair is not None else Failover.NONE
    if failover is not Failover.NONE:
        sentence = f"{failover}; {sentence}" if sentence else str(failover)
    return Status(state=state, sentence=sentence, lag=lag, late=late, failover=failover)


def _late(pair: Pair | None, lag: float | None, rpo: float | None, now: datetime) -> float | None:
    if rpo is None:
        return None
    if lag is None:  # nothing is there yet: counted from when the pair was made
        if pair is None or pair.created is None:
            return None
        lag = (now - pair.created).total_seconds()
    return lag - rpo if lag > rpo else None


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


def _decided(held: Mapping[str, Held], last: Ended | None, back: bool) -> tuple[State, str] | None:
    """What a person said. A rollback pauses its pair before it writes: that must not hide that it failed."""
    failed = back and last is not None and last.run.state is RunState.FAILED and last.family != "touched"
    for kind, state, ends in (
        ("forgotten", State.DISABLED, "`understudy enable` begins anew"),
        ("disabled", State.DISABLED, "off until `understudy enable`"),
        ("paused", State.PAUSED, "its schedules are skipped until `understudy resume`"),
    ):
        if (said := held.get(kind)) is not None:
            if kind == "paused" and failed and last is not None:
                return State.REVERT_FAILED, last.run.error or "no reason was recorded"
            word = "forgotten since" if kind == "forgotten" else "since"
            return state, f"{word} {_moment(said.since)} by {said.who} ({said.reason}); {ends}"
    return None


def _ended(
    last: Ended | None, held: Mapping[str, Held], tuning: Tuning, now: datetime, back: bool
) -> tuple[State, str] | None:
    """How the last run ended, where that is not well."""
    if last is None:
        return None
    if last.run.state is RunState.NEEDS_APPROVAL:
        if (said := held.get("approved")) is not None:
            return State.QUEUED, f"approved by {said.who} at {_moment(said.since)} ({said.reason}); about to start"
        return State.APPROVAL_NEEDED, last.run.memory.get("approval", "")
    if last.run.state is not RunState.FAILED:
        return None
    error = last.run.error or "no reason was recorded"
    aside = quarantine.quarantined(last, tuning)
    touched = last.family == "touched"
    if aside is None:
        return (State.TOUCHED if touched else State.REVERT_FAILED if back else State.FAILED), error
    again = f"looked at again {_until(aside.probe, now)}" if touched else f"tried again {_until(aside.probe, now)}"
    if touched:
        return State.TOUCHED, f"{error} ({again}; `understudy resume` looks at once)"
    times = "1 run" if aside.failures == 1 else f"{aside.failures} runs in a row"
    return State.QUARANTINED, (
        f"{times} failed since {_moment(aside.since)} ({aside.family}), so its schedules are skipped; {again}, "
        f"`understudy resume` tries at once. The last error: {error}"
    )


def _settled(pair: Pair | None, newest: Point | None, synced: SyncPoint | None) -> State:
    if pair is None:
        return State.BACKED_UP if newest is not None else State.NEVER_BACKED_UP
    if synced is None:
        return State.NEVER_SYNCED
    # Without a restore point in the pair's store (it was exchanged, say) nothing shows that the replica is current.
    return State.IN_SYNC if newest is not None and synced.point == newest.id else State.NEEDS_SYNC


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _until(at: datetime, now: datetime) -> str:
    return f"in {_age((at - now).total_seconds())}" if at > now else "now"


def _age(seconds: float | None) -> str:
    """5400 -> 1 h 30 min."""
    whole = timedelta(seconds=int(seconds or 0))
    if whole < timedelta(minutes=1):
        return f"{whole.seconds} s"
    if whole < timedelta(hours=1):
        return f"{whole.seconds // 60} min"
    hours, minutes = divmod(int(whole.total_seconds()) // 60, 60)
    if whole < timedelta(days=1):
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
