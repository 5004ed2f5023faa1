"""Looks on while things are killed: where, how long until the work went on, what the cursors and messages said."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import redis
from kombu.exceptions import OperationalError
from pyVmomi import vim

from tests.chaos.place import Place, pid_of
from workers.errors import UnderstudyError
from workers.replica import CURSOR


class Seen(NamedTuple):
    """A cursor as it was read."""

    fence: int
    state: str
    base: str | None
    run: str


class Watch:
    """Two threads: one reads the catalogue, the cursors and who died at which step, one listens to Celery's events."""

    def __init__(self, place: Place) -> None:
        self.place = place
        #: step -> kills at it
        self.met: Counter[str] = Counter()
        #: what -> kills at a random moment
        self.kills: Counter[str] = Counter()
        #: seconds from the death of who had a run or a slice until another one had it, or it had ended
        self.recoveries: list[tuple[float, str]] = []
        #: replica -> what its cursor said, each change once
        self.cursors: dict[str, list[Seen]] = {}
        #: run messages by Celery's id: how often they were sent and started
        self.sent: Counter[str] = Counter()
        self.started: Counter[str] = Counter()
        #: (run, owner, slice) -> since when, after what
        self._waiting: dict[tuple[str, str, tuple[str, int] | None], tuple[float, str]] = {}
        self._done = threading.Event()
        self.trouble: BaseException | None = None
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._look, self._listen)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(20)

    # --- deaths -------------------------------------------------------------------------------------------------

    def died(self, pids: list[int], how: str) -> None:
        """The runs and slices that they had are waited for."""
        now = time.monotonic()
        with suppress(UnderstudyError):
            for held in self.place.held():
                if pid_of(held.owner) in pids:
                    self._waiting.setdefault((held.run.id, held.owner, held.slice), (now, how))

    def _look(self) -> None:
        turn = 0
        while not self._done.wait(0.2):
            turn += 1
            try:
                self._deaths_at_steps()
                self._gone_on()
                if turn % 5 == 0:
                    self._read_cursors()
            except (UnderstudyError, OSError):
                pass  # what is asked may be down just now
            except BaseException as err:
                self.trouble = err
                return

    def _deaths_at_steps(self) -> None:
        for file in list(self.place.armed.glob("*@*")):
            label, _, pid = file.name.partition("@")
            if file.read_text() == "kill":
                self.died([int(pid)], label)
                self.met[label] += 1
            file.unlink()

    def _gone_on(self) -> None:
        for waiting, (since, how) in list(self._waiting.items()):
            run_id, owner, place = waiting
            run = self.place.world.catalogue.run(run_id)
            if run.live and (run.owner if place is None else self._owner_of(run_id, place)) in (owner, None):
                continue
            what = run.kind if place is None else f"a slice of a {run.kind}"
            self.recoveries.append((time.monotonic() - since, f"{what} of {run.vm} after a kill ({how})"))
            del self._waiting[waiting]

    def _owner_of(self, run_id: str, place: tuple[str, int]) -> str | None:
        """Of a slice; "done" when there is nothing left to do of it, or its plan was given up."""
        parts = {(part.disk, part.start): part for part in self.place.world.catalogue.slices(run_id)}
        return "done" if place not in parts or parts[place].finished else parts[place].owner

    # --- cursors ------------------------------------------------------------------------------------------------

    def _read_cursors(self) -> None:
        s = self.place.world.target
        for found in s.read_all({vim.VirtualMachine: ("name", "config.extraConfig")}):
            notes = {o.key: o.value for o in found.values.get("config.extraConfig") or ()}
            if CURSOR in notes:
                held = json.loads(notes[CURSOR])
                seen = Seen(held["fence"], held["state"], held.get("base"), held["run"])
                told = self.cursors.setdefault(str(found.values["name"]), [])
                if not told or told[-1] != seen:
                    told.append(seen)

    def commits(self) -> dict[str, int]:
        """Commits by replica. Fails where a fence went back, or a run committed twice or went on after its commit."""
        counts = {}
        for name, told in self.cursors.items():
            ended: set[str] = set()
            for before, now in itertools.pairwise(told):
                assert now.fence >= before.fence, f"{name}: the fence went back, {before} to {now}"
                if before.state == "committed" and now.run != before.run:
                    ended.add(before.run)
                assert now.run not in ended, f"{name}: the run {now.run} wrote a cursor after its commit: {told}"
                assert not (before.state == "committed" and now.run == before.run and now.base != before.base), told
            counts[name] = len({(seen.run, seen.base) for seen in told if seen.state == "committed"})
        return counts

    # --- messages -----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        client = self.place.realm.client
        while not self._done.is_set():
            # Redis is being killed: kombu's cleaning up after a lost connection trips over itself, too
            with suppress(OperationalError, redis.RedisError, OSError, AttributeError):
                with client.connection() as connection:
                    receiver = client.events.Receiver(
                        connection,
                        handlers={
                            "task-sent": self._was_sent,
                            "task-received": self._was_received,
                            "task-started": self._was_started,
                        },
                    )
                    for _ in receiver.itercapture(limit=None, timeout=2, wakeup=False):
                        if self._done.is_set():
                            return

    def _was_sent(self, event: dict[str, Any]) -> None:
        if str(event.get("name", "")).endswith(".run"):
            self.sent[event["uuid"]] += 1

    def _was_received(self, event: dict[str, Any]) -> None:
        if str(event.get("name", "")).endswith(".run"):
            self.sent[event["uuid"]] += 0

    def _was_started(self, event: dict[str, Any]) -> None:
        if event["uuid"] in self.sent:
            self.started[event["uuid"]] += 1
