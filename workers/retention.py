"""Which restore points of a VM are kept, and why, in words. Pure.

Points are ordered by their number, never by a clock: the time of a point's data only says which hour, day, week, month
or year it stands for. Nothing here depends on today, so a VM whose backups stand still loses nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

from workers.point import Dated
from workers.settings import Keep

P = TypeVar("P", bound=Dated)


def _hour(at: datetime) -> str:
    # When clocks go back an hour comes twice: two hours of history, not one.
    return f"{at:%Y-%m-%d %H:00}{' (the second)' if at.fold else ''}"


def _week(at: datetime) -> str:
    year, week, _ = at.isocalendar()
    return f"{year}-W{week:02d}"


#: rule -> what of a time makes its period
PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": _hour,
    "daily": lambda at: f"{at:%Y-%m-%d}",
    "weekly": _week,
    "monthly": lambda at: f"{at:%Y-%m}",
    "yearly": lambda at: f"{at:%Y}",
}


def reasons(
    points: Sequence[P], rules: Sequence[Keep], needed: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """For each point of one VM why it is kept; the empty tuple says that it may go.

    `rules` are those of all groups the VM is in: what one of them keeps is kept. `needed` are the ids that somebody
    holds (replicas, pins), with who, in words; they are kept whatever the rules say and do not count towards them. So
    is the newest: the next backup builds on it.
    """
    newest_first = sorted(points, key=lambda point: point.seq, reverse=True)
    found: dict[str, dict[str, None]] = {point.id: {} for point in newest_first}
    for point in newest_first[:1]:
        found[point.id]["the newest"] = None
    for rule in rules:
        for point in newest_first[: rule.last]:
            found[point.id][f"one of the last {rule.last}"] = None
        for name in PERIODS:
            for point, period in _of_periods(newest_first, name, rule):
                found[point.id][f"{name} {period}"] = None
    for point in newest_first:
        found[point.id].update(dict.fromkeys((needed or {}).get(point.id, ())))
    return {point.id: tuple(found[point.id]) for point in newest_first}


def _of_periods(newest_first: Sequence[P], name: str, rule: Keep) -> list[tuple[P, str]]:
    """The newest point of each of the last so many periods that have one.

    By number, so a period that comes again because a clock stepped back takes no second place from an older one.
    """
    count, zone = int(getattr(rule, name)), ZoneInfo(rule.timezone)
    chosen: dict[str, P] = {}
    for point in newest_first:
        if len(chosen) >= count:
            break
        chosen.setdefault(PERIODS[name](point.data_time.astimezone(zone)), point)
    return [(point, period) for period, point in chosen.items()]


def expired(points: Sequence[P], rules: Sequence[Keep], needed: Mapping[str, Sequence[str]] | None = None) -> list[P]:
    """Those of one VM that may be retired, the oldest first. Without any rule nothing may."""
    if not rules:
        return []
    why = reasons(points, rules, needed)
    return sorted((point for point in points if not why[point.id]), key=lambda point: point.seq)
