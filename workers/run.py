"""One run: claimed under a lease, renewed while it works, given back, shared, or ended with its reason in words."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from workers import approval, faults, quarantine
from workers.catalogue import CONDEMNED, PLAN, STOP, Catalogue, HoldKind
from workers.claims import Claims
from workers.errors import (
    ApprovalNeeded,
    BadInput,
    Conflict,
    FencedOut,
    NoSpace,
    SliceFailed,
    Stopped,
    TaskStillRunning,
    Transient,
    UnderstudyError,
    WorkerLost,
)
from workers.models import Run, RunKind, RunReport, RunState, Slice
from workers.settings import Settings, seconds

log = structlog.get_logger()


@dataclass(frozen=True)
class Here:
    """What a worker process has at hand."""

    settings: Settings
    catalogue: Catalogue
    #: asks for so many more workers for a run; without it a run is worked on by those who get its messages
    call_helpers: Callable[[Run, int], None] | None = None


class OutOfTime(Exception):
    """The task's time is up; the run is at a checkpoint and goes on in a later message."""


class Shared(Exception):
    """Nobody but others has anything left to do: who of them is last goes on with the run."""


class NotYet(Exception):
    """Nothing is wrong, but something else must end first: the run goes on later, and no try is counted.
    `pause`: seconds until then, where that is not a whole lease."""

    def __init__(self, sentence: str, pause: float | None = None) -> None:
        super().__init__(sentence)
        self.pause = pause


class Live(Claims):
    """A claimed run. `check` before each write; `deadline` (time.monotonic) bounds the work of this message."""

    def __init__(self, here: Here, run: Run, owner: str) -> None:
        super().__init__(here, run, owner)
        self.deadline = time.monotonic() + seconds(here.settings.tuning.slice_time)

    @property
    def threads(self) -> int:
        return self.here.settings.tuning.threads

    def check(self) -> None:
        """Raise `FencedOut` when this run, or this worker's claim of it, is not the one that may write."""
        if self._lost.is_set():
            raise FencedOut(
                f"the lease of run {self.run.id} ran out on this worker; another one may have gone on with it"
            )
        self.here.catalogue.check_claim(self.run.id, self.owner, self.run.fence)

    def refence(self, at_least: int) -> None:
        """Our fence must be above one that the target has already seen (the catalogue may have been rebuilt)."""
        self.run = self.here.catalogue.refence(self.run.id, self.owner, at_least)
        self.note(f"fence raised to {self.run.fence}: the target had already seen {at_least}")

    def remember(self, **memory: str | None) -> None:
        """What a later message or another worker must know to go on."""
        self.here.catalogue.remember(self.run.id, self.owner, **memory)
        for key, value in memory.items():
            if value is None:
                self._memory.pop(key, None)
            else:
                self._memory[key] = value

    def note(self, *reasons: str) -> None:
        """Reasons for people: each full, compare, skip or drop."""
        self.here.catalogue.note(self.run.id, *reasons)
        for reason in reasons:
            log.info(reason, run=self.run.id, vm=self.run.vm)

    def plan_slices(self, plan: Callable[[], Iterable[Slice]]) -> bool:
        """Plan the run's slices, unless an earlier message did. Was it done now?"""
        if self.planned:
            return False
        # What an execution wrote that died before it said so may have been planned for another situation.
        self.here.catalogue.drop_slices(self.run.id, owner=self.owner)
        faults.at("slices.before")
        self.here.catalogue.add_slices(self.run.id, list(plan()), owner=self.owner)
        faults.at("slices.added")
        self.remember(**{PLAN: secrets.token_hex(4)})
        faults.at("slices.planned")
        return True

    def forget_slices(self) -> None:
        """The plan goes before its slices: planned and without slices would be a run with nothing left to do."""
        self.remember(**{PLAN: None})
        faults.at("slices.forgetting")
        self._held.clear()
        self.here.catalogue.drop_slices(self.run.id, owner=self.owner)

    def give_up_plan(self, part: Slice, **memory: str) -> None:
        """What the slices are planned for is not so, as was found at this one: the run begins anew, knowing it."""
        self.remember(**memory)

    def spend(self) -> None:
        """Raise `OutOfTime` when the message's time is up, `Stopped` when a person wants the run to end, `SliceFailed`
        when another worker of the run met what ends it.

        Call only right after a checkpoint.
        """
        memory = self.here.catalogue.run(self.run.id).memory
        if (reason := memory.get(STOP)) is not None:
            raise Stopped(reason)
        condemned(memory)
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def renew(self, lease: float) -> bool:
        """Keep what we hold. False when any of it is another's by now."""
        return self.here.catalogue.renew(self.run.id, self.owner, lease) and self.still_held()

    def may_read_all(self, policy: approval.Policy, *, first: int, again: int, yes: str | None = None) -> None:
        """Raise `ApprovalNeeded` where the policy wants a person to be asked, and none has said yes (approval.py).
        `yes`: the command that says it, where it is not the usual one."""
        why = approval.objection(policy, first=first, again=again)
        if why is None or self.recall("allowed") is not None:
            return
        if self.recall("full") is not None or self.recall("discard") is not None:
            return self.remember(allowed="yes")  # asked for by name; those words go before the run ends
        said = self.here.catalogue.holds(self.run.target).get(self.run.target, {}).get(HoldKind.APPROVED)
        if said is not None and policy.full != "never":
            self.note(f"{why}: approved by {said.who} ({said.reason})")
            return
        verb = f"`understudy {self.run.kind} {self.run.vm} --full`"
        yes = yes or (verb if policy.full == "never" else f"`understudy approve {self.run.vm}`, or {verb},")
        raise ApprovalNeeded(f"{why}. Nothing was read or written yet; {yes} lets it be done once", first + again)

    def report(self, outcome: str, reason: str, point: str | None = None) -> RunReport:
        parts = self.here.catalogue.slices(self.run.id)
        return RunReport(
            run=self.run.id,
            vm=self.run.vm,
            outcome=outcome,
            reason=reason,
            point=point,
            read=sum(p.read for p in parts),
            written=sum(p.written for p in parts),
            stored=sum(p.stored for p in parts),
        )

    def finish(self, state: RunState, report: RunReport) -> RunReport:
        self.here.catalogue.finish(
            self.run.id,
            self.owner,
            state,
            point=report.point,
            read=report.read,
            written=report.written,
            stored=report.stored,
        )
        return report


def execute(here: Here, run_id: str, kind: RunKind, work: Callable[[Live], RunReport]) -> RunReport:
    """Claim the run and work on it. A run that another worker has, or that has ended, is left alone: that is a result.
    So is one of another kind (a message by hand, with the wrong run): that is an error, and changes nothing.

    Errors: `Transient` and `Conflict` (somebody was faster: look again) give the run back for a later try, up to
    `tuning.attempts`; all others end it as failed and are raised again. `FencedOut` ends nothing, for the run is not
    ours any more.
    """
    tuning = here.settings.tuning
    owner = execution()
    of_kind(here, run_id, kind)
    run = here.catalogue.claim(run_id, owner, seconds(tuning.lease))
    if run is None:
        now = here.catalogue.run(run_id)
        return RunReport(run=run_id, vm=now.vm, outcome=now.state, reason="another worker has it, or it has ended")
    live = Live(here, run, owner)
    if (reason := live.recall(STOP)) is not None:  # asked for while its worker was dead
        live.note(reason)
        return live.finish(RunState.STOPPED, live.report("stopped", reason))
    if run.attempts > tuning.attempts:
        _fail(live, err := WorkerLost(run.attempts - 1), str(err))
        raise err
    with renewed(live):
        try:
            condemned(run.memory)
            try:
                with storage_in_words():
                    return work(live)
            except OutOfTime:
                live.stays = True  # the next message is on its way
                raise
            finally:
                live.let_go()
        except ApprovalNeeded as err:
            live.note(str(err))
            live.remember(approval=str(err), bytes=str(err.bytes))
            return live.finish(RunState.NEEDS_APPROVAL, live.report("approval needed", str(err)))
        except Stopped as err:
            live.note(str(err))
            return live.finish(RunState.STOPPED, live.report("stopped", str(err)))
        except OutOfTime:
            here.catalogue.yield_run(run_id, owner)
            return live.report("continues", "its time in this task was up; the rest is queued")
        except Shared:
            if (pause := _paused(live)) is not None:
                return _put_off(live, NotYet("what is left of it failed just now"), pause, counted=False)
            here.catalogue.share_run(run_id, owner)
        except FencedOut as err:
            log.warning(str(err), run=run_id, vm=run.vm)
            raise
        except (NotYet, TaskStillRunning) as err:
            # vCenter or another run works: however long that takes, it is no failed try
            live.note(str(err))
            pause = err.pause if isinstance(err, NotYet) else None
            return _put_off(live, err, seconds(tuning.lease) if pause is None else pause, counted=False)
        except (Transient, Conflict) as err:
            now = here.catalogue.run(run_id)  # a checkpoint that got further started the counts again
            if now.attempts >= quarantine.tries(err.family, tuning):
                _fail(live, err, f"{err} (tried {now.attempts} times)")
                raise
            return _put_off(live, err, quarantine.pause(err.family, tuning, now.errors + 1), counted=True)
        except UnderstudyError as err:
            _fail(live, err, str(err))
            raise
        except Exception as err:
            log.exception("unexpected error", run=run_id, vm=run.vm)
            _fail(live, err, f"unexpected {type(err).__name__}: {err}; the worker's log has the details")
            raise
    faults.at("run.shared")
    # Who finished the last slice before the run was free could not go on with it: so it is looked at once more.
    if live.all_finished():
        return execute(here, run_id, kind, work)
    return live.report("shared", "other workers are at its last slices; the last of them goes on")


def of_kind(here: Here, run_id: str, kind: RunKind) -> Run:
    """The run. Raises `BadInput` when it is one of another kind."""
    meant = here.catalogue.run(run_id)
    if meant.kind is not kind:
        raise BadInput(f"the run {run_id} is a {meant.kind} of {meant.vm}, no {kind}; it was left as it is")
    return meant


def condemned(memory: Mapping[str, str]) -> None:
    """Raise `SliceFailed` when a worker at one of the run's slices met what ends it."""
    if (said := memory.get(CONDEMNED)) is not None:
        family, _, sentence = said.partition(": ")
        raise SliceFailed(sentence, family)


@contextmanager
def storage_in_words() -> Iterator[None]:
    """What a file system or a device refuses, where nobody nearer knew more of it.

    A stale mount or a device that was away may come back, so it is tried again; the attempts are counted.
    """
    try:
        yield
    except OSError as err:
        where = f"{err.filename}: {err.strerror}" if err.filename else f"a disk or the store: {err.strerror or err}"
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"there is no space left at {where}; free some, then start the run again") from err
        raise Transient(
            f"the storage does not answer as it should at {where}; check its mount and this machine's log"
        ) from err


def _put_off(live: Live, err: Exception, pause: float, *, counted: bool) -> RunReport:
    catalogue = live.here.catalogue
    due = catalogue.now() + timedelta(seconds=pause)
    catalogue.yield_run(live.run.id, live.owner, not_before=due, error=str(err) if counted else None)
    return live.report("waiting", f"{err}; tried again in {pause:g} s")


def _paused(live: Live) -> float | None:
    """Seconds until the first slice may be tried again, when nobody works on any; None when somebody does."""
    left = [part for part in live.here.catalogue.slices(live.run.id) if not part.finished]
    now = live.here.catalogue.now()
    if any(part.owner is not None for part in left if part.lease_until is not None and part.lease_until > now):
        return None
    return min((max(0.0, (part.lease_until - now).total_seconds()) for part in left if part.lease_until), default=None)


def give_up(here: Here, run: Run, sentence: str, family: str = WorkerLost.family) -> None:
    """End a run that nobody can go on with. Raises `FencedOut` when another worker has it after all."""
    owner = execution()
    if here.catalogue.claim(run.id, owner, seconds(here.settings.tuning.lease)) is None:
        raise FencedOut(f"another worker went on with run {run.id}")
    here.catalogue.finish(run.id, owner, RunState.FAILED, error=sentence, family=family)
    here.catalogue.leave_places(run.id)


def execution() -> str:
    """One execution: a message that is delivered twice makes two."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _fail(live: Live, err: Exception, message: str) -> None:
    """End the run as failed; a second error while doing so must not hide the first (the reaper will end the run)."""
    family = err.family if isinstance(err, UnderstudyError) else "unexpected"
    try:
        live.here.catalogue.finish(live.run.id, live.owner, RunState.FAILED, error=message, family=family)
    except UnderstudyError as second:
        log.error(f"the failed run could not be ended: {second}", run=live.run.id, vm=live.run.vm)


@contextmanager
def renewed(live: Live) -> Iterator[None]:
    """Renew the leases every third of their time from a thread of its own, until the work ends."""
    here, lease = live.here, seconds(live.here.settings.tuning.lease)
    done = threading.Event()

    def renew() -> None:
        last = time.monotonic()
        while not done.wait(lease / 3):
            try:
                if not live.renew(lease):
                    live._lost.set()
                    return
                if live.placed:
                    here.catalogue.keep_places(live.place_holder, 2 * lease)
                last = time.monotonic()
                if not here.catalogue.run(live.run.id).memory.keys().isdisjoint((STOP, CONDEMNED)):
                    live.deadline = last  # what is being copied comes to its checkpoint now
            except UnderstudyError as err:
                log.warning(f"the lease could not be renewed: {err}", run=live.run.id)
                if time.monotonic() - last > lease:
                    live._lost.set()
                    return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
