"""The lab's child processes: started in sessions of their own, known by pid and start time, ended without remains.

A process belongs to a lab when its environment says so (`MARK`), which children inherit: so what a killed worker leaves
behind is found too, and a recycled pid never is. A record (`run/<service>.json`) tells which of them is the service.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from workers.errors import UnderstudyError
from workers.models import Model

#: in each child's environment: MARK=<folder>::<service>
MARK = "UNDERSTUDY_LAB"


class LabError(UnderstudyError):
    """The lab cannot do what was asked; its services' logs are in its folder."""

    family = "lab"


class Process(NamedTuple):
    """A pid and when it was started, in clock ticks since boot: together never used twice in one boot."""

    pid: int
    started: int


class Record(Model):
    """What is kept about a started service."""

    pid: int
    started: int
    boot: str
    #: digest of how it was started; another one means that it must be started anew
    fingerprint: str
    #: where its part of the log begins
    log_start: int
    #: what it told about itself once ready (the simulator's address, ...)
    said: dict[str, Any] = {}

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started)


class Started(NamedTuple):
    """A service on its way up, as its readiness check sees it."""

    process: Process
    log: Path
    log_start: int

    def said(self) -> str:
        """What this start of the service has logged so far."""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")


#: None while it is not ready, else what it says about itself. Raises nothing for "not yet".
Ready = Callable[[Started], dict[str, Any] | None]


class Service(NamedTuple):
    """One child process of the lab, as data."""

    name: str
    argv: tuple[str, ...]
    ready: Ready
    #: text that it must be restarted for when it changes, besides argv (its configuration)
    depends: str = ""
    env: dict[str, str] = {}
    #: seconds until it must be ready; a Python worker on a busy machine of two cores has been seen to take 8
    patience: float = 60
    #: seconds between SIGTERM and SIGKILL
    grace: float = 15


#: Popen objects of children that this very process started: polling them reaps the zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """The start time of a living process; None when there is none.

    A zombie has ended, but not while it has threads: when a process is killed its first thread may be gone before the
    others, and until the last one is gone its ports and files are taken.
    """
    if pid in _children and _children[pid].poll() is not None:
        del _children[pid]
    try:
        # The name, in parentheses, may contain anything; the fields after the last ')' are numbers but the first.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ended = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return None if ended else int(fields[19])


def alive(record: Record) -> bool:
    return record.boot == boot_id() and start_time(record.pid) == record.started


def members(folder: Path, service: str | None = None) -> list[Process]:
    """Every living process of the lab in `folder`, or of one of its services, grandchildren included."""
    mark = b"\0" + os.fsencode(f"{MARK}={folder}::") + (b"" if service is None else service.encode() + b"\0")
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or somebody else's
        started = start_time(int(entry))
        if started is not None and mark in b"\0" + environment:
            found.append(Process(int(entry), started))
    return found


def start(service: Service, folder: Path, *, fingerprint: str) -> Record:
    """Start `service`; it is not ready yet. Its output goes to logs/<name>.log."""
    log = log_path(folder, service.name)
    log_start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        child = subprocess.Popen(
            service.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # SPT_NOENV: setproctitle, which celery uses where it is installed, would overwrite the mark.
            env={**os.environ, "SPT_NOENV": "1", **service.env, MARK: f"{folder}::{service.name}"},
            start_new_session=True,
        )
    _children[child.pid] = child
    return Record(
        pid=child.pid,
        started=start_time(child.pid) or 0,
        boot=boot_id(),
        fingerprint=fingerprint,
        log_start=log_start,
    )


def wait_ready(service: Service, folder: Path, record: Record) -> Record:
    """Wait until the service proves that it is ready. Raises `LabError` with the end of its log."""
    started = Started(record.process, log_path(folder, service.name), record.log_start)
    deadline = time.monotonic() + service.patience
    while True:
        living = alive(record)
        said = service.ready(started) if living else None
        if said is not None:
            return record.model_copy(update={"said": said})
        if not living:
            raise LabError(f"{service.name} ended while starting; {_tail(started)}")
        if time.monotonic() > deadline:
            raise LabError(f"{service.name} was not ready after {service.patience:.0f} s; {_tail(started)}")
        time.sleep(0.05)  # one poll; readiness has no event that could be waited for


def end(folder: Path, services: Iterable[tuple[str, Record | None]], *, grace: float) -> None:
    """Ask the services to end, all at once, then kill what is left after `grace` seconds, orphans included.

    Raises `LabError` when something survives that.
    """
    names = []
    asked: set[Process] = set()
    for name, record in services:
        names.append(name)
        found = members(folder, name)
        asked.update(found)
        if record is not None and alive(record):
            _signal(record.process, signal.SIGTERM)
            _signal(record.process, signal.SIGCONT)  # a stopped process would not hear it
        else:
            for process in found:
                _signal(process, signal.SIGTERM)
    left = _wait_gone(folder, names, asked, grace)
    for process in left:
        _signal(process, signal.SIGKILL)
    if left and (left := _wait_gone(folder, names, asked, 10)):
        pids = ", ".join(str(process.pid) for process in left)
        raise LabError(f"the processes {pids} of the lab in {folder} do not end even when killed; look at them with ps")


def log_path(folder: Path, service: str) -> Path:
    return folder / "logs" / f"{service}.log"


def _wait_gone(folder: Path, names: list[str], known: set[Process], seconds: float) -> list[Process]:
    """Wait for every process of the services; `known` grows by those that are seen.

    A process that is ending has lost its environment, hence its mark, some time before it has ended.
    """
    deadline = time.monotonic() + seconds
    while True:
        known.update(process for name in names for process in members(folder, name))
        left = [process for process in known if start_time(process.pid) == process.started]
        if not left:
            break
        rest = deadline - time.monotonic()
        if rest <= 0:
            break
        _wait_exit(left[0], rest)
    return left


def _wait_exit(process: Process, seconds: float) -> None:
    """Until the process has ended, or the time is over."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # A zombie of ours is readable too, and start_time() reaps it.
        select.select([handle], [], [], seconds if start_time(process.pid) == process.started else 0)
    finally:
        os.close(handle)


def _signal(process: Process, number: signal.Signals) -> None:
    """Signal exactly this process: the handle is opened first, so the pid cannot change hands after the check."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if start_time(process.pid) == process.started:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass  # ended on its own in between: just as well
    finally:
        os.close(handle)


def _tail(started: Started) -> str:
    lines = started.said().splitlines()[-15:]
    if not lines:
        return f"its log {started.log} is empty"
    return f"the end of its log {started.log}:\n" + "\n".join(f"    {line}" for line in lines)
