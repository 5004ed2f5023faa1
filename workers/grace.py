"""What is kept of VMs that left their groups: everything until the grace ends, after it the newest restore point."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import structlog

from workers import backup, retention
from workers.catalogue import Membership
from workers.errors import UnderstudyError
from workers.members import Roll
from workers.run import Here, storage_in_words
from workers.store import Store

log = structlog.get_logger()


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


def retire(here: Here, store_name: str, store: Store, now: datetime) -> int:
    """Retire the points that VMs whose grace is over have in a store, but for the newest and those that a pin needs.

    How many went. One VM's trouble keeps none of the others waiting.
    """
    busy = {run.target for run in here.catalogue.live_runs()}
    count = 0
    for uuid in over(Roll(here), now):
        if backup.target_of(store_name, uuid) in busy:
            continue
        try:
            with storage_in_words():
                for point in retention.expired(store.points(uuid), keep_last=1, needed=set(store.pins(uuid))):
                    store.retire(uuid, point.id)
                    here.catalogue.drop_point(store_name, uuid, point.id)
                    log.info(f"retired the restore point {point.id}: the VM left its groups, and its grace is over")
                    count += 1
        except UnderstudyError as err:
            log.error(f"old restore points of the VM {uuid} in {store_name} are kept until the next prune: {err}")
    return count


def forget_strangers(here: Here, now: datetime) -> None:
    """A VM of which nothing is kept, and whose grace is over, is not listed any more."""
    kept = {point.vm for point in here.catalogue.newest_points()} | {pair.source for pair in here.catalogue.pairs()}
    for uuid in over(Roll(here), now):
        if uuid not in kept:
            here.catalogue.drop_memberships(uuid)
