"""The life of one VM under random trouble: what may happen to it, and what must hold after each event."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from pyVmomi import vim

from tests.integration import invariants
from tests.integration.child import Forked, work
from tests.integration.world import MIB, World
from workers import left_behind
from workers.errors import Touched, UnderstudyError
from workers.models import Run, RunKind, RunState
from workers.run import Here, give_up


class Life:
    """One VM. Every public method is one event; `dead` says whose run lost its worker and waits."""

    def __init__(
        self,
        world: World,
        name: str,
        rng: random.Random,
        *,
        steps: Sequence[str],
        met: set[str],
        tell: Callable[[str], None],
    ) -> None:
        """`steps`: where a worker may die; `met`: where one did, shared by all lives."""
        self.world, self.name, self.rng = world, name, rng
        self.steps, self.met = steps, met
        self._tell = tell
        self.dead: dict[RunKind, Run] = {}
        #: snapshot's moref -> what the disks held when it was made
        self.frozen: dict[str, dict[str, bytes]] = {}
        #: disks whose change tracking was told to miss a range and may still do so
        self.hiding: set[str] = set()
        self.audited = False
        self.touched = False
        #: kill only at steps where none has died yet
        self.hunting = False
        #: why the next failure of a run is no surprise
        self.excuse = ""
        world.make_vm(name, 6 * MIB, 3 * MIB)
        self.uuid = world.state(name).identity.instance_uuid
        world.scribble(name, rng.randrange(1 << 30))

    def tell(self, text: str) -> None:
        self._tell(f"{self.name}: {text}")

    # --- the guest ------------------------------------------------------------------------------------------------

    def scattered(self) -> None:
        for _ in range(self.rng.randrange(1, 30)):
            number, size = self._disk()
            offset = self.rng.randrange(0, size // 4096) * 4096
            self.world.write(self.name, offset, self.rng.randbytes(self.rng.choice([1, 512, 4096])), number)

    def big(self) -> None:
        number, size = self._disk()
        length = self.rng.randrange(MIB // 2, min(2 * MIB, size))
        self.world.write(self.name, self.rng.randrange(0, size - length), self.rng.randbytes(length), number)

    def zeroes(self) -> None:
        number, size = self._disk()
        length = self.rng.randrange(1, MIB)
        self.world.write(self.name, self.rng.randrange(0, size - length), bytes(length), number)

    def nothing_but_rewrites(self) -> None:
        """The same bytes once more: change tracking reports them, though nothing differs."""
        number, size = self._disk()
        offset = self.rng.randrange(0, size // 4096) * 4096
        disk = self.world.disks(self.name)[number].id
        same = bytes(self.world.log[self.name][disk][offset : offset + 4096])
        self._control(guestWrite={"VM": self.name, "Disk": number, "Offset": offset, "Hex": same.hex()})

    def there_and_back(self) -> None:
        """A block changes, is backed up (and perhaps half replicated), and changes back."""
        number, size = self._disk()
        offset = self.rng.randrange(0, size // 4096) * 4096
        disk = self.world.disks(self.name)[number].id
        before = bytes(self.world.log[self.name][disk][offset : offset + 8192])
        self.world.write(self.name, offset, self.rng.randbytes(len(before)), number)
        self.back_up()
        self.killed_sync()
        if disk in self.world.log[self.name]:
            self.world.write(self.name, offset, before, number)

    def _disk(self) -> tuple[int, int]:
        disks = self.world.disks(self.name)
        number = self.rng.randrange(len(disks))
        return number, disks[number].capacity

    # --- the administrator ----------------------------------------------------------------------------------------

    def hardware(self) -> None:
        """Grown and removed only without snapshots, as vSphere has it."""
        world, disks = self.world, self.world.disks(self.name)
        free = not world.state(self.name).snapshots
        what = self.rng.choice(["add", "grow", "remove"] if free else ["add"])
        if what == "add" and len(disks) < 4:
            world.add_disk(self.name, self.rng.randrange(1, 4) * MIB)
        elif what == "grow":
            number = self.rng.randrange(len(disks))
            world.grow_disk(self.name, number, disks[number].capacity + self.rng.randrange(1, 3) * MIB)
        elif what == "remove" and len(disks) > 1:
            world.remove_disk(self.name, self.rng.randrange(len(disks)))
        self.tell(f"hardware: {what}, {[d.capacity // MIB for d in world.disks(self.name)]} MiB")

    def lose_tracking(self) -> None:
        if self._tracked():
            self._control(cbt={"VM": self.name, "Disk": self._disk()[0], "Reset": True})
        if self.rng.random() < 0.5 and not self.world.state(self.name).snapshots:
            off = vim.vm.ConfigSpec(changeTrackingEnabled=False)
            self.world.source.wait(self.world.vm(self.name).ReconfigVM_Task(off))

    def _tracked(self) -> bool:
        return self.world.store.newest(self.uuid) is not None and self.world.state(self.name).change_tracking

    def hide_a_change(self) -> None:
        """Change tracking misses a range that was written; every block is sampled until its answer is over."""
        newest = self.world.store.newest(self.uuid)
        number, size = self._disk()
        tracked = {d.disk.id for d in newest.disks if d.disk.change_id} if newest is not None else set()
        if RunKind.BACKUP in self.dead or not self._tracked() or self.world.disks(self.name)[number].id not in tracked:
            return
        offset = self.rng.randrange(0, size // MIB) * MIB
        self._control(cbt={"VM": self.name, "Disk": number, "Hide": {"Offset": offset, "Length": MIB}, "Answers": 1})
        self.hiding.add(self.world.disks(self.name)[number].id)
        self.world.write(self.name, offset + 8192, self.rng.randbytes(5000), number)

    def audit(self) -> None:
        """Somebody's snapshot of the source comes, or goes. The file carrier may not read what stands on it."""
        if self.audited:
            invariants.remove_snapshot(self.world, self.name, "audit")
        else:
            vm = self.world.vm(self.name)
            self.world.source.wait(vm.CreateSnapshot_Task(name="audit", memory=False, quiesce=False))
        self.audited = not self.audited

    def boot_the_replica(self) -> None:
        """By hand, and the guest writes. From here on only a person may give its changes up."""
        found, cursor = invariants.replica_of(self.world, self.name), invariants.cursor_of(self.world, self.name)
        if found is None or cursor is None:
            return
        vm = self.world.target.vm(found.identity.moref)
        self.world.target.wait(vm.PowerOnVM_Task())
        for _ in range(3):
            number = self.rng.randrange(len(found.config.disks))
            order = {"VM": found.identity.name, "Disk": number, "Offset": 4096 * self.rng.randrange(200)}
            self.world.dr.control(guestWrite={**order, "Hex": self.rng.randbytes(4096).hex()})
        self.world.target.wait(vm.PowerOffVM_Task())
        if cursor.content:
            self.touched = True
            self._must_stop()
        # else a run died while it took the replica over: it must compare in any case

    def _must_stop(self) -> None:
        """Until a run has given the evidence up on request, each one stops and asks."""
        run = self.dead.get(RunKind.SYNC)
        if run is not None and "discard" in self.world.catalogue.run(run.id).memory:
            return
        if run is not None and lost_too_often(self.world, run):
            self._end(RunKind.SYNC)
            run = None
        try:
            self._attempt(run or self.world.request_sync(self.name))
        except Touched:
            return
        raise AssertionError(f"{self.name}: the replica was booted and written to, and nobody was asked")

    def lose_the_replica(self) -> None:
        found = invariants.replica_of(self.world, self.name)
        if found is not None:
            self.world.target.wait(self.world.target.vm(found.identity.moref).Destroy_Task())
            self.touched = False

    def trouble_at_vcenter(self) -> None:
        """A session that ends, or one connection that breaks some calls from now; then something is done."""
        vcenter = self.rng.choice([self.world.prod, self.world.dr])
        if self.rng.random() < 0.3:
            vcenter.control(expireSessions=True)
        else:
            how = self.rng.choice(["Drop", "DropAfter"])
            vcenter.control(rules=[{"Method": "*", "Skip": self.rng.randrange(60), "Count": 1, how: True}])
            self.excuse = "a lost connection"
        try:
            self.rng.choice([self.back_up, self.sync])()
        finally:
            self.excuse = ""

    def _control(self, **order: object) -> None:
        self.world.prod.control(**order)

    # --- runs -----------------------------------------------------------------------------------------------------

    def back_up(self) -> None:
        self._go_on(RunKind.BACKUP)

    def sync(self) -> None:
        self._go_on(RunKind.SYNC)

    def killed_backup(self) -> None:
        self._killed(RunKind.BACKUP)

    def killed_sync(self) -> None:
        self._killed(RunKind.SYNC)

    def give_up(self) -> None:
        """A dead run is ended, and what it left is removed, as the reaper does."""
        if self.dead:
            self._end(self.rng.choice(sorted(self.dead)))

    def _end(self, kind: RunKind) -> None:
        run = self.dead.pop(kind)
        self.world.expire_lease(run)
        give_up(self.world.here, run, "its worker was lost, and the test gave it up")
        self._clean()

    def prune(self) -> None:
        """And compact, sometimes a slice only: later events meet a store whose points are half exchanged."""
        if self.rng.random() < 0.5:
            self._fork(self._free, "prune")
        self._free()

    def _free(self) -> None:
        self.world.store.prune()
        self.world.store.compact(below=0.9, seconds=self.rng.choice([None, 0]))

    def _run(self, kind: RunKind) -> Run:
        if kind in self.dead:
            return self.dead[kind]
        if kind is RunKind.BACKUP:
            return self.world.request_backup(self.name)
        return self.world.request_sync(self.name, discard=self.touched)

    def _go_on(self, kind: RunKind) -> None:
        run = self._run(kind)
        self.tell(f"{kind} {run.id}{' goes on' if kind in self.dead else ''}")
        self.dead[kind] = run
        try:
            self._attempt(run)
        except UnderstudyError as err:
            self.tell(f"{kind} {run.id}: {type(err).__name__}: {err}")

    def _attempt(self, run: Run) -> None:
        """One message in this process. An error that ends the run must have a known cause."""
        world = self.world
        world.expire_lease(run)
        self.dead[run.kind] = run
        try:
            report = work(self._here(), run.id)
        except UnderstudyError as err:
            invariants.assert_sentence(str(err))
            raise
        finally:
            world.prod.control(clear=True)
            world.dr.control(clear=True)
            self._look(run)
        self._judge(run, report.point)

    def _excused(self, run: Run) -> bool:
        error = self.world.catalogue.run(run.id).error or ""
        if self.audited and "snapshot" in error:
            return True
        return bool(self.excuse) or lost_too_often(self.world, run) or (self.touched and "discard-changes" in error)

    def _here(self) -> Here:
        here = self.world.here
        if not self.hiding:
            return here
        tuning = here.settings.tuning.model_copy(update={"sample": 1.0})
        return Here(here.settings.model_copy(update={"tuning": tuning}), here.catalogue)

    def _killed(self, kind: RunKind) -> None:
        run = self._run(kind)
        self.world.expire_lease(run)
        self.dead[kind] = run
        self._fork(lambda: work(self._here(), run.id), kind)
        self._look(run)
        self._judge(run, self.world.catalogue.run(run.id).point)

    def _fork(self, job: Callable[[], object], kind: str) -> None:
        """Killed at a step, rather one where none has died yet, or at any moment."""
        dice = random.Random(self.rng.random())
        new = [step for step in self.steps if step not in self.met]
        likely = {step: 0.03 if step in self.met else 0.4 for step in self.steps}
        if self.hunting and new:  # for one of those that are left, which the others must not keep from being passed
            wanted = self.rng.choice(new)
            likely = {step: float(step == wanted) for step in self.steps}
        named = self.hunting or self.rng.random() < 0.8
        doomed = (lambda step: dice.random() < likely.get(step, 0.0)) if named else None
        child = Forked(job, Path(self.world.folder, "child.log"), doomed=doomed)
        code = child.wait(120 if named else self.rng.random() * 0.6)
        child.kill()
        assert child.code in (0, 1, -9) and (code is not None or not named), child.said
        self.met |= {child.hit} if child.hit else set()
        self.tell(f"{kind} in a child: {f'died at {child.hit}' if child.hit else code}")

    # --- afterwards -----------------------------------------------------------------------------------------------

    def _look(self, run: Run) -> None:
        """How the attempt ended. A failure must have a known cause; what it left is removed as the reaper has it."""
        self._learn_points(run)
        now = self.world.catalogue.run(run.id)
        if now.live:
            return
        self.dead.pop(run.kind, None)
        if now.state is RunState.FAILED:
            self.tell(f"{run.kind} {run.id} failed: {now.error}")
            assert self._excused(run), f"{self.name}: {run.kind} {run.id} failed for no reason: {now.error}"
        self._clean()

    def _clean(self) -> None:
        for run in self.world.catalogue.unclean_runs():
            if run.vm == self.name:
                left_behind.clean_up(self.world.here, run.id)

    def _learn_points(self, run: Run) -> None:
        """The frozen state of a snapshot is that of the moment it was made: nothing is written during an attempt."""
        world, held = self.world, {key: bytes(data) for key, data in self.world.log[self.name].items()}
        remembered = world.catalogue.run(run.id).memory.get("snapshot")
        if run.kind is RunKind.BACKUP and remembered:
            self.frozen.setdefault(remembered, held)
        for point in world.store.points(self.uuid):
            if point.id not in world.held:
                world.held[point.id] = self.frozen.get(point.snapshot, held)
                for disk in point.disks:
                    if disk.mode == "delta":
                        self.hiding.discard(disk.disk.id)
                self.hiding &= {disk.disk.id for disk in point.disks}

    def _judge(self, run: Run, point: str | None) -> None:
        """A run that ended well: its point, or what the replica has held all along, byte for byte."""
        ended = self.world.catalogue.run(run.id).state
        if run.kind is RunKind.BACKUP and ended is RunState.SUCCEEDED:
            assert point is not None
            self.world.assert_point_is_readable(self.name, point)
        elif run.kind is RunKind.SYNC and ended in (RunState.SUCCEEDED, RunState.NOTHING_NEW):
            cursor = invariants.cursor_of(self.world, self.name)
            if cursor is not None:
                assert cursor.base is not None and cursor.state == "committed" and point in (None, cursor.base)
                self.touched = False
                self.world.assert_replica_is(self.name, cursor.base)

    def check(self) -> None:
        invariants.check(self.world, self.name)

    def settle(self) -> None:
        """The end: everything that is open is brought to its end, and the replica is the last point."""
        if self.audited:
            self.audit()
        for kind in (RunKind.BACKUP, RunKind.SYNC, RunKind.BACKUP, RunKind.SYNC, RunKind.SYNC):
            self._go_on(kind)
        assert not self.dead, self.dead
        assert self.world.plan(self.name).nothing_new
        newest = self.world.store.newest(self.uuid)
        assert newest is not None
        assert self.world.held[newest.id] == {k: bytes(v) for k, v in self.world.log[self.name].items()}
        for point in self.world.store.points(self.uuid):
            self.world.assert_point_is_readable(self.name, point.id)
        self.world.assert_replica_is(self.name, newest.id)
        self.check()


def lost_too_often(world: World, run: Run) -> bool:
    """Its worker was lost so often that it is not tried again."""
    return world.catalogue.run(run.id).attempts >= world.settings.tuning.attempts
