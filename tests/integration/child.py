"""A worker process without Celery: does one run's work. `python -m tests.integration.child CONFIG RUN`, or forked.

A new interpreter takes two seconds of processor time until it has imported everything, a fork a tenth of one.
"""

from __future__ import annotations

import builtins
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from workers import adopt, backup, copy, faults, forget, replicate, restore, settings, verify
from workers.catalogue import Catalogue
from workers.errors import UnderstudyError
from workers.models import RunKind, RunReport
from workers.run import Here


def work(here: Here, run_id: str) -> RunReport:
    """What a message for this run makes a worker do."""
    does = {
        RunKind.BACKUP: backup,
        RunKind.SYNC: replicate,
        RunKind.RESTORE: restore,
        RunKind.VERIFY: verify,
        RunKind.COPY: copy,
        RunKind.ADOPT: adopt,
        RunKind.FORGET: forget,
    }
    return does[here.catalogue.run(run_id).kind].run(here, run_id)


class Broken(NamedTuple):
    """The n-th call that changes or opens a file below one of the folders fails once."""

    number: int
    error: int
    below: tuple[Path, ...]


class Forked:
    """A copy of this process that does some work. It may die at a step (`doomed` says at which), or its disks fail."""

    def __init__(
        self,
        job: Callable[[], object],
        log: Path,
        *,
        doomed: Callable[[str], bool] | None = None,
        broken: Broken | None = None,
    ) -> None:
        self.log = log
        self.mark = log.with_suffix(".hit")
        self.mark.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(job, log, doomed, broken, self.mark)
        self._fd = os.pidfd_open(self.pid)
        self.code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative: the signal that ended it), None when it still works after that time."""
        if self.code is None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return None
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._fd)
        return self.code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.wait(0) is None:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            self.wait(60)

    @property
    def hit(self) -> str:
        """Which call failed, or at which step it died, as it was told to; empty when that did not come to pass."""
        return self.mark.read_text() if self.mark.exists() else ""

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _in_child(
    job: Callable[[], object], log: Path, doomed: Callable[[str], bool] | None, broken: Broken | None, mark: Path
) -> None:
    """Never returns: what the parent registered to be done at its end is none of the child's business."""
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(out, "w", buffering=1)
        if doomed is not None:
            _die(doomed, mark)
        if broken is not None:
            _break(broken, mark)
        print(job())
        code = 0
    except UnderstudyError as err:
        print(f"{type(err).__name__}: {err}")
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _die(doomed: Callable[[str], bool], mark: Path) -> None:
    def at(label: str) -> None:
        if doomed(label):
            mark.write_text(label)
            os.kill(os.getpid(), signal.SIGKILL)

    faults.at = at


#: what is done to a file or a name, and which argument says where
_CALLS = {"open": 0, "rename": 1, "link": 1, "mkdir": 0, "pwrite": 0, "pwritev": 0, "fsync": 0, "fdatasync": 0}


def _break(broken: Broken, mark: Path) -> None:
    """A device that fails on demand at its n-th call is not to be had, so the calls of this process are wrapped."""
    below = tuple(str(path.resolve()) + "/" for path in broken.below)
    counting, count = threading.Lock(), 0

    def wrapped(name: str, real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            where = args[at]
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.path.abspath(where)
            if not (path + "/").startswith(below):
                return real(*args, **more)
            with counting:
                count += 1
                mine = count == broken.number
            if not mine:
                return real(*args, **more)
            if name == "pwrite":  # torn, as a failing write may be
                real(args[0], memoryview(args[1])[: len(args[1]) // 2], args[2])
            elif name == "pwritev":
                real(args[0], args[1][: len(args[1]) // 2], args[2])
            with real_open(mark, "w") as file:
                file.write(f"{name} {path}")
            raise OSError(broken.error, os.strerror(broken.error), path)

        return call

    real_open = io.open
    for name, at in _CALLS.items():
        setattr(os, name, wrapped(name, getattr(os, name), at))
    io.open = builtins.open = wrapped("open", real_open, 0)


def main() -> None:
    configured = settings.load(Path(sys.argv[1]))
    here = Here(configured, Catalogue.open(configured.catalogue))
    print(work(here, sys.argv[2]).model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
