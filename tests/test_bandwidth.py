"""What crosses which link, and how fast it may: by tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.configurations import changed
from workers.bandwidth import crossed, rate
from workers.catalogue import Catalogue
from workers.links import LOOK, Share, turn
from workers.run import Here, NotYet
from workers.settings import Link, Settings, Window

WORK = {"from": "08:00", "to": "18:00", "days": "mon-fri", "rate": "10MB", "timezone": "Europe/Berlin"}
NIGHT = {"from": "22:00", "to": "06:00", "days": "fri", "rate": "90MB"}
LINK = Link.model_validate({"rate": "50MB", "windows": [WORK, NIGHT]})
FRIDAY = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("hours", "limit"),
    [
        (6.9, 50), (7, 10), (16.9, 10), (17, 50),  # in Berlin it is an hour later
        (21.9, 50), (22, 90), (24 + 5.9, 90), (24 + 6, 50),  # the night belongs to the friday
        (24 + 12, 50), (48 + 23, 50), (72 + 8, 10), (-24 + 23, 50),
    ],
)  # fmt: skip
def test_the_first_open_window_decides(hours: float, limit: int) -> None:
    assert rate(LINK, FRIDAY + timedelta(hours=hours)) == limit * 1_000_000


def test_summer_time_moves_the_window() -> None:
    assert rate(LINK, datetime(2026, 7, 24, 6, tzinfo=UTC)) == 10_000_000
    assert rate(LINK, datetime(2026, 7, 24, 16, tzinfo=UTC)) == 50_000_000


@pytest.mark.parametrize(
    ("at", "limit"),
    [
        # Saturday's window over the night in which summer time begins: an hour shorter, to the same time on the wall.
        ("2026-03-28T20:59", 50), ("2026-03-28T21:00", 90), ("2026-03-29T01:30", 90), ("2026-03-29T03:59", 90),
        ("2026-03-29T04:00", 50),
        # ... and in which it ends: the hour that comes twice is in it twice.
        ("2026-10-24T19:59", 50), ("2026-10-24T20:00", 90), ("2026-10-25T00:30", 90), ("2026-10-25T01:30", 90),
        ("2026-10-25T04:59", 90), ("2026-10-25T05:00", 50),
        ("2026-03-29T21:30", 50),  # of the sunday after it there is none
    ],
)  # fmt: skip
def test_a_night_in_which_the_clocks_change(at: str, limit: int) -> None:
    night = {"from": "22:00", "to": "06:00", "days": "sat", "rate": "90MB", "timezone": "Europe/Berlin"}
    link = Link.model_validate({"rate": "50MB", "windows": [night]})
    assert rate(link, datetime.fromisoformat(at).replace(tzinfo=UTC)) == limit * 1_000_000


def test_a_window_may_lift_the_limit_and_none_is_needed() -> None:
    free = Link.model_validate({"rate": "1MB", "windows": [{"from": "00:00", "to": "24:00", "days": "sat,sun"}]})
    assert rate(free, FRIDAY) == 1_000_000
    assert rate(free, FRIDAY + timedelta(days=1)) is None
    assert rate(Link(), FRIDAY) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("from", "8:00"), ("to", "25:00"), ("to", "08:00"), ("days", "monday"), ("days", ""), ("timezone", "Berlin")],
)
def test_mistakes_are_found(key: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Window.model_validate({**WORK, key: value})


def test_days_go_round_the_week() -> None:
    assert Window.model_validate({**WORK, "days": "sat-mon, wed"}).weekdays == {5, 6, 0, 2}


def settings(**changes: Any) -> Settings:
    wide = {"links": {"wan": {}, "ring": {}}, "sites.prod.link": None, "stores.far.link": None}
    return Settings.model_validate(changed(**{**wide, **changes}))


@pytest.mark.parametrize(
    ("changes", "prod", "dr"),
    [
        ({}, (), ()),
        ({"stores.main.link": "wan"}, ("wan",), ()),
        ({"sites.dr.link": "wan"}, ("wan",), ()),
        ({"sites.dr.link": "wan", "sites.prod.link": "wan"}, ("wan",), ()),
        ({"sites.dr.link": "wan", "sites.prod.link": "ring"}, ("wan", "ring"), ()),
        ({"sites.dr.link": "wan", "stores.main.link": "ring"}, ("ring",), ()),
        ({"stores.main.site": "", "stores.main.link": "wan"}, ("wan",), ("wan",)),
        ({"stores.main.site": "", "sites.prod.link": "wan"}, (), ()),  # nobody says that it is elsewhere
    ],
)
def test_what_is_between_a_store_and_workers(changes: dict[str, Any], prod: Any, dr: Any) -> None:
    """The store main stands at dr."""
    found = settings(**changes)
    assert (crossed(found, "main", "prod"), crossed(found, "main", "dr")) == (prod, dr)


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.at += seconds


def share(catalogue: Catalogue, holder: str, clock: Clock, rate: str | None = "1MB") -> Share:
    here = Here(settings(), catalogue)
    link = Link.model_validate({"rate": rate} if rate else {})
    return Share(here, "wan", link, holder, clock=clock, sleep=clock.sleep)


def test_all_who_use_a_link_share_it(tmp_path: Path) -> None:
    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()
    one, two = share(catalogue, "one", clock), share(catalogue, "two", clock)
    one.wait(10_000_000, lambda: False)
    assert clock.at == pytest.approx(1010)  # alone it has all of it
    two.wait(1000, lambda: False)
    assert (one.rate, two.rate) == (1_000_000, 500_000)
    clock.at += LOOK
    began = clock.at
    one.wait(5_000_000, lambda: False)  # it notices at its next look
    assert one.rate == 500_000 and clock.at - began == pytest.approx(10)
    catalogue.leave_places("two")
    clock.at += LOOK
    one.wait(1, lambda: False)
    assert one.rate == 1_000_000


def test_an_idle_time_is_not_made_up_for_and_a_lost_worker_does_not_wait(tmp_path: Path) -> None:
    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()
    one = share(catalogue, "one", clock)
    one.wait(1_000_000, lambda: False)
    clock.at += 3600
    began = clock.at
    one.wait(2_000_000, lambda: False)
    assert clock.at - began == pytest.approx(2)
    one.wait(10**12, lambda: clock.at > began + 10)
    assert clock.at - began < 13


def test_who_died_shares_no_longer_than_its_lease(tmp_path: Path) -> None:
    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()
    catalogue.share("link wan", "dead", 60)
    one = share(catalogue, "one", clock)
    one.wait(1, lambda: False)
    assert one.rate == 500_000
    catalogue.share("link wan", "dead", -1)
    clock.at += LOOK
    one.wait(1, lambda: False)
    assert one.rate == 1_000_000


def test_nobody_is_without_a_limit_because_the_catalogue_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.errors import CatalogueUnreachable

    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()

    def away(*_: object) -> int:
        raise CatalogueUnreachable("away")

    monkeypatch.setattr(catalogue, "share", away)
    one = share(catalogue, "one", clock)
    one.wait(2_000_000, lambda: False)
    assert one.rate == 1_000_000 and clock.at == pytest.approx(1002)


def test_without_a_limit_nobody_waits(tmp_path: Path) -> None:
    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()
    share(catalogue, "one", clock, rate=None).wait(10**15, lambda: False)
    assert clock.at == 1000


def test_a_catalogue_that_is_away_leaves_the_rate_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.errors import CatalogueUnreachable

    catalogue, clock = Catalogue.create(f"sqlite:///{tmp_path}/c.db"), Clock()
    one = share(catalogue, "one", clock)
    one.wait(1000, lambda: False)

    def away(*_: object) -> int:
        raise CatalogueUnreachable("away")

    monkeypatch.setattr(catalogue, "share", away)  # as it is said when its database is away
    clock.at += LOOK
    began = clock.at
    one.wait(1_000_000, lambda: False)
    assert clock.at - began == pytest.approx(1)


def test_a_link_that_few_can_share_is_for_few(tmp_path: Path) -> None:
    """Else all of them would be too slow for a task's time, and each be killed before anything of it is kept."""
    catalogue = Catalogue.create(f"sqlite:///{tmp_path}/c.db")
    narrow = {"links": {"wan": {"rate": "1MB"}}, "stores.main.link": "wan", "sites.prod.link": None}
    here = Here(settings(**narrow), catalogue)
    me: Any = SimpleNamespace(here=here, run=SimpleNamespace(site="prod"), owner="me")
    for number in range(10):
        turn(me, "main")
        catalogue.share("link wan", f"other {number}", 60)
    with pytest.raises(NotYet, match="its turn on the link wan: 10 workers share its 1000000 bytes a second"):
        turn(me, "main")
    me.run.site = "dr"  # where the store stands
    turn(me, "main")
    me.run.site = "prod"
    catalogue.leave_places("other 3")
    turn(me, "main")
    catalogue.share("link wan", "other 3", -1)  # it has died
    turn(me, "main")
    wide = {**narrow, "links": {"wan": {"rate": "1MB", "windows": [{"from": "00:00", "to": "24:00"}]}}}
    me.here = Here(settings(**wide), catalogue)
    catalogue.share("link wan", "other 3", 60)
    turn(me, "main")
