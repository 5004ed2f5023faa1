"""Child processes: found by mark, ended with all they left, never confused with a stranger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.lab import processes
from tasks.lab.processes import LabError, Record, Service, Started

#: a service that starts a child, says so, and ignores nothing
FAMILY = """
import os, signal, sys
child = os.fork()
if child == 0:
    signal.pause()
print("child", child, flush=True)
signal.pause()
"""


def logged(text: str) -> processes.Ready:
    return lambda started: {"log": started.said()} if text in started.said() else None


def python(name: str, code: str, *, text: str = "child", patience: float = 20, grace: float = 15) -> Service:
    return Service(name, (sys.executable, "-c", code), logged(text), patience=patience, grace=grace)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "logs").mkdir()
    yield tmp_path
    for process in processes.members(tmp_path):
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def run(folder: Path) -> Callable[[Service], Record]:
    def start(service: Service) -> Record:
        record = processes.start(service, folder, fingerprint="f")
        return processes.wait_ready(service, folder, record)

    return start


def pids(folder: Path, service: str | None = None) -> set[int]:
    return {process.pid for process in processes.members(folder, service)}


def test_a_service_is_ready_when_it_says_so_and_its_children_are_known(
    folder: Path, run: Callable[[Service], Record]
) -> None:
    record = run(python("one", FAMILY))
    child = int(record.said["log"].split()[1])
    assert processes.alive(record)
    assert pids(folder) == pids(folder, "one") == {record.pid, child}
    assert pids(folder, "on") == set(), "a name is not a prefix"
    assert os.getsid(record.pid) == record.pid != os.getsid(0), "Ctrl-C at the terminal must not reach it"


def test_end_asks_first(folder: Path, run: Callable[[Service], Record]) -> None:
    polite = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('goodbye', flush=True), sys.exit()))\n"
        "print('child', flush=True)\nwhile True: signal.pause()"
    )
    record = run(python("one", polite))
    processes.end(folder, [("one", record)], grace=20)
    assert "goodbye" in processes.log_path(folder, "one").read_text()
    assert not processes.alive(record) and not pids(folder)


def test_end_waits_for_a_process_that_has_lost_its_mark(
    folder: Path, run: Callable[[Service], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is ending loses its environment before it has ended (exit_mm comes before exit_notify)."""
    slow = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit()))\n"
        "print('child', flush=True)\nwhile True: signal.pause()"
    )
    record = run(python("one", slow))
    looks = iter([processes.members(folder, "one")])
    monkeypatch.setattr(processes, "members", lambda *_: next(looks, []))
    processes.end(folder, [("one", record)], grace=20)
    assert not processes.alive(record)


def test_end_kills_what_does_not_listen_or_is_stopped(folder: Path, run: Callable[[Service], Record]) -> None:
    deaf = run(
        python("deaf", "import signal; signal.signal(15, signal.SIG_IGN)\nprint('child', flush=True)\nsignal.pause()")
    )
    stopped = run(python("stopped", FAMILY))
    os.kill(stopped.pid, signal.SIGSTOP)
    processes.end(folder, [("deaf", deaf), ("stopped", stopped)], grace=1)
    assert not pids(folder)


def test_orphans_of_a_killed_service_are_ended(folder: Path, run: Callable[[Service], Record]) -> None:
    record = run(python("one", FAMILY))
    child = int(record.said["log"].split()[1])
    os.kill(record.pid, signal.SIGKILL)
    assert _gone(record.pid) and not processes.alive(record)
    assert pids(folder, "one") == {child}
    processes.end(folder, [("one", record)], grace=10)
    assert not pids(folder)


def test_a_service_without_a_record_is_ended(folder: Path, run: Callable[[Service], Record]) -> None:
    run(python("one", FAMILY))
    processes.end(folder, [("one", None)], grace=10)
    assert not pids(folder)


def test_a_recycled_pid_is_left_alone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as stranger:
        started = processes.start_time(stranger.pid)
        assert started is not None
        for record in (
            Record(pid=stranger.pid, started=started - 1, boot=processes.boot_id(), fingerprint="", log_start=0),
            Record(pid=stranger.pid, started=started, boot="another boot", fingerprint="", log_start=0),
        ):
            assert not processes.alive(record)
            processes.end(folder, [("one", record)], grace=0)
            assert stranger.poll() is None
        stranger.kill()


def test_two_labs_do_not_see_each_other(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    service = python("one", FAMILY)
    other = tmp_path_factory.mktemp("other")
    (other / "logs").mkdir()
    for lab in (folder, other):
        processes.wait_ready(service, lab, processes.start(service, lab, fingerprint=""))
    processes.end(folder, [("one", None)], grace=10)
    assert not pids(folder) and len(pids(other)) == 2
    processes.end(other, [("one", None)], grace=10)
    assert not pids(other)


def test_dying_and_never_ready_are_told_with_the_end_of_the_log(folder: Path, run: Callable[[Service], Record]) -> None:
    with pytest.raises(LabError, match=r"(?s)one ended while starting.*no such luck"):
        run(python("one", "import sys; sys.exit('no such luck')"))
    with pytest.raises(LabError, match=r"(?s)two was not ready after 1 s.*still thinking"):
        run(python("two", "import signal; print('still thinking', flush=True); signal.pause()", patience=1))


def test_an_earlier_start_s_log_proves_nothing(folder: Path, run: Callable[[Service], Record]) -> None:
    processes.end(folder, [("one", run(python("one", FAMILY)))], grace=1)
    with pytest.raises(LabError, match="was not ready"):
        run(python("one", "import signal; signal.pause()", patience=1))
    started = Started(processes.Process(1, 1), processes.log_path(folder, "one"), 0)
    assert "child" in started.said(), "the log is kept over starts"


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while processes.start_time(pid) is not None:
        assert time.monotonic() < deadline
    return True
