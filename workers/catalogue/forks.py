"""Keeps forks and open transactions apart.

A child must not inherit an open SQLite connection: the library's own notes of who holds which lock are copied with the
memory, so the child would find the file locked by itself for ever. It must not inherit a PostgreSQL connection either,
or it would speak on its parent's line. So a fork waits until this process has no transaction open in another thread,
then closes all idle connections.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

#: Seconds a fork waits for transactions: longer than one waits for a lock itself (database.LOCK_WAIT).
PATIENCE = 45


class Forkable(Protocol):
    def close_idle(self) -> None:
        """In the parent, before a fork."""

    def start_afresh(self, *, spoilt: bool) -> None:
        """In the child. `spoilt`: a connection was in use when it was forked."""


class _Gate:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: Counter[int] = Counter()
        self._forks = 0

    def enter(self) -> None:
        me = threading.get_ident()
        with self._changed:
            # Who is inside already may go deeper: else the fork and this thread would wait for each other.
            self._changed.wait_for(lambda: not self._forks or self._open[me])
            self._open[me] += 1

    def leave(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._open[me] -= 1
            if not self._open[me]:
                del self._open[me]
            self._changed.notify_all()

    def shut(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not (self._open.keys() - {me}), timeout=PATIENCE)

    def reopen(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        return bool(+self._open)


_gate = _Gate()
_known: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(database: Forkable) -> None:
    _known.add(database)


@contextmanager
def transaction() -> Iterator[None]:
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


def _before() -> None:
    _gate.shut()
    for database in list(_known):
        database.close_idle()


def _in_parent() -> None:
    _gate.reopen()


def _in_child() -> None:
    global _gate
    spoilt, _gate = _gate.busy, _Gate()
    for database in list(_known):
        database.start_afresh(spoilt=spoilt)


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
