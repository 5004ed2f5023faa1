"""A world whose runs are done as users have them done: `understudy worker`, `beat` and `flower` over a real Redis."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from celery import Celery
from celery.result import AsyncResult

from tasks.app import configuration
from tests import forks, services
from tests.integration.world import ROOT, World
from workers.models import Run, RunState

#: Everything quick: a dead worker's run goes on within seconds. A lease of 4 s outlasts the pauses of a busy machine.
QUICK = {
    "dispatch_every": "1s",
    "reap_every": "1s",
    "lease": "4s",
    "retry_pause": "1s",
    "lock_wait": "2s",
    "inventory_every": "1h",
    "attempts": 3,
}
#: a realm in which nothing happens that a test did not ask for
ASKED_ONLY = ("replicate = { after_backup = false }",)
#: A process of this suite does something within this many seconds, also on a machine that is busy with other tests.
PATIENCE = 90
#: how a result is waited for; Celery's own interval of 0.5 s is long for a suite
LOOK: dict[str, float] = {"timeout": PATIENCE, "interval": 0.05}


class Message(NamedTuple):
    """A message that waits on Redis, as it is there and as it is meant."""

    raw: bytes
    id: str
    task: str
    argsrepr: str
    kwargsrepr: str
    args: list[Any]
    kwargs: dict[str, Any]


class Worker(forks.Understudy):
    """A worker and its pool."""

    def ready(self) -> None:
        services.wait_for(lambda: self.said(" ready."), "a ready worker", PATIENCE)

    def children(self) -> list[int]:
        """The processes of its pool; also of a worker whose parent is being killed, as long as it is there."""
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
                return [int(pid) for pid in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def stopped_child(self) -> int:
        """The child that a fault stopped at its step."""

        def found() -> int | None:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            return next((pid for pid in self.children() if process_state(pid) == "T"), None)

        pid: int = services.wait_for(found, "a child that stops at its step", PATIENCE)
        return pid


class Realm:
    """Processes around a world. The test itself is a client: it sends messages and reads the catalogue."""

    def __init__(self, world: World, server: services.Redis) -> None:
        self.world = world
        self.server = server
        self.cwd = world.folder / "empty"
        self.cwd.mkdir()
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(configuration(world.settings))
        self.redis = redis.Redis.from_url(server.url)
        self._programs: list[services.Program] = []

    def close(self) -> None:
        for program in reversed(self._programs):
            program.kill()
        self.client.close()
        self.redis.close()

    # --- processes --------------------------------------------------------------------------------------------

    def argv(self, *arguments: str) -> list[str]:
        return ["--config", str(self.world.config), *arguments]

    def env(self, fault: str = "") -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "UNDERSTUDY_FAULT": fault}

    def worker(self, site: str | None, *, concurrency: int = 1, fault: str = "") -> Worker:
        """A started worker of a site, or of the control queue; `ready` waits for it."""
        place = ("--control",) if site is None else ("--site", site)
        log = self._log(f"worker-{site or 'control'}")
        arguments = self.argv("worker", *place, "--concurrency", str(concurrency))
        return self._started(Worker(arguments, log, env=self.env(fault), cwd=self.cwd))

    def workers(self, *sites: str | None) -> list[Worker]:
        """One ready worker each; they start side by side."""
        started = [self.worker(site) for site in sites]
        for worker in started:
            worker.ready()
        return started

    def beat(self) -> services.Program:
        return self._started(forks.Understudy(self.argv("beat"), self._log("beat"), env=self.env(), cwd=self.cwd))

    def program(self, *arguments: str) -> services.Program:
        """Any other, as a user starts it."""
        command = [sys.executable, "-P", "-m", "tasks.cli", *self.argv(*arguments)]
        return self._started(services.Program(command, self._log(arguments[0]), env=self.env(), cwd=self.cwd))

    def stop(self, *programs: services.Program) -> None:
        for program in programs:
            program.kill()

    @contextmanager
    def only_for_now(self) -> Iterator[None]:
        """What is started in this block ends with it."""
        before = len(self._programs)
        try:
            yield
        finally:
            self.stop(*self._programs[before:])

    def command(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`understudy ...`, as a person runs it."""
        done = self.run(*arguments, env=self.env())
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def run(self, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        folder, patience = self.world.folder, 2 * PATIENCE
        return forks.run(self.argv(*arguments), env=env, cwd=self.cwd, folder=folder, timeout=patience)

    def _log(self, name: str) -> Any:
        return self.world.folder / f"{len(self._programs)}-{name}.log"

    def _started(self, program: Any) -> Any:
        self._programs.append(program)
        return program

    # --- messages ---------------------------------------------------------------------------------------------

    def keys(self, queue: str) -> list[str]:
        """A queue on Redis is a list per priority."""
        return [f"understudy:{queue}{suffix}" for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169")]

    def waiting(self, queue: str, task: str = "") -> list[Message]:
        """The messages of a queue that no worker has taken; only those of one kind of task, if it is named."""
        found = [read(raw) for key in self.keys(queue) for raw in self.redis.lrange(key, 0, -1)]
        return [message for message in found if message.task.startswith(task)]

    def queued_work(self) -> dict[str, list[Message]]:
        """Runs' messages by queue, of the whole Redis; queues without any are left out."""
        queues = ["control", *(f"{kind}.{site}" for site in ("prod", "dr") for kind in ("data", "adhoc"))]
        work = {queue: [m for m in self.waiting(queue) if m.task.endswith(".run")] for queue in queues}
        return {queue: messages for queue, messages in work.items() if messages}

    def put(self, queue: str, message: Message) -> None:
        """As kombu does: to the left; workers take from the right."""
        self.redis.lpush(f"understudy:{queue}", message.raw)

    def ask(self, task: str, **kwargs: Any) -> AsyncResult:
        """What any program may enqueue: `understudy.sync` or `understudy.backup`."""
        return self.client.send_task(task, kwargs=kwargs, queue="control")

    def sync(self, vm: str) -> Run:
        """An ad hoc sync, asked for by message: the run that it made."""
        (made,) = self.ask("understudy.sync", vm=vm).get(**LOOK)
        assert not made["joined"]
        return self.world.catalogue.run(made["run"])

    def backup(self, vm: str) -> Run:
        (made,) = self.ask("understudy.backup", vm=vm).get(**LOOK)
        assert not made["joined"]
        return self.world.catalogue.run(made["run"])

    # --- what comes of it -------------------------------------------------------------------------------------

    def ended(self, run: Run, state: RunState = RunState.SUCCEEDED) -> Run:
        """The run when it has ended, which must be in this state."""

        def look() -> Run | None:
            now = self.world.catalogue.run(run.id)
            return None if now.live else now

        end: Run = services.wait_for(look, f"the end of {run.kind} {run.id}", PATIENCE)
        assert end.state is state, (end.error, end.reasons)
        return end

    def begun(self, run: Run) -> Run:
        """The run as soon as a worker has claimed it."""
        catalogue = self.world.catalogue
        services.wait_for(lambda: catalogue.run(run.id).state is RunState.RUNNING, "a claimed run", PATIENCE)
        return catalogue.run(run.id)


def read(raw: bytes) -> Message:
    whole = json.loads(raw)
    headers = whole["headers"]
    args, kwargs, _ = json.loads(base64.b64decode(whole["body"]))
    return Message(raw, headers["id"], headers["task"], headers["argsrepr"], headers["kwargsrepr"], args, kwargs)


def process_state(pid: int) -> str:
    """R, S, T (stopped), Z (ended, not yet buried); empty when there is no such process.

    Of a killed process the first thread may end before the others: until the last has, it is Z and still holds files.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    """No thread of the process is left, so it holds nothing any more."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return threads == [pid] and process_state(pid) == "Z"


@contextmanager
def realm(world: World, server: services.Redis) -> Iterator[Realm]:
    made = Realm(world, server)
    try:
        made.redis.flushall()
        yield made
    finally:
        made.close()
