"""Several workers at one run: forked processes, each of which may be held, stopped or killed at a step of its own."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.integration.child import Forked
from tests.integration.world import World
from tests.services import wait_for
from workers import backup, replicate, restore
from workers.catalogue import SliceState
from workers.disks.file import FileWriter
from workers.models import Run, RunKind, RunReport
from workers.run import Here

#: seconds that a worker waits for the others at a step, and the test for a worker
PATIENCE = 120

#: called with (step, how often this worker has passed it by now)
Act = Callable[[str, int], None]

_VERBS = {RunKind.SYNC: replicate, RunKind.BACKUP: backup, RunKind.RESTORE: restore}


class Crew:
    """The workers of one run. The first one has the run, the others help."""

    def __init__(self, world: World, run: Run, folder: Path) -> None:
        self.world = world
        self.run = run
        self.folder = folder
        folder.mkdir()
        self.workers: list[Forked] = []

    def lead(self, act: Act | None = None) -> Forked:
        """Returns at once; `called` says when it has asked for others."""
        here = Here(self.world.settings, self.world.catalogue, self._called)
        return self._start(lambda: _VERBS[self.run.kind].run(here, self.run.id), act)

    def helper(self, act: Act | None = None) -> Forked:
        return self._start(lambda: _VERBS[self.run.kind].help_out(self.world.here, self.run.id), act)

    def called(self) -> int:
        """Waits until the lead asks for help; for how many."""
        file = self.folder / "called"
        wait_for(file.exists, "the call for helpers", PATIENCE)
        return int(file.read_text())

    def _called(self, run: Run, count: int) -> None:
        ready = self.folder / "ready"
        ready.write_text(str(count))
        ready.rename(self.folder / "called")

    def _start(self, job: Callable[[], RunReport], act: Act | None) -> Forked:
        name = f"worker-{len(self.workers)}"

        def counted() -> RunReport:
            real = FileWriter.write

            def write(writer: FileWriter, pieces: list) -> None:  # type: ignore[type-arg]
                real(writer, pieces)
                with open(self.folder / f"{name}.bytes", "a") as file:
                    file.write(f"{sum(p.length for p in pieces)}\n")

            FileWriter.write = write  # type: ignore[method-assign,assignment]
            return job()

        passed = Counter[str]()

        def at(step: str) -> bool:
            passed[step] += 1
            if act is not None:
                act(step, passed[step])
            return False

        self.workers.append(Forked(counted, self.folder / f"{name}.log", doomed=at))
        return self.workers[-1]

    def together(self, count: int, step: str) -> Act:
        """Hold a worker at its first pass of a step until so many are there."""

        def act(at: str, times: int) -> None:
            if at == step and times == 1:
                (self.folder / f"there-{os.getpid()}").touch()
                deadline = time.monotonic() + PATIENCE
                while len(list(self.folder.glob("there-*"))) < count:
                    assert time.monotonic() < deadline, "the others did not come"
                    time.sleep(0.01)

        return act

    def written(self) -> int:
        """Bytes that all of them wrote to disks, also in vain."""
        return sum(int(line) for file in self.folder.glob("*.bytes") for line in file.read_text().split())

    def go_on(self) -> RunReport:
        """What the reaper's message does when the leases of the dead have run out."""
        self.world.expire_lease(self.run)
        return _VERBS[self.run.kind].run(self.world.here, self.run.id)


def after(first: Act, then: Act) -> Act:
    def act(step: str, times: int) -> None:
        first(step, times)
        then(step, times)

    return act


def killed(step: str, times: int = 1) -> Act:
    return _signalled(step, times, signal.SIGKILL)


def stopped(step: str, times: int = 1) -> Act:
    return _signalled(step, times, signal.SIGSTOP)


def _signalled(step: str, times: int, signal_: signal.Signals) -> Act:
    def act(at: str, passed: int) -> None:
        if (at, passed) == (step, times):
            os.kill(os.getpid(), signal_)

    return act


def is_stopped(worker: Forked) -> bool:
    with open(f"/proc/{worker.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def wait_stopped(worker: Forked) -> None:
    wait_for(lambda: is_stopped(worker), "the step at which it stops", PATIENCE)


def overlapping(slices: list[SliceState], *, by_disk: bool = True) -> int:
    """By the ledger: at how many workers' slices, of one disk if so wanted, were at work at one moment."""
    best = 0
    for disk in {part.disk for part in slices} if by_disk else {None}:
        mine = [s for s in slices if disk in (None, s.disk)]
        spans = [(s.began, s.ended, s.owner) for s in mine if s.began and s.ended and s.owner]
        for moment, _, _ in spans:
            best = max(best, len({owner for began, ended, owner in spans if began <= moment <= ended}))
    return best
