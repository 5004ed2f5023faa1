"""Which restore points of a VM are no longer kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeVar


class Numbered(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def seq(self) -> int: ...


P = TypeVar("P", bound=Numbered)


def expired(points: Sequence[P], keep_last: int, needed: AbstractSet[str]) -> list[P]:
    """Those of one VM that may be retired, the oldest first.

    The `keep_last` newest stay, by number and not by any clock, and so do those whose id is `needed` (by a pin or a
    replica), which do not count towards them. The newest stays whatever is asked: the next backup builds on it.
    """
    newest_first = sorted(points, key=lambda point: point.seq, reverse=True)
    past = newest_first[max(keep_last, 1) :]
    return [point for point in reversed(past) if point.id not in needed]
