"""Executions that go one step at a time: each is a thread that stops at every labelled step, and may die there.

Only one thread runs at any moment, the test's own or that of one execution, so that a sequence of rules always gives
the same interleaving. An execution that dies leaves what a killed process leaves: its files are closed, with them its
locks, and nothing more is said to the catalogue or to vCenter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from workers import faults, helper, run
from workers.catalogue.database import Database

#: a step that is not reached by then never is: something waits for a thread that does not run
PATIENCE = 60


class Killed(BaseException):
    """Nothing catches this: what a worker does on its way out, a killed one does not do."""


class Execution:
    """One delivery of one message."""

    def __init__(self, steps: Steps, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.label = "begin"
        self.result: Any = None
        self.error: BaseException | None = None
        self.doomed = self.over = False
        self._steps, self._work = steps, work
        self._mine, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"{self.name} at {self.label}"

    def _run(self) -> None:
        self._steps.known[threading.get_ident()] = self
        self._mine.acquire()
        try:
            self.alive()
            self.result = self._work()
        except Killed:
            pass
        except BaseException as err:  # judged by the test
            self.error = err
        self.over = True
        del self._steps.known[threading.get_ident()]
        self._back.release()

    def alive(self) -> None:
        if self.doomed:
            raise Killed

    def stop_at(self, label: str) -> None:
        """Called by the execution itself."""
        self.alive()
        self.label = label
        self._steps.passed[label] = self._steps.passed.get(label, 0) + 1
        self._back.release()
        self._mine.acquire()
        self.alive()

    def step(self) -> None:
        """On to the next labelled step, or to the end."""
        assert not self.over
        self._mine.release()
        assert self._back.acquire(timeout=PATIENCE), f"{self} does not come to its next step"

    def finish(self) -> None:
        while not self.over:
            self.step()

    def kill(self) -> None:
        """It dies at the step where it is."""
        self._steps.deaths[self.label] = self._steps.deaths.get(self.label, 0) + 1
        self.doomed = True
        self.finish()
        self._thread.join(PATIENCE)


class Steps:
    def __init__(self) -> None:
        self.known: dict[int, Execution] = {}
        #: label -> how often it was passed, and died at
        self.passed: dict[str, int] = {}
        self.deaths: dict[str, int] = {}

    def begin(self, name: str, work: Callable[[], Any]) -> Execution:
        return Execution(self, name, work)

    def current(self) -> Execution | None:
        return self.known.get(threading.get_ident())

    def alive(self) -> None:
        """Raise `Killed` in a thread whose execution has died."""
        if (mine := self.current()) is not None:
            mine.alive()

    def at(self, label: str) -> None:
        if (mine := self.current()) is not None:
            mine.stop_at(label)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(faults, "at", self.at)
        # Leases end when the test says so. A thread that renews them by the clock would make another test of each run.
        for module in (run, helper):
            patch.setattr(module, "renewed", _not_renewed)
        for name in ("read", "write"):
            patch.setattr(Database, name, self._guarded(getattr(Database, name)))

    def _guarded(self, transaction: Callable[[Database], Any]) -> Callable[[Database], Any]:
        @contextmanager
        def guarded(db: Database) -> Iterator[Any]:
            self.alive()
            with transaction(db) as conn:
                yield conn

        return guarded


@contextmanager
def _not_renewed(_live: object) -> Iterator[None]:
    yield
