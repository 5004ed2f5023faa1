"""Who is and was in a group, how the reading of inventories goes, and what rules are about."""

from __future__ import annotations

from datetime import timedelta

from tests.catalogue.races import race
from tests.catalogue.some import identity, vm
from tests.services import wait_for
from workers.catalogue import Catalogue


def inside(catalogue: Catalogue, group: str = "web") -> set[str]:
    return {row.vm for row in catalogue.memberships(group) if row.left is None}


def test_joining_leaving_and_coming_back(catalogue: Catalogue) -> None:
    catalogue.join_group("web", [identity(1), identity(2)])
    catalogue.join_group("db", [identity(1)])
    first = catalogue.memberships("web")
    assert [(row.vm, row.name, row.site, row.left, row.why) for row in first] == [
        ("uuid-1", "web-01", "prod", None, None),
        ("uuid-2", "web-02", "prod", None, None),
    ]
    wait_for(lambda: catalogue.now() > first[0].since, "a later time")
    catalogue.join_group("web", [identity(1), identity(2, name="renamed")])
    assert catalogue.memberships("web") == first  # since then, not since the last look

    catalogue.leave_group("web", {"uuid-1": "it is gone", "uuid-9": "never was here"})
    left = catalogue.memberships("web")[0]
    assert left.left is not None and left.left >= left.since and left.why == "it is gone"
    assert inside(catalogue) == {"uuid-2"} and inside(catalogue, "db") == {"uuid-1"}
    wait_for(lambda: catalogue.now() > left.since, "a later time")
    catalogue.leave_group("web", {"uuid-1": "another reason"})
    assert catalogue.memberships("web")[0] == left  # its grace goes on

    catalogue.join_group("web", [identity(1)])
    back = catalogue.memberships("web")[0]
    assert (back.left, back.why) == (None, None) and back.since > left.since
    assert len(catalogue.memberships()) == 3


def test_who_is_asked_about_is_still_inside(catalogue: Catalogue) -> None:
    catalogue.join_group("web", [identity(number) for number in range(1, 5)])
    catalogue.leave_group("web", {"uuid-4": "gone before"})
    catalogue.hold_in_group("web", {"uuid-1": "too many", "uuid-2": "too many", "uuid-4": "too many"})
    assert inside(catalogue) == {"uuid-1", "uuid-2", "uuid-3"}
    assert [row.why for row in catalogue.memberships()] == ["too many", "too many", None, "gone before"]
    catalogue.hold_in_group("web", {"uuid-2": "still"})
    assert [row.why for row in catalogue.memberships()] == [None, "still", None, "gone before"]
    catalogue.hold_in_group("web", {})
    assert [row.why for row in catalogue.memberships()] == [None, None, None, "gone before"]


def test_only_who_left_is_forgotten(catalogue: Catalogue) -> None:
    catalogue.join_group("web", [identity(1), identity(2)])
    catalogue.join_group("db", [identity(1)])
    catalogue.leave_group("web", {"uuid-1": "gone"})
    catalogue.drop_memberships("uuid-1")
    catalogue.drop_memberships("uuid-2")
    assert [(row.group, row.vm) for row in catalogue.memberships()] == [("db", "uuid-1"), ("web", "uuid-2")]


def test_eight_that_join_and_leave_at_once(catalogue: Catalogue) -> None:
    catalogue.join_group("web", [identity(1)])
    race(8, _come_and_go, catalogue)
    rows = catalogue.memberships("web")
    assert {row.vm for row in rows} == {f"uuid-{number}" for number in range(1, 4)}
    assert all((row.left is None) == (row.why is None) for row in rows)


def _come_and_go(number: int, catalogue: Catalogue) -> None:
    catalogue.join_group("web", [identity(each) for each in range(1, 4)])
    catalogue.leave_group("web", {f"uuid-{number % 3 + 1}": f"by {number}"})


def test_the_facts_that_rules_are_about(catalogue: Catalogue) -> None:
    known = vm(1).model_copy(update={"datastores": ("a", "b"), "cluster": "blue", "tags": ("tier:web",)})
    empty = vm(2).model_copy(update={"datastores": (), "cluster": "", "tags": ()})
    catalogue.record_inventory("prod", [known, empty, vm(3)])
    found = [(v.datastores, v.cluster, v.tags) for v in catalogue.inventory()]
    assert found == [(("a", "b"), "blue", ("tier:web",)), ((), "", ()), (None, None, None)]
    catalogue.record_inventory("prod", [known.model_copy(update={"tags": None})])
    assert catalogue.inventory()[0].tags is None  # not asked this time: what was known is old


def test_how_the_reading_goes(catalogue: Catalogue) -> None:
    assert catalogue.inventories() == []
    assert catalogue.inventory_failed("dr", "no answer")
    assert not catalogue.inventory_failed("dr", "no answer")
    (never,) = catalogue.inventories()
    assert (never.complete, never.asked, never.why) == (None, None, "no answer") and never.failed is not None

    catalogue.record_inventory("prod", [vm(1)])
    good = catalogue.inventories()[1]
    assert good.site == "prod" and good.complete is not None and (good.failed, good.why) == (None, None)
    assert catalogue.inventory_failed("prod", "half an answer")
    first = catalogue.inventories()[1]
    assert first.failed is not None
    wait_for(lambda: catalogue.now() > first.failed, "a later time")
    assert catalogue.inventory_failed("prod", "no answer")  # another reason is news
    bad = catalogue.inventories()[1]
    assert (bad.complete, bad.failed, bad.why) == (good.complete, first.failed, "no answer")
    assert catalogue.inventory()[0].gone_since is None
    catalogue.record_inventory("prod", [vm(1)])
    assert catalogue.inventories()[1].why is None


def test_an_answer_that_was_overtaken_counts_nothing(catalogue: Catalogue) -> None:
    """Two readings at once: the slower one was asked before the new VM was there."""
    asked = catalogue.now()
    later = asked + timedelta(milliseconds=5)
    wait_for(lambda: catalogue.now() >= later, "that time")
    catalogue.record_inventory("prod", [vm(1), vm(2)], later)
    catalogue.record_inventory("prod", [vm(1)], asked)
    assert [known.gone_since for known in catalogue.inventory()] == [None, None]
    assert catalogue.inventories()[0].asked == later
    catalogue.record_inventory("prod", [vm(1)], later)
    assert catalogue.inventory()[1].gone_since is not None
