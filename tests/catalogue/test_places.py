"""Few places: never more holders than places, the dead give theirs back, and nobody waits for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import sqlalchemy as sa

from workers.catalogue import Catalogue, Full, schema

TWO = {"host esx1": 2, "datastore ds1": 1}
BOTH = {"ds1": 1, "ds2": 1}


def test_all_places_or_none(catalogue: Catalogue) -> None:
    assert catalogue.take_places("a", {"host esx1": 2}, 30) is None
    assert catalogue.take_places("b", TWO, 30) is None
    assert catalogue.take_places("c", {"host esx1": 2}, 30) == Full("host esx1", None)
    catalogue.leave_places("a")
    assert catalogue.take_places("c", TWO, 30) == Full("datastore ds1", None)
    assert catalogue.places() == {"host esx1": ["b"], "datastore ds1": ["b"]}
    assert catalogue.take_places("b", TWO, 30) is None  # what it has already
    catalogue.keep_places("b", 60)
    catalogue.leave_places("b")
    catalogue.leave_places("b")
    catalogue.keep_places("b", 60)
    assert catalogue.take_places("c", TWO, 30) is None
    assert catalogue.take_places("d", {}, 30) is None


def test_the_dead_hold_nothing(catalogue: Catalogue) -> None:
    assert catalogue.take_places("dead", TWO, 30) is None
    _let_leases_end(catalogue)
    assert catalogue.places() == {}
    assert catalogue.take_places("next", TWO, 30) is None
    assert catalogue.places()["host esx1"] == ["next"]


def _let_leases_end(catalogue: Catalogue) -> None:
    with catalogue.write() as conn:
        conn.execute(sa.text("update places set lease_until = '2000-01-01 00:00:00.000000'"))


def test_who_shares_a_link_knows_how_many_they_are(catalogue: Catalogue) -> None:
    assert [catalogue.share("link wan", holder, 15) for holder in ("a", "b", "a")] == [1, 2, 2]
    assert catalogue.share("link other", "a", 15) == 1
    catalogue.leave_places("b")
    assert catalogue.share("link wan", "a", 15) == 1


def test_many_at_once_never_get_more_than_there_are(catalogue: Catalogue) -> None:
    def take(number: int) -> bool:
        return catalogue.take_places(f"w{number}", {"vcenter prod": 3}, 30) is None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(16))) == 3
    assert len(catalogue.places()["vcenter prod"]) == 3


def test_who_needs_several_places_gets_them_though_others_always_come_for_one(catalogue: Catalogue) -> None:
    """Somebody new takes each place the moment that it comes free: both are never free at once by chance."""
    now = catalogue.now()
    early = now - timedelta(hours=1)
    holders = {"ds1": "one", "ds2": "two"}
    for place, holder in holders.items():
        assert catalogue.take_places(holder, {place: 1}, 30) is None
    for turn, place in enumerate(("ds1", "ds2") * 2):
        # (who does not wait in line is the same as nobody: the places go on from one to the next)
        assert catalogue.take_places("wide", BOTH, 30, since=None if turn < 2 else early) is not None
        catalogue.leave_places(holders[place])
        came = catalogue.take_places(f"new {turn}", {place: 1}, 30, since=now)
        assert came == (None if turn < 2 else Full(place, 1))
        holders[place] = f"new {turn}"
    assert catalogue.take_places("wide", BOTH, 30, since=early) is None
    assert catalogue.places() == {"ds1": ["wide"], "ds2": ["wide"]}
    assert catalogue.take_places("new 2", {"ds1": 1}, 30, since=now) == Full("ds1", 0), "the line goes on"
    catalogue.leave_places("wide")
    assert catalogue.take_places("new 2", {"ds1": 1}, 30, since=now) is None


def test_one_place_is_kept_for_who_waits_and_no_more(catalogue: Catalogue) -> None:
    now = catalogue.now()
    for holder in "abcd":
        assert catalogue.take_places(holder, {"ds1": 4}, 30) is None
    assert catalogue.take_places("full", {"ds2": 1}, 30) is None
    for hours in (3, 2):
        waits = catalogue.take_places(f"old {hours}", {"ds1": 4, "ds2": 1}, 30, since=now - timedelta(hours=hours))
        assert waits == Full("ds1", 3 - hours)
    catalogue.leave_places("a")
    catalogue.leave_places("b")
    assert catalogue.take_places("new", {"ds1": 4}, 30) is None, "one of the two is enough"
    assert catalogue.take_places("newer", {"ds1": 4}, 30, since=now) == Full("ds1", 2)
    catalogue.leave_places("full")
    assert catalogue.take_places("old 2", {"ds1": 4, "ds2": 1}, 30, since=now - timedelta(hours=2)) == Full("ds1", 1)
    assert catalogue.take_places("old 3", {"ds1": 4, "ds2": 1}, 30, since=now - timedelta(hours=3)) is None
    assert catalogue.places() == {"ds1": ["c", "d", "new", "old 3"], "ds2": ["old 3"]}


def test_who_waits_and_died_keeps_nobody_waiting(catalogue: Catalogue) -> None:
    early = catalogue.now() - timedelta(hours=1)
    assert catalogue.take_places("a", {"ds1": 1}, 30) is None
    assert catalogue.take_places("dead", BOTH, 30, since=early) == Full("ds1", 0)
    assert catalogue.take_places("new", {"ds2": 1}, 30) == Full("ds2", None)
    _let_leases_end(catalogue)
    assert catalogue.take_places("new", BOTH, 30) is None
    # and who was given up, or wants something else by now
    assert catalogue.take_places("b", {"ds3": 1}, 30) is None
    assert catalogue.take_places("given up", {"ds3": 1, "ds4": 1}, 30, since=early) is not None
    catalogue.leave_places("given up")
    assert catalogue.take_places("moved", {"ds3": 1, "ds4": 1}, 30, since=early) is not None
    assert catalogue.take_places("moved", {"ds3": 1, "ds5": 1}, 30, since=early) is not None
    assert catalogue.take_places("c", {"ds4": 1}, 30) is None


def test_most_find_a_place_before_anything_is_kept_for_them(catalogue: Catalogue) -> None:
    since = catalogue.now()
    assert catalogue.take_places("a", {"ds1": 1}, 30) is None
    assert catalogue.take_places("patient", BOTH, 30, since=since, patience_s=300) == Full("ds1", None)
    assert catalogue.take_places("new", {"ds2": 1}, 30) is None


def test_what_a_run_has_is_not_kept_for_others(catalogue: Catalogue) -> None:
    """Its next message finds its places again, however many wait."""
    early = catalogue.now() - timedelta(hours=1)
    assert catalogue.take_places("long", BOTH, 30) is None
    assert catalogue.take_places("old", BOTH, 30, since=early) is not None
    assert catalogue.take_places("long", BOTH, 30) is None
    assert catalogue.share("ds1", "somebody else", 30) == 2, "who waits shares nothing"


def test_a_look_costs_the_same_however_many_wait_and_for_how_much(catalogue: Catalogue) -> None:
    now, said = catalogue.now(), list[str]()
    lines = [
        {"resource": "r0", "holder": f"vm{n}", "lease_until": now + timedelta(hours=1), "waits_since": now}
        for n in range(2000)
    ]
    many = {f"r{n}": 1 for n in range(6)}
    sa.event.listen(catalogue.engine, "before_cursor_execute", lambda *given: said.append(given[2]))

    def cost(wanted: dict[str, int]) -> int:
        said.clear()
        catalogue.take_places("me", wanted, 30, since=now - timedelta(hours=1))
        return len(said)

    alone = cost({"r9": 1})
    assert cost(many) == alone <= 6
    with catalogue.write() as conn:
        conn.execute(sa.insert(schema.places), lines)
    assert catalogue.take_places("other", {"r0": 1}, 30) == Full("r0", None)
    assert cost(many) == alone, "it has the place of r0"
    catalogue.leave_places("me")
    assert catalogue.take_places("holder", {"r1": 1}, 30) is None
    assert cost(many) == alone, "also to stand in the line"
