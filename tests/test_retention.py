"""Which restore points are kept, and why."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.retention import PERIODS, expired, reasons
from workers.settings import Keep

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class P(NamedTuple):
    id: str
    seq: int
    data_time: datetime = START


def points(*numbers: int) -> list[P]:
    return [P(f"p{number}", number) for number in numbers]


def daily(count: int, *, start: datetime = START, step: timedelta = timedelta(days=1)) -> list[P]:
    return [P(f"p{i}", i, start + i * step) for i in range(count)]


def held(*ids: str) -> dict[str, list[str]]:
    return {each: ["pinned by replica dr/web-01"] for each in ids}


@pytest.mark.parametrize(
    ("numbers", "last", "needed", "gone"),
    [
        pytest.param([], 3, [], [], id="none"),
        pytest.param([1, 2, 3], 3, [], [], id="as many as are kept"),
        pytest.param([1, 2, 3, 4, 5], 3, [], [1, 2], id="the oldest first"),
        pytest.param([5, 3, 1, 4, 2], 3, [], [1, 2], id="in any order"),
        pytest.param([1, 2, 3, 4, 5], 2, ["p1", "p4"], [2, 3], id="needed ones stay and do not count"),
        pytest.param([7], 1, [], [], id="the only one stays"),
        pytest.param([1, 2, 3], 1, ["of another VM"], [1, 2], id="unknown needs are nobody's"),
    ],
)
def test_last(numbers: list[int], last: int, needed: list[str], gone: list[int]) -> None:
    assert expired(points(*numbers), [Keep(last=last)], held(*needed)) == points(*gone)


def test_without_a_rule_nothing_goes() -> None:
    """A VM that no group names any more, or a query that failed, is no reason to give points up."""
    assert expired(points(1, 2, 3), []) == []


def test_each_reason_in_words() -> None:
    have = [
        P("a", 1, datetime(2025, 12, 31, 23, tzinfo=UTC)),
        P("b", 2, datetime(2026, 11, 20, 9, tzinfo=UTC)),
        P("c", 3, datetime(2026, 11, 20, 23, 30, tzinfo=UTC)),
    ]
    rule = Keep(last=1, hourly=1, daily=2, weekly=1, monthly=1, yearly=2, timezone="Europe/Berlin")
    assert reasons(have, [rule], held("b")) == {
        "a": (),  # in Berlin the year 2026 has begun, and that has a newer point
        "b": ("daily 2026-11-20", "pinned by replica dr/web-01"),
        "c": (
            *("the newest", "one of the last 1", "hourly 2026-11-21 00:00", "daily 2026-11-21"),
            *("weekly 2026-W47", "monthly 2026-11", "yearly 2026"),
        ),
    }


def test_a_vm_in_several_groups_keeps_what_any_of_them_keeps() -> None:
    have = daily(40)
    rules = [Keep(last=3), Keep(monthly=2), Keep(weekly=2, timezone="Asia/Tokyo")]
    gone = [set(expired(have, [rule])) for rule in rules]
    assert set(expired(have, rules)) == gone[0] & gone[1] & gone[2]


def test_an_hour_that_comes_twice_is_two() -> None:
    have = daily(5, start=datetime(2026, 10, 24, 23, 15, tzinfo=UTC), step=timedelta(hours=1))
    kept = reasons(have, [Keep(hourly=5, timezone="Europe/Berlin")])
    assert [why[-1] for why in kept.values()] == [
        "hourly 2026-10-25 04:00",
        "hourly 2026-10-25 03:00",
        "hourly 2026-10-25 02:00 (the second)",
        "hourly 2026-10-25 02:00",
        "hourly 2026-10-25 01:00",
    ]


def test_hole_16_a_clock_that_stepped_back_drops_no_more_than_stated() -> None:
    """Two workers whose clocks differ by a day take turns: seven days stay seven days of history."""
    have = [P(f"p{i}", i, START + timedelta(hours=3 * i) - timedelta(days=i % 2)) for i in range(100)]
    kept = reasons(have, [Keep(daily=7)])
    days = [reason for why in kept.values() for reason in why if reason.startswith("daily")]
    assert len(days) == len(set(days)) == 7


def test_hole_16_points_of_a_wrong_century_are_ordered_by_number() -> None:
    old, wrong = daily(30), [P("w1", 30, START - timedelta(days=9000)), P("w2", 31, START + timedelta(days=9000))]
    kept = [each for each, why in reasons(old + wrong, [Keep(daily=4)]).items() if why]
    assert kept == ["w2", "w1", "p29", "p28"]


# --- what always holds --------------------------------------------------------------------------------------------

rules = st.lists(
    st.builds(
        Keep,
        last=st.integers(1, 5),
        hourly=st.integers(0, 5),
        daily=st.integers(0, 5),
        weekly=st.integers(0, 3),
        monthly=st.integers(0, 3),
        yearly=st.integers(0, 2),
        timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"]),
    ),
    min_size=1,
    max_size=3,
)
#: hours from one point to the next; a clock may step back
steps = st.lists(st.one_of(st.integers(0, 30), st.integers(-200, 2000)), max_size=40)


def lived(hours: list[int]) -> list[P]:
    made, at = [], START
    for i, step in enumerate(hours):
        at += timedelta(hours=step)
        made.append(P(f"p{i}", i, at))
    return made


@given(steps, rules, st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_what_always_holds(hours: list[int], keep: list[Keep], needed: set[int], shuffle: random.Random) -> None:
    have = lived(hours)
    wanted = held(*(f"p{i}" for i in needed))
    mixed = list(have)
    shuffle.shuffle(mixed)
    gone = expired(mixed, keep, wanted)
    kept = [point for point in have if point not in gone]
    assert gone == sorted(gone, key=lambda point: point.seq) == expired(have, keep, wanted)
    assert not have or have[-1] in kept
    assert not {point.id for point in gone} & set(wanted)
    for rule in keep:
        assert set(have[-rule.last :]) <= set(kept)
        zone = ZoneInfo(rule.timezone)
        for name, period in PERIODS.items():
            there = {period(point.data_time.astimezone(zone)) for point in have}
            still = {period(point.data_time.astimezone(zone)) for point in kept}
            assert len(still) >= min(len(there), getattr(rule, name))
    assert expired(kept, keep, wanted) == [], "done twice is done once"


@given(steps, rules, st.integers(-200, 2000))
def test_a_new_point_brings_none_back(hours: list[int], keep: list[Keep], step: int) -> None:
    """So it does not matter how often retention runs, nor that one that was given up is gone."""
    have = lived(hours)
    gone = expired(have, keep)
    newer = P("new", len(have), (have[-1].data_time if have else START) + timedelta(hours=step))
    assert set(gone) <= set(expired([*have, newer], keep))


class Oracle:
    """The same rules as a shelf: each period has one place, a new point takes it, places beyond the count are cleared.

    Only for clocks that run forward, as the shelf is sorted by time.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.zone = ZoneInfo(keep.timezone)
        self.last: list[str] = []
        self.shelves: dict[str, dict[tuple[int, ...], str]] = {name: {} for name in PERIODS}

    def add(self, point: P) -> set[str]:
        at = point.data_time.astimezone(self.zone)
        key = {
            "hourly": (int(point.data_time.timestamp()) // 3600,),
            "daily": (at.toordinal(),),
            "weekly": ((at.toordinal() - 1) // 7,),
            "monthly": (at.year, at.month),
            "yearly": (at.year,),
        }
        self.last = [*self.last, point.id][-self.keep.last :] if self.keep.last else []
        for name, shelf in self.shelves.items():
            shelf[key[name]] = point.id
            while len(shelf) > getattr(self.keep, name):
                del shelf[min(shelf)]
        return {point.id, *self.last, *(each for shelf in self.shelves.values() for each in shelf.values())}


@pytest.mark.parametrize(
    "keep",
    [
        Keep(last=14),
        Keep(daily=7, weekly=4, monthly=12, yearly=2, timezone="Europe/Berlin"),
        Keep(last=3, hourly=24, daily=7, weekly=4, monthly=12, yearly=2, timezone="America/New_York"),
    ],
    ids=str,
)
def test_three_years_of_every_day(keep: Keep) -> None:
    """Applied after each backup to what the time before left: what the oracle says is kept, point for point."""
    oracle, have = Oracle(keep), list[P]()
    for i in range(3 * 366):
        made = P(f"p{i}", i, START + timedelta(hours=20 * i))
        gone = set(expired([*have, made], [keep]))
        have = [point for point in (*have, made) if point not in gone]
        assert {point.id for point in have} == oracle.add(made)


@settings(max_examples=40)
@given(rules.map(lambda keep: keep[0]), st.lists(st.integers(1, 300), max_size=60))
def test_the_oracle_agrees_on_any_life(keep: Keep, hours: list[int]) -> None:
    oracle, have = Oracle(keep), list[P]()
    for made in lived(hours):
        gone = set(expired([*have, made], [keep]))
        have = [point for point in (*have, made) if point not in gone]
        assert {point.id for point in have} == oracle.add(made)
