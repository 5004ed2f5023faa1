"""What goes on while things are killed: backups, syncs, changes of hardware, rollbacks, restores, compactions.

Each thread does one thing after the other. What it asks of may be down at any moment: then it goes on with the next
thing. What was asked for and came to its end is judged here; the rest at the end of the round.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from kombu.exceptions import OperationalError
from pyVmomi import vim, vmodl

from tests.chaos.moments import Guest
from tests.chaos.place import RESTORED, Place
from tests.integration import invariants
from tests.integration.world import MIB, first_difference, flat
from workers import restore, rollback
from workers.errors import NotFound, UnderstudyError
from workers.models import Run, RunKind, RunState
from workers.restore_order import Wish
from workers.vsphere import inventory

#: a run comes to its end within this, however often it is killed; else the thread goes on with the next thing
PATIENT = 60
DOWN = (UnderstudyError, OperationalError, OSError, vim.fault.VimFault, vmodl.MethodFault)

#: what leads past steps that are rarely passed
LEADS = {
    "_disk": ("disks-removed", "hardware.after"),
    "_tracking": ("cbt-enabled",),
    "_replica": ("create.before", "create.after", "replica-built"),
    "_roll_back": ("rollback.paused",),
    "_new": ("restore.running", "restore.building", "restore.built", "slices.forgetting"),
    "_over": ("restore.claimed", "restore.hardware", "restore.marked"),
    "_template": ("restore.template",),
}


class Activity:
    """The threads of one round: `stop` lets each end what it does."""

    def __init__(self, place: Place, seed: int, *, restores: bool) -> None:
        self.place, self.world = place, place.world
        self.rng = random.Random(seed)
        self.trouble: list[str] = []
        self.done: list[str] = []
        self._stop = threading.Event()
        works: list[Callable[[], None]] = (
            [self._compact] if RESTORED in place.world.log else []
        )  # not in the short form
        works += [lambda g=g: self._churn(g) for name, g in place.guests.items() if name.startswith("churn")]
        if restores:
            works += [self._restore]
        self._threads = [threading.Thread(target=self._again, args=(work,), daemon=True) for work in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(6 * PATIENT)
            assert not thread.is_alive(), f"what goes on does not end: {self.done[-5:]}"

    def _again(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except DOWN:
                self._stop.wait(0.3)
            except Exception:
                self.trouble.append(traceback.format_exc())
                return

    def _armed(self, *labels: str) -> bool:
        """Whether somebody is to die at one of these steps."""
        return any((self.place.armed / label).exists() for label in labels)

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, task: str, **kwargs: object) -> None:
        """By message. It may be lost with Redis: then nothing comes of it."""
        with suppress(*DOWN):
            self.place.realm.client.send_task(task, kwargs=kwargs, queue="control", retry=False)

    def send(self, run: Run) -> None:
        """The message of a run that was requested here; without it the reaper sends one."""
        with suppress(*DOWN):
            kwargs = {"run": run.id, "vm": run.vm}
            name, queue = f"understudy.{run.kind}.run", f"adhoc.{run.site}"
            self.place.realm.client.send_task(name, kwargs=kwargs, queue=queue, retry=False)

    def ended(self, run: Run) -> Run | None:
        """The run when it has ended; None when that takes too long."""
        deadline = time.monotonic() + PATIENT
        while time.monotonic() < deadline:
            with suppress(UnderstudyError):
                if not (now := self.world.catalogue.run(run.id)).live:
                    return now
            time.sleep(0.1)
        return None

    def quiet(self, vm: str) -> bool:
        return not [run for run in self.world.catalogue.live_runs() if run.vm == vm]

    def calm(self, vm: str, patience: float = PATIENT) -> bool:
        """Nothing is under way for this VM any more."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with suppress(UnderstudyError):
                if self.quiet(vm):
                    return True
            time.sleep(0.1)
        return False

    def calm_down(self) -> None:
        """Nothing is under way for anybody, or not much longer."""
        self.world.store.close()
        for vm in self.world.log:
            self.calm(vm, patience=20)

    # --- a VM that changes --------------------------------------------------------------------------------------

    def _churn(self, guest: Guest) -> None:
        before = {run.id for run in self.world.catalogue.runs(vm=guest.name, kind=RunKind.BACKUP, limit=3)}
        self.ask("understudy.backup", vm=guest.name)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and not self._stop.is_set():
            if {run.id for run in self.world.catalogue.runs(vm=guest.name, kind=RunKind.BACKUP, limit=3)} - before:
                break
            time.sleep(0.1)
        if not self.calm(guest.name):
            return
        # a finished backup sets its sync off; the tick after the look would, too
        self._stop.wait(1.5)
        if self.calm(guest.name) and not self._stop.is_set():
            changes = [self._disk, self._tracking, self._replica, self._roll_back]
            leading = [change for change in changes if self._armed(*LEADS[change.__name__])]
            change = self.rng.choice(leading or changes)
            change(guest)
            self.done.append(f"{guest.name}: {change.__name__}")

    def _disk(self, guest: Guest) -> None:
        """A disk comes or goes, as vSphere has it only without snapshots."""
        world = self.world
        if world.state(guest.name).snapshots:
            return
        count = len(guest.disks)
        if count < 2 or (count < 3 and self.rng.random() < 0.5 and not self._armed("disks-removed")):
            guest.hardware(lambda: world.add_disk(guest.name, MIB))
        else:
            guest.hardware(lambda: world.remove_disk(guest.name, self.rng.randrange(count)))

    def _tracking(self, guest: Guest) -> None:
        if not self.world.state(guest.name).snapshots:
            off = vim.vm.ConfigSpec(changeTrackingEnabled=False)
            self.world.source.wait(self.world.vm(guest.name).ReconfigVM_Task(off))

    def _replica(self, guest: Guest) -> None:
        """Somebody deletes it."""
        found = invariants.replica_of(self.world, guest.name)
        if found is not None:
            self.world.target.wait(self.world.target.vm(found.identity.moref).Destroy_Task())

    def _roll_back(self, guest: Guest) -> None:
        pair = self.world.pair(guest.name)
        goal = rollback.goal_of(self.world.here, pair, None)
        try:
            run, _ = rollback.request(self.world.here, pair, goal.id)
            self.send(run)
            self.ended(run)
        finally:
            self._insist(lambda: self.world.catalogue.pause(pair.id, None))

    def _insist(self, act: Callable[[], object]) -> None:
        for _ in range(50):
            with suppress(UnderstudyError):
                act()
                return
            time.sleep(0.2)
        raise AssertionError("the catalogue does not come back")

    # --- restores -----------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        if not self.world.catalogue.points(self.world.state(RESTORED).identity.instance_uuid):
            run = self.world.request_backup(RESTORED)
            self.send(run)
            self.ended(run)
            return
        kinds = [self._new, self._over, self._template]
        leading = [kind for kind in kinds if self._armed(*LEADS[kind.__name__])]
        self.rng.choice(leading or kinds)()

    def _new(self) -> None:
        self._to_new(RESTORED, power_on=self._armed("restore.running") or self.rng.random() < 0.3)

    def _template(self) -> None:
        self._to_new("template-0")

    def _to_new(self, name: str, *, power_on: bool = False) -> None:
        copy = f"copy-{self.rng.randrange(1 << 30)}"
        try:
            run, _ = restore.request(self.world.here, Wish(vm=name, to=copy, power_on=power_on))
        except NotFound:
            return  # the template has no restore point yet
        self.send(run)
        ended = self.ended(run)
        if ended is not None and ended.state is RunState.SUCCEEDED and name == RESTORED:
            self._judge(copy)
        self._insist(lambda: self._remove(copy))

    def _remove(self, name: str) -> None:
        s = self.world.source
        try:
            found = s.vm(inventory.find_vm(s, name).identity.moref)
        except NotFound:
            return
        if self.world.state(name).power == "poweredOn":
            s.wait(found.PowerOffVM_Task())
        s.wait(found.Destroy_Task())

    def _over(self) -> None:
        if len(self.world.disks(RESTORED)) == 2:
            self.world.remove_disk(RESTORED, 1)
        run, _ = restore.request(self.world.here, Wish(vm=RESTORED, over_original=True, undo=False, point="00000001"))
        self.send(run)
        ended = self.ended(run)
        if ended is not None and ended.state is RunState.SUCCEEDED:
            self._judge(RESTORED)

    def _judge(self, name: str) -> None:
        """Byte for byte what the VM held at its restore point."""
        files = [flat(self.world.prod, disk.file) for disk in self.world.disks(name)]
        found = [file.read_bytes() for file in files]
        differs = [first_difference(a, b) for a, b in zip(found, self.place.kept, strict=True)]
        assert differs == [None] * len(differs), f"{name} was restored, and differs at {differs}"
        self.done.append(f"{name}: restored")

    # --- the store ----------------------------------------------------------------------------------------------

    def _compact(self) -> None:
        """As an administrator does, in a process of its own."""
        self._stop.wait(1 if any(self.place.armed.glob("compact.*")) else 12)
        if not self._stop.is_set():
            self.compact()

    def compact(self) -> None:
        made = self.place.realm
        made.run("store", "compact", "main", env=made.env(str(self.place.armed)))
