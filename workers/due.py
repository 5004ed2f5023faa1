"""When something is due. Pure: `now` is an argument.

A schedule has ticks (every so often since 1970, or by cron in its time zone). A VM's slot is a tick plus the VM's own
fixed delay, which spreads the load. Only the latest slot at or before now counts: ticks that were missed run once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from workers.settings import Schedule, seconds

#: "auto" spreads over a tenth of the interval, and over 10 minutes at most.
AUTO_PART, AUTO_MOST = 10, 600

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: No cron line that can match at all goes this long without: 29 February on a given weekday is every 28 years, 40 over
#: a century's missing leap day.
_LONGEST = timedelta(days=366 * 41)


def slot(schedule: Schedule, vm_uuid: str, now: datetime) -> datetime | None:
    """The VM's latest slot at or before `now`, in UTC. None when the schedule never had one."""
    delay = _delay(schedule, vm_uuid)
    tick = _last_tick(schedule, now.astimezone(UTC) - delay)
    return None if tick is None else tick + delay


def is_due(schedule: Schedule, vm_uuid: str, last_slot: str | None, now: datetime) -> bool:
    """Whether there is a slot since `last_slot`, the name of the latest that had a run (None: none had).

    However many were missed meanwhile, it is one: `slot` names it. A last slot in the future says that a clock was
    wrong when it was used; it does not stop the schedule until that day.
    """
    latest = slot(schedule, vm_uuid, now)
    if latest is None:
        return False
    return last_slot is None or last_slot < slot_name(latest) or last_slot > slot_name(now)


def slot_name(slot: datetime) -> str:
    """Stable text that sorts by time: 2026-03-29T01:30:00Z."""
    return slot.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _delay(schedule: Schedule, vm_uuid: str) -> timedelta:
    """The VM's own, in whole seconds below the spread; not Python's hash(), which differs from process to process."""
    spread = _spread(schedule)
    if spread == 0:
        return timedelta(0)
    number = int.from_bytes(hashlib.sha256(vm_uuid.encode()).digest()[:8], "big")
    return timedelta(seconds=number % spread)


def _spread(schedule: Schedule) -> int:
    if schedule.jitter == "none":
        return 0
    if schedule.jitter != "auto":
        return seconds(schedule.jitter)
    if schedule.every is not None:
        interval = seconds(schedule.every)
    else:
        assert schedule.cron is not None
        interval = _shortest_gap(schedule.cron, schedule.timezone)
    return min(interval // AUTO_PART, AUTO_MOST)


@lru_cache(maxsize=1024)
def _shortest_gap(cron: str, timezone: str) -> int:
    """Seconds between the two closest of a line's ticks, judged by 32 of them from a fixed day on."""
    ticks = islice(_ticks(cron, timezone, datetime(2026, 1, 1, tzinfo=UTC)), 32)
    gaps = (later - earlier for earlier, later in pairwise(ticks))
    return int(min(gaps, default=_LONGEST).total_seconds())


def _last_tick(schedule: Schedule, limit: datetime) -> datetime | None:
    """The latest tick at or before `limit`."""
    if schedule.every is not None:
        step = timedelta(seconds=seconds(schedule.every))
        return EPOCH + (limit - EPOCH) // step * step
    assert schedule.cron is not None
    hour = limit.replace(minute=0, second=0, microsecond=0)
    within = [tick for tick in _ticks_of_hour(schedule.cron, schedule.timezone, hour) if tick <= limit]
    return within[-1] if within else _last_before(schedule.cron, schedule.timezone, hour)


# A line's ticks are the same for all VMs, and they ask about the same hour or two: so both of these are remembered.


@lru_cache(maxsize=4096)
def _ticks_of_hour(cron: str, timezone: str, hour: datetime) -> tuple[datetime, ...]:
    ticks = _ticks(cron, timezone, hour - timedelta(seconds=1))
    return tuple(tick for tick in takewhile(lambda tick: tick < hour + timedelta(hours=1), ticks) if tick >= hour)


@lru_cache(maxsize=4096)
def _last_before(cron: str, timezone: str, hour: datetime) -> datetime | None:
    """Only forward steps are exact around a change of the clocks. So: the last of a window before `hour`, which is
    doubled until it has one, and therefore never has many.
    """
    window = timedelta(hours=1)
    while window < 2 * _LONGEST:
        last = None
        for tick in takewhile(lambda tick: tick < hour, _ticks(cron, timezone, hour - window)):
            last = tick
        if last is not None:
            return last
        window *= 2
    return None


def _ticks(cron: str, timezone: str, start: datetime) -> Iterator[datetime]:
    """In UTC, from about `start` on: the first may lie up to a change of the clocks before it.

    As Debian's cron: what falls into the hour that is skipped runs right after it; a line with fixed hours runs once
    in the hour that comes twice, one with `*` in it runs in both.
    """
    for tick in CronSim(cron, start.astimezone(ZoneInfo(timezone))):
        yield tick.astimezone(UTC)
