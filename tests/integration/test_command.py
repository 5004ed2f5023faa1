"""The command `understudy` over a whole realm: real vCenters, real Redis, workers and Beat as processes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests import forks, services
from tests.command import forgetting, run
from tests.integration.world import MIB, ROOT, World
from workers.models import RunState

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Command:
    """`understudy` with a world's configuration, in an empty folder."""

    def __init__(self, world: World, redis: services.Redis) -> None:
        self.world = world
        self.cwd = world.folder / "empty"
        self.cwd.mkdir()
        text = world.config.read_text().replace("redis://127.0.0.1:1/0", redis.url)
        world.config.write_text(text.replace("keep = ", "replicate = { after_backup = false }\nkeep = "))
        self.processes: list[services.Program] = []

    def argv(self, *arguments: str) -> list[str]:
        return ["--config", str(self.world.config), *arguments]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = forks.run(self.argv(*arguments), env=ENV, cwd=self.cwd, folder=self.world.folder, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))

    def look(self, *arguments: str) -> str:
        """Without a process of its own: for what asks neither Redis nor the workers."""
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, forgetting(), redirect_stdout(said):
            patch.setenv("UNDERSTUDY_CONFIG", "")
            assert run("--config", str(self.world.config), *arguments) == 0
        return said.getvalue()

    def table(self, *arguments: str) -> Any:
        return json.loads(self.look(*arguments, "--json"))

    def start(self, *arguments: str) -> services.Program:
        log = self.world.folder / f"{'-'.join(arguments).replace('/', '')}.log"
        # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that: undone by env.
        argv = ["env", "--default-signal=INT", sys.executable, "-P", "-m", "tasks.cli", *self.argv(*arguments)]
        self.processes.append(services.Program(argv, log, env=ENV, cwd=self.cwd))
        return self.processes[-1]

    def workers(self) -> None:
        started = [
            forks.Understudy(
                self.argv("worker", "--site", site, "--concurrency", "1"),
                self.world.folder / f"worker-{site}.log",
                env=ENV,
                cwd=self.cwd,
            )
            for site in ("prod", "dr")
        ]
        self.processes += started
        for worker in started:
            services.wait_for(lambda worker=worker: worker.said(" ready."), "a ready worker", timeout=60)


@pytest.fixture(scope="module")
def redis() -> Iterator[services.Redis]:
    with services.Redis() as server:
        yield server


@pytest.fixture
def understudy(make_world: Callable[..., World], redis: services.Redis) -> Iterator[Command]:
    command = Command(make_world(), redis)
    try:
        yield command
    finally:
        for process in command.processes:
            process.kill()


def test_from_init_to_a_replica_in_sync(understudy: Command) -> None:
    world = understudy.world
    assert "is there" in understudy.look("init")
    world.make_vm("web-01", 16 * MIB)
    world.scribble("web-01", 1)
    assert "none answered" in understudy("check")
    understudy.workers()
    found = {each["what"]: each for each in understudy.json("check")}
    assert found["workers of prod"]["result"] == "ok" == found["target recovery"]["result"]
    assert found["control worker"]["result"] == "note"

    assert [line["state"] for line in understudy.table("status", "web-01")] == ["never synced"]
    (ended,) = understudy.json("backup", "web-01", "--wait")
    assert ended["state"] == "succeeded"

    runs = understudy.table("runs")
    (planned,) = understudy.table("sync", "web-01", "--plan")
    assert planned["build_replica"] and planned["point"] == ended["point"]
    assert [disk["mode"] for disk in planned["disks"]] == ["full"]
    assert "the replica is built new" in understudy.look("sync", "web-01", "--plan")
    assert understudy.table("runs") == runs, "a plan requests nothing"

    said = understudy("sync", "web-01", "--wait")
    assert re.search(r"sync web-01 \(\w+\): queued", said) and "succeeded" in said
    (line,) = understudy.table("status")
    assert line["state"] == "in sync" and line["sync_point"]["point"] == ended["point"]
    assert line["last_sync"]["run"]["written"] == planned["disks"][0]["bytes"]
    assert "in sync" in understudy.look("status")

    (point,) = understudy.table("points", "web-01")
    assert point["kept_as"][-1] == "pinned by replica dr/web-01_replica" and point["disks"][0]["mode"] == "full"
    assert "replica dr/web-01_replica" in understudy.look("points", "web-01")

    run = understudy.table("runs", "web-01", "--limit", "1")[0]["id"]
    shown = understudy.table("show", run[:8])
    assert shown["run"]["kind"] == "sync" and shown["slices"] and shown["run"]["reasons"]
    assert "reasons" in understudy.look("show", run) and "slices" in understudy.look("show", run)
    understudy("sync", "web-01", "--wait")
    assert understudy.table("runs", "--limit", "1")[0]["state"] == "nothing new"

    wished = ("restore", "web-01", "--point", point["id"][:10], "--to", "web-01-old")
    assert "a new VM on ds1, prod/web-01-old" in understudy.look(*wished, "--plan")
    (restored,) = understudy.json(*wished, "--wait")
    assert (restored["state"], restored["kind"]) == ("succeeded", "restore")
    assert world.state("web-01-old").config.disks[0].capacity == 16 * MIB
    assert understudy.table("rollback", "web-01", "--to", "newest", "--plan")[0]["nothing_new"]
    assert understudy.table("rebuild")["realm"] == world.catalogue.realm


def test_a_vm_that_is_too_new_for_the_inventory_is_looked_for(understudy: Command) -> None:
    world = understudy.world
    understudy.workers()
    world.discover = lambda: None  # type: ignore[method-assign]
    world.make_vm("fresh", 8 * MIB)
    assert [vm.identity.name for vm in world.catalogue.inventory()].count("fresh") == 0
    assert understudy.json("backup", "fresh", "--wait")[0]["state"] == "succeeded"
    assert "no VM 'frsh' is known at any site" in understudy("backup", "frsh", code=1)


def test_a_failure_is_one_sentence_and_exit_code_1(understudy: Command) -> None:
    world = understudy.world
    world.make_vm("db-01", 8 * MIB)
    understudy.workers()
    understudy("backup", "db-01", "--wait")
    understudy("sync", "db-01", "--wait")
    replica = world.vm(world.pair("db-01").replica_name, "dr")
    world.target.wait(replica.PowerOnVM_Task())
    understudy("backup", "db-01", "--wait")
    said = understudy("sync", "db-01", "--wait", code=1)
    assert "understudy: sync of db-01 failed: the replica db-01_replica is running" in said
    (line,) = understudy.table("status", "db-01")
    assert line["state"] == "touched"
    assert "db-01: sync: the replica db-01_replica is running" in understudy.look("status", "db-01")
    run = understudy.table("runs", "db-01", "--limit", "1")[0]["id"]
    assert understudy.table("show", run)["failures"][0]["family"] == "touched"


def test_a_worker_of_its_site_forgets_a_pair_and_looks_at_whose_a_replica_is(understudy: Command) -> None:
    world = understudy.world
    world.make_vm("old-01", 4 * MIB)
    understudy.workers()
    understudy("backup", "old-01", "--wait")
    understudy("sync", "old-01", "--wait")
    said = understudy("adopt", "old-01")
    assert f"belongs to this realm, pair {world.pair('old-01').id}" in said and "nothing was changed" in said
    said = understudy("forget", "old-01", "--yes", "--reason", "sold")
    assert "is an ordinary VM now" in said
    assert world.state("old-01_replica", "dr").notes == {}
    assert "forgotten since" in understudy.look("status", "old-01")
    assert "`understudy enable old-01` ends that" in understudy("sync", "old-01", code=1)


def test_who_stops_waiting_stops_nothing(understudy: Command) -> None:
    world = understudy.world
    world.make_vm("app-01", 8 * MIB)
    waiting = understudy.start("backup", "app-01", "--wait")  # there is no worker: it waits
    services.wait_for(lambda: waiting.said(": queued"), "the run in the queue", timeout=60)
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.process.wait(30) == 130
    assert "the runs go on" in waiting.log.read_text() and "Traceback" not in waiting.log.read_text()
    (run,) = world.catalogue.live_runs()
    assert run.state is RunState.QUEUED
    joined = understudy.json("backup", "app-01")
    assert joined[0]["joined"] and joined[0]["run"] == run.id
    understudy.workers()
    services.wait_for(lambda: world.catalogue.run(run.id).state is RunState.SUCCEEDED, "the backup", timeout=60)


def test_a_worker_ends_on_sigterm_and_logs_for_machines(understudy: Command) -> None:
    worker = understudy.start("worker", "--control", "--log-json")
    services.wait_for(lambda: worker.said(" ready."), "a ready worker", timeout=60)
    worker.process.terminate()
    assert worker.process.wait(60) is not None
    text = worker.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert any(line["event"].endswith(" ready.") and line["level"] == "info" for line in lines)
    assert "Cold shutdown" in text, "SIGTERM must stop a worker at a checkpoint, not after its slice"


def test_beat_leaves_nothing_behind_and_is_due_at_once(understudy: Command) -> None:
    control = understudy.start("worker", "--control", "--concurrency", "1")
    beat = understudy.start("beat")
    for tick in ("dispatch", "reap", "inventory", "prune"):
        services.wait_for(lambda tick=tick: beat.said(f"understudy.{tick}"), f"the tick {tick}", timeout=60)
    services.wait_for(lambda: control.said("understudy.dispatch"), "a tick that arrived", timeout=60)
    beat.process.terminate()
    beat.process.wait(30)
    assert list(understudy.cwd.iterdir()) == []


def test_flower_listens_on_loopback_and_runs_no_stray_file(understudy: Command) -> None:
    stray = understudy.cwd / "flowerconfig.py"
    stray.write_text("open('was-run', 'w')\n")
    port = services.free_port()
    flower = understudy.start("flower", "--port", str(port))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        assert flower.process.poll() is None, flower.log.read_text()
        try:
            return opener.open(f"http://127.0.0.1:{port}/healthcheck", timeout=5).status == 200
        except urllib.error.URLError:
            return False

    services.wait_for(answers, "an answer of Flower", timeout=60)
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    assert [path.name for path in understudy.cwd.iterdir()] == ["flowerconfig.py"]
