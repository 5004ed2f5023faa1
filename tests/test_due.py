"""When something is due: tables, changes of the clocks, and what must hold for any schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workers.due import EPOCH, _delay, _ticks, is_due, slot, slot_name
from workers.settings import Schedule, seconds

VM = "5029d1c2-0000-0000-0000-000000000001"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def next_slot(plan: Schedule, vm: str, now: datetime) -> datetime | None:
    """The VM's first slot after `now`: its ticks from the other side."""
    delay = _delay(plan, vm)
    after = now.astimezone(UTC) - delay
    if plan.every is not None:
        step = timedelta(seconds=seconds(plan.every))
        return EPOCH + ((after - EPOCH) // step + 1) * step + delay
    assert plan.cron is not None
    ticks = _ticks(plan.cron, plan.timezone, after)
    return next((tick + delay for tick in ticks if tick > after), None)


def schedule(**fields: Any) -> Schedule:
    return Schedule(**({"jitter": "none"} | fields))


@pytest.mark.parametrize(
    ("fields", "now", "last", "following"),
    [
        pytest.param({"every": "15m"}, "2026-03-01T12:14:59", "2026-03-01T12:00:00", "2026-03-01T12:15:00", id="every"),
        pytest.param({"every": "15m"}, "2026-03-01T12:15:00", "2026-03-01T12:15:00", "2026-03-01T12:30:00", id="on it"),
        pytest.param({"every": "1w"}, "2026-03-01T12:00:00", "2026-02-26T00:00:00", "2026-03-05T00:00:00", id="weekly"),
        pytest.param(
            {"cron": "30 1 * * *"}, *("2026-03-01T01:29:59", "2026-02-28T01:30:00", "2026-03-01T01:30:00"), id="cron"
        ),
        pytest.param(
            {"cron": "30 1 * * *"}, *("2026-03-01T01:30:00", "2026-03-01T01:30:00", "2026-03-02T01:30:00"), id="on cron"
        ),
        pytest.param(
            {"cron": "0 22 * * FRI"},
            *("2026-03-04T12:00:00", "2026-02-27T22:00:00", "2026-03-06T22:00:00"),
            id="friday",
        ),
        pytest.param(
            {"cron": "0 0 29 2 *"},
            *("2026-03-04T12:00:00", "2024-02-29T00:00:00", "2028-02-29T00:00:00"),
            id="leap day",
        ),
        pytest.param(
            {"cron": "30 1 * * *", "timezone": "America/New_York"},
            *("2026-01-10T06:29:00", "2026-01-09T06:30:00", "2026-01-10T06:30:00"),
            id="zone",
        ),
    ],
)
def test_slots(fields: dict[str, str], now: str, last: str, following: str) -> None:
    assert slot(schedule(**fields), VM, at(now)) == at(last)
    assert next_slot(schedule(**fields), VM, at(now)) == at(following)


def _slots(plan: Schedule, start: datetime, end: datetime) -> list[str]:
    found, moment = [], start
    while (following := next_slot(plan, VM, moment)) is not None and following < end:
        assert slot(plan, VM, following) == following
        assert slot(plan, VM, following - timedelta(seconds=1)) != following
        found.append(following.strftime("%d %H:%M"))
        moment = following
    return found


# Europe/Berlin 2026: on 29 March 02:00 becomes 03:00 (01:00 UTC), on 25 October 03:00 becomes 02:00 (01:00 UTC).
@pytest.mark.parametrize(
    ("cron", "start", "end", "expected"),
    [
        pytest.param(
            *("30 2 * * *", "2026-03-28T00:00", "2026-03-31T00:00", ["28 01:30", "29 01:00", "30 00:30"]),
            id="an hour that is skipped: right after it",
        ),
        pytest.param(
            *("0,30 2,3 * * *", "2026-03-29T00:00", "2026-03-30T00:00", ["29 01:00", "29 01:30"]),
            id="several in the skipped hour: once",
        ),
        pytest.param(
            *("30 2 * * *", "2026-10-24T00:00", "2026-10-27T00:00", ["24 00:30", "25 00:30", "26 01:30"]),
            id="an hour that comes twice: the first time",
        ),
        pytest.param(
            *("*/30 * * * *", "2026-10-25T00:00", "2026-10-25T02:01"),
            ["25 00:30", "25 01:00", "25 01:30", "25 02:00"],
            id="every half hour, the clock goes back: on and on",
        ),
        pytest.param(
            *("*/30 * * * *", "2026-03-29T00:00", "2026-03-29T02:01"),
            ["29 00:30", "29 01:00", "29 01:30", "29 02:00"],
            id="every half hour, the clock goes forward: on and on",
        ),
    ],
)
def test_changes_of_the_clocks(cron: str, start: str, end: str, expected: list[str]) -> None:
    assert _slots(schedule(cron=cron, timezone="Europe/Berlin"), at(start), at(end)) == expected


@pytest.mark.parametrize(
    ("fields", "spread"),
    [
        pytest.param({"every": "15m", "jitter": "auto"}, 90, id="a tenth"),
        pytest.param({"every": "1d", "jitter": "auto"}, 600, id="10 minutes at most"),
        pytest.param({"cron": "30 1 * * *", "jitter": "auto"}, 600, id="10 minutes of a daily line"),
        pytest.param({"cron": "*/5 9-17 * * MON-FRI", "jitter": "auto"}, 30, id="a tenth of a line's shortest gap"),
        pytest.param({"cron": "30 1 * * *", "jitter": "2h"}, 7200, id="as long as is asked"),
        pytest.param({"every": "1d", "jitter": "none"}, 1, id="none"),
        pytest.param({"every": "5s", "jitter": "auto"}, 1, id="none below ten seconds"),
    ],
)
def test_vms_are_spread_and_each_keeps_its_place(fields: dict[str, str], spread: int) -> None:
    plan, bare = Schedule(**fields), Schedule(**(fields | {"jitter": "none"}))
    delays = set()
    for number in range(300):
        due = next_slot(plan, f"vm-{number}", at("2026-03-01T12:00:00"))
        assert due is not None
        tick = slot(bare, "", due)
        assert tick is not None
        delays.add((due - tick).total_seconds())
    assert min(delays) >= 0 and max(delays) < spread
    assert len(delays) > min(spread, 300) * 0.4


def test_the_delay_is_the_same_in_every_process_and_version() -> None:
    # Were it to change, all VMs would run twice in the interval of an upgrade.
    due = slot(Schedule(every="1h", jitter="10m"), VM, at("2026-03-01T12:59:59"))
    assert due == at("2026-03-01T12:00:00") + timedelta(seconds=172)


def test_missed_slots_run_once() -> None:
    plan = schedule(every="15m")
    assert is_due(plan, VM, None, at("2026-03-01T12:00:00"))
    # The control plane was down for five hours: one run, then none until the next slot.
    now = at("2026-03-01T12:07:00")
    assert is_due(plan, VM, "2026-03-01T07:00:00Z", now)
    used = slot(plan, VM, now)
    assert used is not None
    assert not is_due(plan, VM, slot_name(used), now)
    assert not is_due(plan, VM, slot_name(used), at("2026-03-01T12:14:59"))
    assert is_due(plan, VM, slot_name(used), at("2026-03-01T12:15:00"))


def test_a_slot_used_by_a_wrong_clock_does_not_stop_the_schedule() -> None:
    plan = schedule(every="15m")
    assert is_due(plan, VM, "2036-01-01T00:00:00Z", at("2026-03-01T12:07:00"))


def test_slot_names_sort_by_time_and_are_utc() -> None:
    summer = datetime.fromisoformat("2026-07-01T02:00:00+02:00")
    assert slot_name(summer) == "2026-07-01T00:00:00Z"


EVERY = st.builds("{}{}".format, st.integers(1, 90), st.sampled_from("smhdw"))
JITTER = st.one_of(st.just("auto"), st.just("none"), EVERY)
MINUTES = st.sampled_from(["0", "30", "*", "*/20", "5,55", "59"])
HOURS = st.sampled_from(["*", "2", "1-3", "*/6", "0,23", "2,3"])
DAYS = st.sampled_from(["* * *", "1 * *", "* * MON", "L * *", "15 6 *"])
CRON = st.builds("{} {} {}".format, MINUTES, HOURS, DAYS)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata"])
PLANS = st.one_of(
    st.builds(Schedule, every=EVERY, jitter=JITTER),
    st.builds(Schedule, cron=CRON, timezone=ZONES, jitter=JITTER),
)
#: Around the changes of the clocks in Berlin, and any time.
MOMENTS = st.one_of(
    st.datetimes(datetime(2026, 3, 28), datetime(2026, 3, 30), timezones=st.just(UTC)),
    st.datetimes(datetime(2026, 10, 24), datetime(2026, 10, 26), timezones=st.just(UTC)),
    st.datetimes(datetime(2001, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)),
)


@settings(max_examples=150, deadline=None)
@given(PLANS, MOMENTS, st.integers(0, 3 * 86400), st.text("abcdef", min_size=1, max_size=4))
def test_time_does_not_run_backwards(plan: Schedule, now: datetime, later: int, vm: str) -> None:
    before, after = slot(plan, vm, now), slot(plan, vm, now + timedelta(seconds=later))
    assert before is not None and after is not None
    assert before <= now and before <= after
    following = next_slot(plan, vm, now)
    assert following is not None and following > now
    # There is nothing between the last slot and the next one, and each is its own last.
    assert slot(plan, vm, following) == following
    assert slot(plan, vm, following - timedelta(seconds=1)) == before or following - now < timedelta(seconds=1)
    assert slot(plan, vm, before) == before


@settings(max_examples=100, deadline=None)
@given(EVERY, JITTER, MOMENTS, st.lists(st.integers(1, 100_000), min_size=2, max_size=20))
def test_never_two_slots_within_an_interval(every: str, jitter: str, start: datetime, steps: list[int]) -> None:
    plan = Schedule(every=every, jitter=jitter)
    used, now = [], start
    for step in steps:
        now += timedelta(seconds=step)
        due = slot(plan, VM, now)
        assert due is not None
        if is_due(plan, VM, slot_name(used[-1]) if used else None, now):
            used.append(due)
    assume(len(used) > 1)
    assert all(later - earlier >= timedelta(seconds=seconds(every)) for earlier, later in pairwise(used))
