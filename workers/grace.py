"""VMs that left their groups: everything is kept of them until the grace ends. After it, see workers/prune.py."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from workers.catalogue import HoldKind, Membership
from workers.members import Roll
from workers.run import Here


def ends(roll: Roll, rows: Iterable[Membership]) -> datetime | None:
    """When all graces of a VM have ended; None for one that never was in a group."""
    return max((roll.kept_until(row) for row in rows), default=None)


def farewell(roll: Roll, uuid: str) -> str:
    """What becomes of a VM that is in no group any more, as half a sentence; empty when it never was in one."""
    rows = [] if roll.groups_of(uuid) else roll.left(uuid)
    until = ends(roll, rows)
    if until is None:
        return ""
    last = max(rows, key=lambda row: row.left or row.since)
    return (
        f"it left the group {last.group} on {last.left:%Y-%m-%d} ({last.why}); all that is kept of it stays until "
        f"{until:%Y-%m-%d}, after that only the newest restore point and the replica"
    )


def over(roll: Roll, now: datetime) -> list[str]:
    """The VMs (instance UUIDs) that are in no group, and still were not when their site was read after the grace.

    Whoever cannot be seen to be still away is not among them: a vCenter that has been out of reach for a month, or a
    site that is not configured any more, ends no grace.
    """
    return [
        uuid
        for uuid in sorted({row.vm for row in roll.left()})
        if not roll.groups_of(uuid)
        and all(roll.kept_until(row) <= min(now, roll.asked(row.site) or row.since) for row in roll.left(uuid))
    ]


def forget_strangers(here: Here, now: datetime) -> None:
    """A VM of which nothing is kept, and whose grace is over, is not listed any more. A pair that was forgotten is
    history, and keeps nothing."""
    forgotten = {target for target, held in here.catalogue.holds().items() if HoldKind.FORGOTTEN in held}
    pairs = (pair for pair in here.catalogue.pairs() if f"pair:{pair.id}" not in forgotten)
    kept = {point.vm for point in here.catalogue.newest_points()} | {pair.source for pair in pairs}
    for uuid in over(Roll(here), now):
        if uuid not in kept:
            here.catalogue.drop_memberships(uuid)
