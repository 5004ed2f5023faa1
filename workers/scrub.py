"""Which part of a replica, or of a store, is to be compared by now so that all of it is in its turn. Pure.

A day has one slot, at a time of day of the target's own, so that the load is spread. From the slot at which a round
begins, each makes a further share due; what was missed meanwhile (no worker, a vCenter away) is still due, so a round
of share s is over after 1/s days, or as soon as workers can. The next one begins at the slot after its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from workers import due
from workers.settings import Schedule

DAILY = Schedule(every="1d", jitter="1d")
DAY = timedelta(days=1)

#: in the memory of a run: since when its part was due, where that is so long ago that it goes first
LATE = "late"

#: a round's borders lie at multiples of this: a restore point's blocks and a file system's pages are not cut
STEP = 1 << 20


class Round(Protocol):
    """How far it has come: workers.catalogue.Scrub."""

    @property
    def began(self) -> datetime: ...
    @property
    def ended(self) -> datetime | None: ...
    @property
    def part(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def covered(self) -> int: ...
    @property
    def total(self) -> int: ...


def share_due(share: float, began: datetime, who: str, now: datetime) -> float:
    """The part of everything, 0 to 1, that a round which began then has compared by now."""
    first, last = due.slot(DAILY, who, began), due.slot(DAILY, who, now)
    days = (last - first) // DAY if first is not None and last is not None else 0
    return min(1.0, share * (1 + max(0, days)))


def due_since(share: float, known: Round | None, since: datetime, who: str, now: datetime) -> datetime | None:
    """The slot at which what is to be compared next became due; None = nothing is.
    `since`: when there was something to compare for the first time."""
    running = known if known is not None and known.ended is None else None
    first = due.slot(DAILY, who, running.began if running else known.ended or since if known else since)
    if share <= 0 or first is None:
        return None
    if running is None:
        return first + DAY if first + DAY <= now else None
    if covered_by(share_due(share, running.began, who, now), running.total) <= running.covered:
        return None
    days = max(0, int((running.covered - STEP) / (share * running.total)) - 1)  # or later: borders are rounded up
    while covered_by(min(1.0, share * (1 + days)), running.total) <= running.covered:
        days += 1
    return first + days * DAY


def is_late(part_due: datetime, now: datetime) -> bool:
    """It was passed over for more than a whole day."""
    return now - part_due > DAY


def goes_first(part_due: datetime | None, last: str | None, who: str, now: datetime) -> bool:
    """Whether a part goes before what is due more often: late, and once a day. `last`: the latest `slot` with a run."""
    today = due.slot(DAILY, who, now)
    tried = last is not None and today is not None and last.startswith(due.slot_name(today))
    return part_due is not None and is_late(part_due, now) and not tried


def lateness(what: str, late: float | None, whole: datetime | None) -> str:
    """In words, where a part was due so many seconds ago that it is late; else empty. `whole`: when all was last."""
    if late is None or late <= DAY.total_seconds():
        return ""
    days = int(late / DAY.total_seconds())
    last = f"all of it was compared last until {whole:%Y-%m-%d %H:%M} UTC" if whole else "all of it never was compared"
    return f"{what} is {days} day{'s' if days > 1 else ''} late; {last}"


def slot(known: Round | None, who: str, now: datetime) -> str:
    """The name of a part that is due: one try a day at each place, so that what fails does not fail every few seconds.

    It is about a place, not about a time: a part that ended early, for a sync was due, is followed by the next at once.
    """
    today = due.slot(DAILY, who, now)
    place = f"{known.began:%Y%m%dT%H%M%S} {known.covered}" if known is not None and known.ended is None else "begin"
    return f"{due.slot_name(today or now)} {place}"


def covered_by(part: float, total: int) -> int:
    """Bytes: a part of everything, never less than it says."""
    if part >= 1:
        return total
    return min(total, -(-int(total * part) // STEP) * STEP)


def scope(
    disks: Sequence[tuple[str, int]], known: Round | None, part: float
) -> tuple[dict[str, tuple[int, int]], int, int]:
    """What of each disk is to be compared now, from where the round stands up to `part` of everything.

    Disk -> (start, end), and the bytes that are covered before it, and in all. `disks`: id and capacity. They have one
    order, by id: one that was added in the middle of a round, before the place where that stands, has its turn in the
    next.
    """
    ordered = sorted(disks)
    total = sum(size for _, size in ordered)
    at = (known.part, known.offset) if known is not None and known.ended is None else ("", 0)
    before = sum(size if disk < at[0] else min(at[1], size) if disk == at[0] else 0 for disk, size in ordered)
    wanted, passed, found = covered_by(part, total), 0, dict[str, tuple[int, int]]()
    for disk, size in ordered:
        start, end = max(0, before - passed), min(size, wanted - passed)
        if start < end:
            found[disk] = (start, end)
        passed += size
    return found, before, total


def place(disks: Mapping[str, int], covered: int) -> tuple[str, int]:
    """The disk and the offset at which so many bytes of all, in their order, are covered."""
    for disk, size in sorted(disks.items()):
        if covered < size:
            return disk, covered
        covered -= size
    return (max(disks), disks[max(disks)]) if disks else ("", 0)
