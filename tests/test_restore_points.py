"""Which restore point is meant: "newest", an id or its start, or a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from workers.errors import BadInput, NotFound
from workers.restore_points import choose

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Point(NamedTuple):
    id: str
    seq: int
    data_time: datetime


POINTS = [
    Point("00000001-aa", 1, NOON),
    Point("00000002-ab", 2, NOON + timedelta(hours=1)),
    Point("00000002-ac", 2, NOON + timedelta(hours=1)),  # of another store
    Point("00000003-ad", 3, NOON + timedelta(hours=2)),
    Point("00000004-ae", 4, NOON - timedelta(hours=9)),  # a worker's clock stepped back
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("newest", "00000004-ae"),
        ("00000003-ad", "00000003-ad"),
        ("00000003", "00000003-ad"),
        ("00000002-ab", "00000002-ab"),
        ("2026-11-20 12:30", "00000001-aa"),
        ("2026-11-20T12:00:00", "00000001-aa"),
        ("2026-11-20 15:30+01:00", "00000003-ad"),
        ("2026-11-20 14:59+02:00", "00000001-aa"),
        ("2026-11-20 08:00", "00000004-ae"),
        ("2026-12-24", "00000003-ad"),
    ],
)
def test_what_is_meant(wanted: str, found: str) -> None:
    assert choose(POINTS, wanted, whose="web").id == found


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ("00000002", BadInput, "starts 2 restore points"),
        ("0000", BadInput, "starts 5 restore points"),
        ("2026-11-19", NotFound, "the oldest is of 2026-11-20 03:00:00 UTC"),
        ("last week", NotFound, "understudy points web"),
        ("", BadInput, "starts 5"),
    ],
)
def test_what_is_not_clear_is_asked(wanted: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        choose(POINTS, wanted, whose="web")


def test_without_points_the_first_thing_is_a_backup() -> None:
    with pytest.raises(NotFound, match="understudy backup web"):
        choose([], "newest", whose="web")
