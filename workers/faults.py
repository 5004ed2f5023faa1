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

    Or it is the path of a folder, so that running processes can be told: a file in it, named like a step, holds the
    action. Whoever comes to the step first renames it to `label@pid`, so that it acts once among all processes.
    """
    if not settings.FAULT:
        return
    action = _told(label) if settings.FAULT.startswith("/") else _said(label)
    if action == "fail":
        raise InjectedFault(f"the step {label} was told to fail")
    if action:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])


def _said(label: str) -> str:
    """The action in the environment, if it is for this step."""
    named, _, rest = settings.FAULT.partition("=")
    action, _, once = rest.partition("@")
    if named != label:
        return ""
    if once:
        try:
            Path(once).unlink()
        except FileNotFoundError:
            return ""
    return action


def _told(label: str) -> str:
    """The action in the folder, if there is one for this step and no other process took it."""
    file = Path(settings.FAULT, label)
    mine = file.with_name(f"{label}@{os.getpid()}")
    try:
        file.rename(mine)
    except FileNotFoundError:
        return ""
    return mine.read_text()
