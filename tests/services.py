"""Real servers for tests: a Redis and a PostgreSQL of their own, in a temporary folder, gone when the test is."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


def missing(why: str) -> None:
    """Without it there is no test: a failure where everything is to be tried (tests/conftest.py), skipped elsewhere."""
    if os.environ.get("EVERYTHING"):
        pytest.fail(f"{why}; where CI is set all must be tried, and deploy/setup.sh installs what it needs")
    pytest.skip(why)


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 30, every: float = 0.02) -> Any:
    """The first true answer of `condition`, asked every 20 ms, or less often where asking costs something."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout:g} s")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    """A redis-server on a free loopback port that writes its append-only file before it answers."""

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            missing("redis-server is not installed")
        self.folder = Path(tempfile.mkdtemp(prefix="understudy-redis-"))
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start, or start again with the data of before."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                    *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
                    *("--maxmemory-policy", "noeviction"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers, f"an answer of redis-server (log in {self.folder}/log)")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"redis-server ended: {(self.folder / 'log').read_text()[-2000:]}")
        # Another test may have got the free port first: then its server answers, until ours has ended.
        return self.ping() and f"process_id:{self.process.pid}\r\n".encode() in self._ask(b"INFO server")

    def ping(self) -> bool:
        return self._ask(b"PING").startswith(b"+PONG")

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as line:
                line.sendall(command + b"\r\n")
                return line.recv(4096)
        except OSError:
            return b""

    def kill(self) -> None:
        """As kill -9 does. `start` brings it back."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Postgres:
    """A PostgreSQL on a Unix socket in its own folder: no port is taken. Never as root, which it refuses."""

    def __init__(self) -> None:
        programs = _postgres_programs()
        if programs is None:
            missing("PostgreSQL is not installed")
            raise AssertionError  # `missing` does not return
        self.programs = programs
        self.folder = Path(
            tempfile.mkdtemp(prefix="understudy-pg-", dir="/tmp")
        )  # a socket's path is 107 bytes at most
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.data = self.folder / "data"
        self._count = 0
        try:
            self._run(
                *("initdb", "--pgdata", str(self.data), "--auth", "trust", "--username", "understudy"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions"),
            )
            self.start()
        except BaseException:
            self.remove()
            raise

    def start(self) -> None:
        # fsync off: a test kills processes, never the machine.
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        self._ctl("start", "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self._ctl("stop", "-m", mode)

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://understudy@/{database}?host={self.folder}"

    def database(self) -> str:
        """The address of a new, empty database."""
        self._count += 1
        name = f"test_{self._count}"
        self._run("createdb", "--host", str(self.folder), "--username", "understudy", name)
        return self.url(name)

    def _ctl(self, verb: str, *more: str) -> None:
        self._run("pg_ctl", verb, "--pgdata", str(self.data), "--wait", "--log", str(self.folder / "log"), *more)

    def _run(self, program: str, *arguments: str) -> None:
        log = self.folder / "commands"
        with log.open("ab") as out:  # a file, not a pipe: the server keeps its starter's outputs open
            done = subprocess.run(
                [self.programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=self.user,
                cwd=self.folder,
                timeout=120,
            )
        if done.returncode != 0:
            raise AssertionError(f"{program} failed: {log.read_text()[-2000:]}")

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    # Debian keeps them out of the path, one folder per version.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


class Program:
    """A process in a group of its own, so that it can be killed with its children. Its output goes to a file."""

    def __init__(self, command: list[str], log: Path, *, env: dict[str, str], cwd: Path) -> None:
        self.log = log
        self.process = self.begin(command, env, cwd)

    def begin(self, command: list[str], env: dict[str, str], cwd: Path) -> Any:
        # A worker that is killed leaves its folder of shared memory behind: not beside everybody's.
        env = {**env, "TMPDIR": str(self.log.parent)}
        with self.log.open("ab") as out:
            return subprocess.Popen(
                command, env=env, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def said(self, text: str) -> bool:
        """Whether its output has `text`; a test fails at once when the process ended without having said it."""
        there = text in self.log.read_text(errors="replace")
        if not there and self.process.poll() is not None:
            raise AssertionError(
                f"ended with {self.process.returncode}: {self.log.read_text(errors='replace')[-4000:]}"
            )
        return there

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 20) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()
