"""From which store a replica is brought up, where a VM's restore points are in several. Pure.

The order is that of the configuration. The first store counts that can be read, has points of the VM, and is not behind
what the replica holds. So the replica follows the copies beside it, also when another store has a newer point which is
not copied yet; only where that would break the group's `rpo` is a later store asked that has a newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from workers.models import SyncPoint
from workers.point import Dated
from workers.settings import Group, seconds

P = TypeVar("P", bound=Dated)


class Seen(NamedTuple):
    """A store as it was found. `why`: it can not be read, in words."""

    store: str
    points: Sequence[Dated] = ()
    why: str = ""


class Choice(NamedTuple):
    #: None: none of them can be read
    store: str | None
    #: what was passed over, in sentences; empty = it is the first one of the list
    reason: str


def order(groups: Iterable[Group], target: str | None, store: str) -> tuple[str, ...]:
    """The stores that a pair with this recovery target is brought up from, the first one first."""
    mine = [group for group in groups if group.store == store and target in group.targets]
    return next((group.sources for group in mine if group.sources), (store,))


def rpo(groups: Iterable[Group], target: str | None, store: str) -> float | None:
    limits = [group.rpo for group in groups if group.store == store and target in group.targets]
    return min((float(seconds(limit)) for limit in limits if limit is not None), default=None)


def number(point: str) -> int:
    """A point that is retired by now still says its number, with which its id begins."""
    return int(point.partition("-")[0])


def choose(
    stores: Sequence[str],
    look: Callable[[str], Seen],
    *,
    held: str | None,
    now: datetime,
    rpo: float | None = None,
    wanted: Collection[str] = (),
) -> Choice:
    """`look` is asked of no more stores than needed: one that is out of reach may take its time to say so.

    `held`: the point that the replica holds. `wanted`: the points that a person named, or that a run goes on to.
    """
    passed: list[str] = []
    readable: str | None = None
    late: tuple[str, int] | None = None
    for store in stores:
        seen = look(store)
        if seen.why:
            passed.append(f"{store} can not be read ({seen.why})")
            continue
        readable = readable or store
        newest = seen.points[-1] if seen.points else None
        if wanted and not set(wanted) <= {point.id for point in seen.points}:
            passed.append(f"{store} does not have {', '.join(sorted(wanted))}")
        elif newest is None:
            passed.append(f"{store} has no restore point of it")
        elif wanted:
            return Choice(store, _words(store, passed))
        elif held is not None and newest.seq < number(held):
            passed.append(f"{store} is behind the replica, which holds {held}")
        elif late is not None and newest.seq <= late[1]:
            continue
        elif late is None and rpo is not None and (now - newest.data_time).total_seconds() > rpo:
            late = store, newest.seq
            passed.append(f"the newest point in {store} is older than the rpo of {rpo:g} s allows")
        else:
            return Choice(store, _words(store, passed))
    if late is not None:
        return Choice(late[0], _words(late[0], [said for said in passed if not said.startswith("the newest point")]))
    return Choice(readable, _words(readable, passed) if readable is not None else "; ".join(passed))


def newest_of(
    groups: Sequence[Group],
    target: str | None,
    store: str,
    newest: Callable[[str], P | None],
    held: SyncPoint | None,
    now: datetime,
) -> P | None:
    """The newest restore point of the store that a replica would be brought up from now, as the catalogue knows it."""

    def look(name: str) -> Seen:
        found = newest(name)
        return Seen(name, (found,) if found is not None else ())

    names = order(groups, target, store)
    if len(names) == 1:
        return newest(names[0])
    limit = rpo(groups, target, store)
    chosen = choose(names, look, held=held.point if held is not None else None, now=now, rpo=limit).store
    return newest(chosen) if chosen is not None else None


def _words(store: str, passed: Sequence[str]) -> str:
    return f"read from {store}: {'; '.join(passed)}" if passed else ""
