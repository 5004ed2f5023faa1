"""Loaded by the server of tests/forks.py: when the tests have ended, by whatever signal, nothing of it stays."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _end(server: int, folder: str) -> None:
    if os.getpid() != server:
        return  # what it forked has this from it
    for pid in _children(server):
        for kill in (os.kill, os.killpg):  # it may not have come to a group of its own
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


# The server ends when the tests' end of a pipe is closed. With a signal to all of the group it is to end the same way.
if (_folder := os.environ.get("FORKS_FOLDER")) is not None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    atexit.register(_end, os.getpid(), _folder)
