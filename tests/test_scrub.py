"""Which part is compared when: everything in its turn, whatever was missed meanwhile."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import due, scrub
from workers.catalogue import Scrub

VM = "5029d1c2-0000-0000-0000-000000000001"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIB = 1 << 20
DISKS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 40).map(lambda n: n * 700_000), min_size=1)


class Replica:
    """Compared as a worker would: every run records how far it came."""

    def __init__(self, disks: dict[str, int], share: float) -> None:
        self.disks, self.share = disks, share
        self.known: Scrub | None = None
        self.seen: dict[str, list[tuple[int, int]]] = {}

    def due(self, now: datetime) -> bool:
        since = scrub.due_since(self.share, self.known, START, VM, now)
        assert since is None or START < since <= now
        return since is not None

    def run(self, now: datetime, most: int) -> None:
        """One run, which may end after `most` bytes."""
        again = self.known is not None and self.known.ended is None
        began = self.known.began if self.known is not None and again else now
        part = scrub.share_due(self.share, began, VM, now)
        chosen, before, total = scrub.scope(list(self.disks.items()), self.known, part)
        covered = before
        for disk, (start, end) in chosen.items():
            stop = min(end, start + most)
            self.seen.setdefault(disk, []).append((start, stop))
            covered, most = covered + stop - start, most - (stop - start)
            if stop < end:
                break
        name, offset = scrub.place(self.disks, covered)
        ended = now if covered >= total else None
        self.known = Scrub(target="t", began=began, ended=ended, part=name, offset=offset, covered=covered, total=total)


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(DISKS, st.floats(0.03, 1), st.lists(st.booleans(), max_size=30), st.integers(MIB, 60 * MIB))
def test_every_byte_has_its_turn(disks: dict[str, int], share: float, missed: list[bool], most: int) -> None:
    """Days without a worker, and runs that end early: the round is over after 1/share days all the same, or as soon
    after them as there is a worker."""
    replica = Replica(disks, share)
    wanted = math.ceil(1 / share - 1e-9)
    first = None
    for day in range(1, wanted + len(missed) + 3):
        now = START + timedelta(days=day)
        if first is not None and day - first < len(missed) and missed[day - first]:
            continue
        for _ in range(10_000):
            if not replica.due(now):
                break
            first = first or day
            replica.run(now, most)
        else:
            pytest.fail("it does not come to an end")
        assert first is not None
        if replica.known is not None and replica.known.ended is not None:
            break
    for disk, size in disks.items():
        at = 0
        for start, end in replica.seen[disk]:
            assert start == at, "no gap, nothing twice"
            at = end
        assert at == size
    assert first is not None and day - first < wanted + len(missed)
    assert not replica.due(now), "the next round begins on another day"
    assert replica.due(now + timedelta(days=1))


def test_parts_are_spread_over_the_days() -> None:
    replica = Replica({"a": 100 * MIB}, 0.1)
    for day in range(1, 11):
        now = START + timedelta(days=day)
        assert replica.due(now)
        replica.run(now, 1 << 40)
        assert not replica.due(now)
        assert replica.known is not None and replica.known.covered == day * 10 * MIB


def test_nothing_is_due() -> None:
    later = START + timedelta(days=3)
    assert scrub.due_since(0, None, START, VM, later) is None, "switched off"
    assert scrub.due_since(0.5, None, START, VM, START) is None, "synced just now"
    assert scrub.due_since(0.5, None, START, VM, later) is not None


def test_each_vm_has_its_own_time_of_day() -> None:
    turns = set()
    for number in range(40):
        who = f"vm-{number}"
        turns.add(next(h for h in range(25) if scrub.due_since(0.1, None, START, who, START + timedelta(hours=h))))
    assert len(turns) > 12


def test_a_part_has_one_try_a_day_at_each_place() -> None:
    at = Scrub(target="t", began=START, part="a", offset=5, covered=5, total=100)
    now = START + timedelta(days=2)
    assert scrub.slot(at, VM, now) == scrub.slot(at, VM, now + timedelta(seconds=1))
    assert scrub.slot(at, VM, now) != scrub.slot(at.model_copy(update={"covered": 6}), VM, now)
    assert scrub.slot(at, VM, now) != scrub.slot(at, VM, now + timedelta(days=1))
    assert scrub.slot(None, VM, now) == scrub.slot(at.model_copy(update={"ended": START}), VM, now)


def test_disks_come_and_go_within_a_round() -> None:
    """A removed one counts no more; one before the place of the round has its turn in the next."""
    known = Scrub(target="t", began=START, part="b", offset=4 * MIB, covered=14 * MIB, total=20 * MIB)
    chosen, before, total = scrub.scope([("b", 10 * MIB), ("c", 2 * MIB)], known, 1)
    assert (chosen, before, total) == ({"b": (4 * MIB, 10 * MIB), "c": (0, 2 * MIB)}, 4 * MIB, 12 * MIB)
    chosen, _, _ = scrub.scope([("a", MIB), ("b", 5 * MIB)], known, 1)
    assert chosen == {"b": (4 * MIB, 5 * MIB)}
    chosen, _, _ = scrub.scope([("a", MIB)], known, 1)
    assert chosen == {}


@settings(deadline=None, max_examples=200)
@given(st.floats(0.001, 1), st.integers(0, 300 * MIB), st.integers(1, 300 * MIB), st.integers(0, 400))
def test_since_when_a_part_is_due(share: float, covered: int, total: int, days: int) -> None:
    """The first slot at which it would have been due, looked for one by one."""
    known = Scrub(target="t", began=START, covered=min(covered, total), total=total)
    now = START + timedelta(days=days, hours=1)
    since = scrub.due_since(share, known, START, VM, now)
    first = due.slot(scrub.DAILY, VM, START)
    assert first is not None
    slots = [first + timedelta(days=day) for day in range(days + 2)]
    wanted = (at for at in slots if at <= now and scrub.due_since(share, known, START, VM, at) is not None)
    assert since == next(wanted, None)


def test_who_was_passed_over_for_more_than_a_day_goes_first_once_a_day() -> None:
    known = Scrub(target="t", began=START, covered=10 * MIB, total=100 * MIB)
    first = due.slot(scrub.DAILY, VM, START)
    assert first is not None
    now = first + timedelta(days=2)
    since = scrub.due_since(0.1, known, START, VM, now)
    assert since == first + timedelta(days=1) and not scrub.goes_first(since, None, VM, now)
    now += timedelta(seconds=1)
    assert scrub.goes_first(since, None, VM, now)
    yesterday, today = (scrub.slot(known, VM, at) for at in (now - timedelta(days=1), now))
    assert scrub.goes_first(since, yesterday, VM, now) and not scrub.goes_first(since, today, VM, now)
    assert not scrub.goes_first(None, None, VM, now)


def test_what_is_late_is_said() -> None:
    day = 86400.0
    assert scrub.lateness("it", None, None) == scrub.lateness("it", day, None) == ""
    assert scrub.lateness("it", 1.5 * day, None) == "it is 1 day late; all of it never was compared"
    assert scrub.lateness("it", 9.5 * day, START) == (
        "it is 9 days late; all of it was compared last until 2026-03-01 12:00 UTC"
    )
