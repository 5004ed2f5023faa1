"""The realm of the chaos: real Redis, vCenters, workers and Beat, all of which can be killed and come back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy.orm  # noqa: F401  # loaded at first use otherwise, by several threads at once, which breaks it

from tests import services
from tests.chaos.moments import SIZES, Guest
from tests.integration.realm import PATIENCE, QUICK, Realm, Worker, realm
from tests.integration.world import MIB, Vcenter, World
from workers.models import Run, RunState

#: Whoever loses its worker goes on within seconds. A run may be killed at many steps, one after the other.
TUNING = {
    **QUICK,
    "lease": "5s",
    "attempts": 40,
    "dispatch_every": "2s",
    "prune_every": "5s",
    "inventory_every": "1h",
    "quarantine_after": 1000,
    "vcenter_wait": "30s",
    # slices of 125 kB: what a guest writes between two backups, some 800 kB, makes several and is worth a helper or two
    "slice_size": "1MB",
}
STEADY = ("steady-0", "steady-1", "template-0")
CHURN = ("churn-0", "churn-1")
#: not backed up by itself: it is restored, over and over
RESTORED = "restored-0"
GROUPS = (
    "replicate = { after_backup = true }",
    'backup = { every = "8s", jitter = "none" }',
    "[groups.churn]",
    'source = "prod"',
    'store = "main"',
    'target = "recovery"',
    'vms = ["churn-*"]',
    "keep = { last = 3 }",
    "scrub = 0",
    "[groups.restored]",
    'source = "prod"',
    'store = "main"',
    'vms = ["restored-*"]',
    "keep = { last = 50 }",
    "scrub = 0",
)


class Held(NamedTuple):
    """A run that somebody has, or a slice of it: (disk, start)."""

    run: Run
    owner: str
    slice: tuple[str, int] | None = None


class Place:
    """What can be killed, and who lives there."""

    def __init__(
        self, world: World, made: Realm, armed: Path, *, each: int, postgres: services.Postgres | None
    ) -> None:
        self.world, self.realm, self.armed = world, made, armed
        self.postgres = postgres
        self.guests: dict[str, Guest] = {}
        #: what the VM that is restored holds at its one restore point
        self.kept: list[bytes] = []
        self.control = self._worker(None)
        self.workers = [self._worker(site) for site in ("prod", "dr") for _ in range(each)]
        self.beats = [made.beat()]

    def _worker(self, site: str | None) -> Worker:
        return self.realm.worker(site, concurrency=2, fault=str(self.armed))

    def ready(self) -> None:
        for worker in (self.control, *self.workers):
            worker.ready()

    def settle_in(self, seed: int, names: tuple[str, ...], *, pause: float) -> None:
        """The VMs, their first contents; guests begin to write."""
        world = self.world
        for number, name in enumerate(names):
            if name.startswith(("steady", "churn")):
                self.guests[name] = Guest(world, name, *SIZES, seed=seed + number)
            else:
                world.make_vm(name, MIB, MIB, powered_on=False)
                world.scribble(name, seed + number)
        if RESTORED in names:
            self.kept = [bytes(data) for data in world.log[RESTORED].values()]
        if "template-0" in names:
            world.vm("template-0").MarkAsTemplate()
            world.discover()
        for guest in self.guests.values():
            guest.start(pause)

    def leave(self) -> None:
        for guest in self.guests.values():
            guest.stop()

    # --- kills --------------------------------------------------------------------------------------------------

    def children(self) -> list[int]:
        return [pid for worker in (self.control, *self.workers) for pid in worker.children()]

    def kill_child(self, rng: random.Random) -> list[int]:
        """A process of some pool, rather one that works."""
        pids = self.children()
        if not pids:
            return []
        busy = [pid for pid in pids if pid in self.owners()]
        pid = rng.choice(busy if busy and rng.random() < 0.7 else pids)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return [pid]

    def kill_worker(self, rng: random.Random) -> list[int]:
        """A worker with its pool, or its parent alone; a supervisor starts it again."""
        number = rng.randrange(len(self.workers) + 1)
        worker = self.control if number == len(self.workers) else self.workers[number]
        site = None if worker is self.control else "prod" if number < len(self.workers) // 2 else "dr"
        pids = worker.children()
        if rng.random() < 0.3:
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
        else:
            worker.kill()
        made = self._worker(site)
        if site is None:
            self.control = made
        else:
            self.workers[number] = made
        return pids

    def kill_beat(self, rng: random.Random) -> list[int]:
        """Sometimes a second one goes on beside it from then on."""
        beat = self.beats.pop(0)
        beat.kill()
        while len(self.beats) < rng.choice([1, 1, 2]):
            self.beats.append(self.realm.beat())
        return []

    def kill_redis(self, rng: random.Random, *, empty: bool = False) -> list[int]:
        """It comes back with what its append-only file has, or with nothing."""
        self.realm.server.kill()
        if empty:
            for file in self.realm.server.folder.rglob("*.aof*"):
                if file.is_file():
                    file.unlink()
        time.sleep(rng.random() * 2)
        self.realm.server.start()
        return []

    def kill_vcenter(self, rng: random.Random) -> list[int]:
        rng.choice([self.world.prod, self.world.dr]).restart(down=rng.random())
        return []

    def end_sessions(self, rng: random.Random) -> list[int]:
        rng.choice([self.world.prod, self.world.dr]).control(expireSessions=True)
        return []

    def drop_calls(self, rng: random.Random) -> list[int]:
        """The next calls of some kind are cut off, before or after they took effect."""
        vcenter = rng.choice([self.world.prod, self.world.dr])
        how = rng.choice(["Drop", "DropAfter"])
        vcenter.control(rules=[{"Method": "*", "Skip": rng.randrange(30), "Count": 2, how: True}])
        return []

    def kill_catalogue(self, rng: random.Random) -> list[int]:
        if self.postgres is not None:
            self.postgres.stop("immediate")
            time.sleep(rng.random() * 2)
            self.postgres.start()
        return []

    # --- what is going on ---------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """What is being worked on just now; also what the dead had, until somebody else has it."""
        found = []
        for run in self.world.catalogue.live_runs():
            if run.state is RunState.RUNNING and run.owner:
                found.append(Held(run, run.owner))
            parts = [part for part in self.world.catalogue.slices(run.id) if not part.finished]
            found += [Held(run, part.owner, (part.disk, part.start)) for part in parts if part.owner]
        return found

    def owners(self) -> set[int]:
        """The processes that hold a run or a slice just now."""
        return {pid_of(held.owner) for held in self.held()}


def pid_of(owner: str) -> int:
    """Of `host:pid:token`."""
    return int(owner.split(":")[1])


@contextmanager
def place(folder: Path, *, each: int, postgres: bool = False, **tuning: str) -> Iterator[Place]:
    """`each` workers a site, of two processes each."""
    armed = folder / "armed"
    armed.mkdir()
    with ExitStack() as stack:
        vcenters = []
        for name in ("prod", "dr"):
            vcenters.append(Vcenter(folder, name, lasting=True))
            stack.callback(vcenters[-1].stop)
        server = stack.enter_context(services.Redis())
        database = stack.enter_context(services.Postgres()) if postgres else None
        settings: dict[str, Any] = {"catalogue": database.database()} if database is not None else {}
        world = World(
            folder,
            *vcenters,
            redis=server.url,
            tuning={**TUNING, **tuning},
            vms=["steady-*", "template-*"],
            keep="{ last = 3 }",
            store=("compact_below = 0.9",),
            group=GROUPS,
            **settings,
        )
        made = stack.enter_context(realm(world, server))
        found = Place(world, made, armed, each=each, postgres=database)
        stack.callback(found.leave)
        found.ready()
        yield found


__all__ = ["CHURN", "PATIENCE", "RESTORED", "STEADY", "Held", "Place", "pid_of", "place"]
