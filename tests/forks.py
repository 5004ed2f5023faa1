"""Processes of the command `understudy` that are forked from a server which has everything imported.

An interpreter takes 1.3 s of processor time until it has imported what a worker needs, and the tests start hundreds.
Each process here is one of its own all the same: a session, environment, folder and output of its own, every signal,
and an end that is reported. Where the start itself is what is tested (the lab, the demo, the console script, Flower)
processes are started as a user starts them.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.services import Program, wait_for

ROOT = Path(__file__).resolve().parents[1]
#: what workers, Beat and the commands import, with what Celery loads by name
_LOADED = [
    "tasks.cli",
    "tasks.serve",
    "tasks.diagnose",
    "tasks.waiting",
    "tasks.maintenance",
    "tasks.result_backend",
    *(f"tasks.{name}" for name in ("backup", "replicate", "restore", "pairs", "holds", "verify", "copy", "dispatch")),
    "celery.apps.worker",
    "celery.apps.beat",
    "celery.beat",
    "celery.concurrency.prefork",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.consumer",
    "celery.worker.components",
    "celery.worker.autoscale",
    "kombu.transport.redis",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
]
_server: Any = None


class Fork:
    """What tests use of `subprocess.Popen`, for `understudy` with these arguments."""

    def __init__(self, arguments: Sequence[str], *, out: Path, err: Path, env: dict[str, str], cwd: Path) -> None:
        self.args = list(arguments)
        given = (self.args, str(out), str(err), env, str(cwd))
        self._process: BaseProcess = _context().Process(target=_be, args=given, daemon=True)
        self._process.start()
        self.pid: int = self._process.pid or 0
        wait_for(self._apart, "a group of its own", every=0.001)

    def _apart(self) -> bool:
        """Whether it has come so far, or ended meanwhile."""
        try:
            return os.getpgid(self.pid) == self.pid
        except ProcessLookupError:
            return True

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Understudy(Program):
    """A process of `understudy` in a group of its own."""

    def begin(self, command: list[str], env: dict[str, str], cwd: Path) -> Fork:
        self.log.touch()
        return Fork(command, out=self.log, err=self.log, env=env, cwd=cwd)


def run(
    arguments: Sequence[str], *, env: dict[str, str], cwd: Path, folder: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """`understudy` with these arguments, to its end; `folder` takes its output for the time being."""
    out, err = (folder / f"said-{os.urandom(4).hex()}.{end}" for end in ("out", "err"))
    for file in (out, err):
        file.touch()  # it may end before it has anything to say
    fork = Fork(arguments, out=out, err=err, env=env, cwd=cwd)
    try:
        code = fork.wait(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(fork.pid, signal.SIGKILL)  # with what it has started
    done = subprocess.CompletedProcess(fork.args, code, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return done


def _context() -> Any:
    """The server ends with the process that asked for it first: with the tests. So does the folder of its socket, which
    they remove themselves only where they end by themselves (not by a signal, nor as workers of pytest-xdist)."""
    global _server
    if _server is None:
        _server = multiprocessing.get_context("forkserver")
        _server.set_forkserver_preload(["tests.forked", *_LOADED])
        before = dict(os.environ)
        os.environ["FORKS_FOLDER"] = multiprocessing.util.get_temp_dir()
        os.environ.update(PYTHONPATH=str(ROOT), REMAP_SIGTERM="SIGQUIT")  # read when Celery is imported: tasks/serve.py
        os.environ.pop("UNDERSTUDY_CONFIG", None)
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)
    return _server


def _be(arguments: list[str], out: str, err: str, env: dict[str, str], cwd: str) -> None:
    from workers import settings

    # It has from them what tells the server that the tests are there: that would live for as long as any of its forks.
    here = forkserver._forkserver  # type: ignore[attr-defined]
    os.close(here._forkserver_alive_fd)
    here._forkserver_alive_fd = None
    os.setsid()
    # The server has its own; these are those of a new interpreter.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(env)
    settings.FAULT = env.get("UNDERSTUDY_FAULT", "")
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, number)
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    sys.argv = ["understudy", *arguments]
    from tasks.cli import main

    try:
        main(arguments)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
