"""Named protocol steps at which a test may kill, stop or fail this process; in production they do nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from workers import settings
from workers.errors import UnderstudyError


class InjectedFault(UnderstudyError):
    """Raised by a step that a test told to fail."""


def at(label: str) -> None:
    """Pass the step `label`.

    UNDERSTUDY_FAULT is `label=action` or `label=action@file`; actions: kill (SIGKILL), stop (SIGSTOP), fail (raise).
    With a file, the step acts only once: it needs the file and removes it first, so that what is started next passes.
    """
    if not settings.FAULT:
        return
    named, _, rest = settings.FAULT.partition("=")
    if named != label:
        return
    action, _, once = rest.partition("@")
    if once:
        try:
            Path(once).unlink()
        except FileNotFoundError:
            return
    if action == "fail":
        raise InjectedFault(f"the step {label} was told to fail")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])
