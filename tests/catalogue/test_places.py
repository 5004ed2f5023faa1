"""Few places: never more holders than places, and the dead give theirs back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from workers.catalogue import Catalogue

TWO = {"host esx1": 2, "datastore ds1": 1}


def test_all_places_or_none(catalogue: Catalogue) -> None:
    assert catalogue.take_places("a", {"host esx1": 2}, 30) is None
    assert catalogue.take_places("b", TWO, 30) is None
    assert catalogue.take_places("c", {"host esx1": 2}, 30) == "host esx1"
    catalogue.leave_places("a")
    assert catalogue.take_places("c", TWO, 30) == "datastore ds1"
    assert catalogue.places() == {"host esx1": ["b"], "datastore ds1": ["b"]}
    assert catalogue.take_places("b", TWO, 30) is None  # what it has already
    catalogue.keep_places("b", 60)
    catalogue.leave_places("b")
    catalogue.leave_places("b")
    catalogue.keep_places("b", 60)
    assert catalogue.take_places("c", TWO, 30) is None


def test_the_dead_hold_nothing(catalogue: Catalogue) -> None:
    assert catalogue.take_places("dead", TWO, 30) is None
    with catalogue.write() as conn:
        conn.execute(sa.text("update places set lease_until = '2000-01-01 00:00:00.000000'"))
    assert catalogue.places() == {}
    assert catalogue.take_places("next", TWO, 30) is None
    assert catalogue.places()["host esx1"] == ["next"]


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
