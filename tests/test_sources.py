"""Which store a replica is brought up from: a table of what is found, and what is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from workers.settings import Group
from workers.sources import Seen, choose, newest_of, order

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Point(NamedTuple):
    id: str
    seq: int
    data_time: datetime


def point(seq: int) -> Point:
    """Of so many hours ago as it is short of 10."""
    return Point(f"{seq:08d}-aa", seq, NOW - timedelta(hours=10 - seq))


def seen(store: str, *seqs: int, why: str = "") -> Seen:
    return Seen(store, tuple(map(point, seqs)), why)


DOWN = "its mount is gone"


@pytest.mark.parametrize(
    ("far", "main", "held", "rpo", "wanted", "store", "said"),
    [
        (seen("far", 3), seen("main", 3), None, None, (), "far", ""),
        (seen("far", 3), seen("main", 4), 3, None, (), "far", ""),  # what is not copied yet is waited for
        (seen("far", why=DOWN), seen("main", 4), 3, None, (), "main", f"far can not be read ({DOWN})"),
        (seen("far"), seen("main", 4), None, None, (), "main", "far has no restore point of it"),
        (seen("far", 3), seen("main", 4), 4, None, (), "main", "far is behind the replica, which holds 00000004-aa"),
        (seen("far", 3), seen("main", 9), 3, 3600 * 5, (), "main", "older than the rpo of 18000 s"),
        (seen("far", 6), seen("main", 9), 3, 3600 * 5, (), "far", ""),
        (seen("far", 3), seen("main", 3), 3, 60, (), "far", ""),  # late, but nothing newer is anywhere
        (seen("far", 3), seen("main", why=DOWN), 3, 60, (), "far", f"main can not be read ({DOWN})"),
        (seen("far", 3), seen("main", 2, 3, 4), 3, None, (2,), "main", "far does not have 00000002-aa"),
        (seen("far", 2, 3), seen("main", 4), 4, None, (2,), "far", ""),
        (seen("far", why=DOWN), seen("main"), None, None, (), "main", "main has no restore point of it"),
        (seen("far", why=DOWN), seen("main", why=DOWN), None, None, (), None, "main can not be read"),
    ],
)
def test_the_first_that_will_do(
    far: Seen, main: Seen, held: Any, rpo: Any, wanted: Any, store: str | None, said: str
) -> None:
    choice = choose(
        ("far", "main"),
        {"far": far, "main": main}.__getitem__,
        held=point(held).id if held else None,
        now=NOW,
        rpo=rpo,
        wanted=[point(seq).id for seq in wanted],
    )
    assert choice.store == store
    assert said in choice.reason and bool(said) == bool(choice.reason)


def test_a_store_that_is_not_needed_is_not_asked() -> None:
    """The first site may be down, and its file server slow to say so."""
    asked: list[str] = []

    def look(store: str) -> Seen:
        asked.append(store)
        return seen(store, 3)

    assert choose(("far", "main"), look, held=None, now=NOW).store == "far"
    assert asked == ["far"]


def test_the_order_is_that_of_the_group_with_the_target() -> None:
    group = {"source": "prod", "vms": ["a"], "store": "main"}
    plain = Group.model_validate({**group, "target": "dr"})
    chosen = Group.model_validate({**group, "target": "dr", "sources": ["far", "main"]})
    other = Group.model_validate({**group, "target": "else", "sources": ["third"]})
    assert order([other, plain, chosen], "dr", "main") == ("far", "main")
    assert order([other, plain], "dr", "main") == ("main",)
    known = {"far": point(3), "main": point(4)}
    assert newest_of([chosen], "dr", "main", known.get, None, NOW) == point(3)
    assert newest_of([plain], "dr", "main", known.get, None, NOW) == point(4)
    assert newest_of([chosen], "dr", "main", {"main": point(4)}.get, None, NOW) == point(4)
