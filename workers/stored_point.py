"""A restore point in a store, as the point that a replica is brought up to."""

from __future__ import annotations

from collections.abc import Callable

from workers.models import RestorePoint
from workers.point import Reader
from workers.store import Store


class StoredPoint:
    """A restore point, readable."""

    def __init__(self, store: Store, point: RestorePoint | None, carried: Callable[[int], None] | None = None) -> None:
        """`carried` is told of bytes before they are fetched."""
        self._carried = carried
        self._store = store
        self._point = point

    def reader(self, disk: str) -> Reader:
        assert self._point is not None
        return self._store.reader(self._point, disk, self._carried)
