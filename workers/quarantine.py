"""How often a failure is tried again, and when a target is set aside until its cause is gone. Pure.

A run that fails is tried again while its family says so. Runs that fail in a row set their target aside: its schedules
are skipped, and a probe (a run like any other, which begins with the look at the VM) is made now and then. The first
one that does not fail ends that by itself. Nothing of this is stored: it follows from how the runs ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol

from workers.models import Run
from workers.settings import Tuning, seconds


class Rule(NamedTuple):
    """What follows from a failure of this family."""

    #: tries of one run, in parts of `tuning.attempts`
    tries: float = 1
    #: the first pause between them, in parts of `tuning.retry_pause`; doubled each time, up to LONGEST_PAUSE
    pause: float = 1
    #: whether the VM itself is to blame. What its surroundings cause ends for all at once, and then all must go on
    counted: bool = True
    #: set aside at the first failure: trying again without anybody doing anything cannot help
    at_once: bool = False
    #: whether probes become rarer. Not where a probe ends at the look at the VM, before anything is read or written
    rarer: bool = True


#: by family (errors.py); what is not here follows the rule of Rule()
RULES: Mapping[str, Rule] = {
    "vcenter unreachable": Rule(counted=False),
    "catalogue unreachable": Rule(counted=False),
    "broker unreachable": Rule(counted=False),
    "disk busy": Rule(pause=2),
    # a host may keep what a killed worker had open for a quarter of an hour
    "disk locked": Rule(tries=2, pause=2),
    # somebody else was faster by milliseconds
    "conflict": Rule(pause=0.2),
    "touched": Rule(at_once=True, rarer=False),
    "foreign": Rule(at_once=True, rarer=False),
    "refused": Rule(at_once=True, rarer=False),
    "configuration": Rule(at_once=True, rarer=False),
    # each further try may lock the account
    "login failed": Rule(at_once=True),
    "store damaged": Rule(at_once=True),
    "store too new": Rule(at_once=True, rarer=False),
    "no space": Rule(rarer=False),
}

#: families whose failures set nothing aside
UNCOUNTED = tuple(sorted(family for family, rule in RULES.items() if not rule.counted))

#: seconds: a run that is tried again is tried at least this often
LONGEST_PAUSE = 300
#: probes become at most this much rarer than `tuning.probe_every`
RAREST = 8


def rule(family: str | None) -> Rule:
    return RULES.get(family or "", Rule())


def tries(family: str, tuning: Tuning) -> int:
    """How often one run is tried before it has failed."""
    return max(1, round(tuning.attempts * rule(family).tries))


def pause(family: str, tuning: Tuning, errors: int) -> float:
    """Seconds until the next try, after so many in a row that ended with one. Lost workers do not count: what a
    killed one had goes on within a minute, also where a passing error meets it on the way."""
    first = seconds(tuning.retry_pause) * rule(family).pause
    return float(min(first * 2 ** (errors - 1), LONGEST_PAUSE))


class Ended(Protocol):
    """How a target's last run ended: workers.catalogue.Ended."""

    @property
    def run(self) -> Run: ...
    @property
    def family(self) -> str | None: ...
    @property
    def failures(self) -> int: ...
    @property
    def since(self) -> datetime | None: ...
    @property
    def blamed(self) -> str | None: ...


class Quarantine(NamedTuple):
    """A target that is set aside."""

    since: datetime
    family: str
    failures: int
    #: when it is tried again
    probe: datetime


def quarantined(last: Ended | None, tuning: Tuning) -> Quarantine | None:
    """Whether a target is set aside, from how its last runs ended."""
    if last is None or last.failures == 0 or last.since is None or last.run.ended is None:
        return None
    follows = rule(last.blamed)
    over = last.failures - (1 if follows.at_once else tuning.quarantine_after)
    if over < 0:
        return None
    # A probe that an outage ended says nothing of the VM: the next one comes as soon as the first.
    rarer = follows.rarer and rule(last.family).counted
    apart = seconds(tuning.probe_every) * (min(2**over, RAREST) if rarer else 1)
    return Quarantine(last.since, last.blamed or "error", last.failures, last.run.ended + timedelta(seconds=apart))


def look_again(last: Ended | None, tuning: Tuning) -> datetime | None:
    """When a run that ended for want of approval is looked at again: what was in its way may be gone."""
    if last is None or last.run.state != "approval needed" or last.run.ended is None:
        return None
    return last.run.ended + timedelta(seconds=seconds(tuning.probe_every))


def _tried_again(last: Ended, tuning: Tuning) -> datetime | None:
    """When a failed run that sets nothing aside is tried again, should nothing come that is due: its slot is used up,
    and after an outage, or of a template, there may be no other for a day, or ever."""
    if last.run.state != "failed" or last.run.ended is None:
        return None
    return last.run.ended + timedelta(seconds=seconds(tuning.probe_every))


class Turn(StrEnum):
    """What a target's schedules may do now."""

    GO = "go"
    SKIP = "skip"
    PROBE = "probe"


def turn(held: Mapping[str, object], last: Ended | None, tuning: Tuning, now: datetime) -> tuple[Turn, str]:
    """Whether what is due may start; with PROBE also after which run, for one probe follows each. Where nothing is set
    aside, what is due goes before the probe.

    `held`: what people said, by kind.
    """
    if held.keys() & {"paused", "disabled", "forgotten"}:
        return Turn.SKIP, ""
    waits = look_again(last, tuning)
    aside = quarantined(last, tuning)
    probe = aside.probe if aside is not None else waits
    if last is None:
        return Turn.GO, ""
    if probe is None:
        again = _tried_again(last, tuning)
        return (Turn.PROBE, last.run.id) if again is not None and now >= again else (Turn.GO, "")
    approved = waits is not None and "approved" in held
    return (Turn.PROBE, last.run.id) if approved or now >= probe else (Turn.SKIP, "")
