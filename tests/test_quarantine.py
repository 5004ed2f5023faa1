"""When a failure is tried again, when a target is set aside and when looked at again: tables for pure functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from workers import errors, quarantine
from workers.catalogue import Ended
from workers.models import Run, RunState
from workers.quarantine import Turn
from workers.settings import Tuning

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TUNING = Tuning(attempts=5, retry_pause="5s", quarantine_after=3, probe_every="1h")


def ended(failures: int, family: str, *, ago: timedelta = HOUR / 2, state: RunState = RunState.FAILED) -> Ended:
    given: dict[str, Any] = {"id": "r", "kind": "sync", "target": "pair:p", "vm": "web", "site": "dr"}
    given |= {"trigger": "ad hoc", "slot": None, "fence": 1, "attempts": 1, "created": NOW - 9 * HOUR}
    run = Run(**given, state=state, ended=NOW - ago)
    return Ended(run=run, family=family, failures=failures, since=NOW - 8 * HOUR, blamed=family)


def families(of: type[errors.UnderstudyError] = errors.UnderstudyError) -> set[str]:
    return {of.family}.union(*(families(below) for below in of.__subclasses__() if below.__module__ == errors.__name__))


def test_the_table_names_families_that_exist() -> None:
    assert set(quarantine.RULES) <= families()


@pytest.mark.parametrize(
    ("family", "tries", "pauses"),
    [
        pytest.param("vcenter unreachable", 5, [5, 10, 20, 40], id="an outage of a minute is ridden out"),
        pytest.param("disk busy", 5, [10, 20, 40, 80], id="a lock is worth more patience"),
        pytest.param("disk locked", 10, [10, 20, 40, 80], id="a host keeps its lock for long"),
        pytest.param("conflict", 5, [1, 2, 4, 8], id="somebody was faster by milliseconds"),
        pytest.param("never heard of", 5, [5, 10, 20, 40], id="what nobody foresaw"),
    ],
)
def test_how_often_a_run_is_tried(family: str, tries: int, pauses: list[float]) -> None:
    assert quarantine.tries(family, TUNING) == tries
    assert [quarantine.pause(family, TUNING, attempt) for attempt in range(1, 5)] == pauses
    assert quarantine.pause(family, TUNING, 30) == quarantine.LONGEST_PAUSE


@pytest.mark.parametrize(
    ("failures", "family", "probe_in"),
    [
        pytest.param(2, "transient", None, id="twice is chance"),
        pytest.param(3, "transient", HOUR, id="three times is not"),
        pytest.param(4, "transient", 2 * HOUR, id="then rarer"),
        pytest.param(5, "transient", 4 * HOUR, id="and rarer"),
        pytest.param(40, "transient", 8 * HOUR, id="down to a bound"),
        pytest.param(1, "touched", HOUR, id="a person must decide: at once"),
        pytest.param(9, "touched", HOUR, id="a look is cheap, so not rarer"),
        pytest.param(1, "login failed", HOUR, id="before the account is locked"),
        pytest.param(2, "login failed", 2 * HOUR, id="and rarely"),
        pytest.param(7, "no space", HOUR, id="space may come back any time"),
        pytest.param(3, "unexpected", HOUR, id="a fault of the program"),
        pytest.param(0, "vcenter unreachable", None, id="what is not counted sets nothing aside"),
    ],
)
def test_when_a_target_is_set_aside(failures: int, family: str, probe_in: timedelta | None) -> None:
    found = quarantine.quarantined(ended(failures, family), TUNING)
    assert (found is None) == (probe_in is None)
    if found is not None and probe_in is not None:
        assert found.probe == NOW - HOUR / 2 + probe_in
        assert (found.family, found.failures, found.since) == (family, failures, NOW - 8 * HOUR)


def test_a_probe_that_an_outage_ended_makes_the_next_one_no_rarer() -> None:
    last = ended(6, "transient").model_copy(update={"family": "vcenter unreachable"})
    found = quarantine.quarantined(last, TUNING)
    assert found is not None and found.probe == NOW - HOUR / 2 + HOUR and found.family == "transient"


ASIDE = ended(3, "transient")
ASKED = ended(0, "", state=RunState.NEEDS_APPROVAL)


@pytest.mark.parametrize(
    ("held", "last", "at", "turn"),
    [
        pytest.param([], None, NOW, Turn.GO, id="new"),
        pytest.param([], ended(0, "", state=RunState.SUCCEEDED), NOW, Turn.GO, id="well"),
        pytest.param([], ended(2, "transient"), NOW, Turn.GO, id="failed, not often enough"),
        pytest.param([], ended(1, "transient"), NOW + HOUR / 2, Turn.PROBE, id="failed, and nothing new came since"),
        pytest.param([], ended(0, "vcenter unreachable"), NOW + HOUR / 2, Turn.PROBE, id="the outage may be over"),
        pytest.param(["paused"], ended(1, "transient"), NOW + HOUR / 2, Turn.SKIP, id="failed, then paused"),
        pytest.param([], ended(0, "", ago=9 * HOUR, state=RunState.SUCCEEDED), NOW, Turn.GO, id="well, long ago"),
        pytest.param([], ASIDE, NOW, Turn.SKIP, id="set aside"),
        pytest.param([], ASIDE, NOW + HOUR / 2, Turn.PROBE, id="the probe is due"),
        pytest.param(["paused"], ASIDE, NOW + HOUR, Turn.SKIP, id="paused: no probe"),
        pytest.param(["disabled"], None, NOW, Turn.SKIP, id="disabled"),
        pytest.param(["forgotten"], None, NOW, Turn.SKIP, id="forgotten"),
        pytest.param(["approved"], None, NOW, Turn.GO, id="approved beforehand"),
        pytest.param([], ASKED, NOW, Turn.SKIP, id="waits for approval"),
        pytest.param([], ASKED, NOW + HOUR / 2, Turn.PROBE, id="what was in its way may be gone"),
        pytest.param(["approved"], ASKED, NOW, Turn.PROBE, id="approved"),
        pytest.param(["approved", "paused"], ASKED, NOW, Turn.SKIP, id="approved, but paused"),
    ],
)
def test_whose_turn_it_is(held: list[str], last: Ended | None, at: datetime, turn: Turn) -> None:
    found, after = quarantine.turn(dict.fromkeys(held), last, TUNING, at)
    assert found is turn
    assert after == ("r" if turn is Turn.PROBE else ""), "a probe has a name, so that two ticks make one"
