"""After a round: nothing is stuck, nothing is left behind, every replica is one restore point, all records agree."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from tests.chaos.activity import Activity
from tests.chaos.moments import Guest, digest
from tests.chaos.place import Place
from tests.integration import invariants
from tests.integration.world import World, flat
from workers import holding
from workers.disks.file import FileLock
from workers.errors import DiskBusy, UnderstudyError
from workers.models import RestorePoint, Run, RunKind, RunState

#: Nobody is killed any more: within this everything that goes on has ended.
SETTLED = 180


class Judge:
    def __init__(self, place: Place) -> None:
        self.place, self.world = place, place.world
        #: restore point -> the number of the state that it is
        self.moments: dict[str, int] = {}
        #: how the runs ended that did not end well, by family
        self.failed: Counter[str] = Counter()
        #: kind of run and how it ended, as of the last verdict
        self.ended: Counter[str] = Counter()
        #: sync run -> the restore point that it committed, as the catalogue has it
        self.ledger: dict[str, str] = {}
        self.points = self.replicas = 0

    # --- coming to rest -----------------------------------------------------------------------------------------

    def rest(self, activity: Activity) -> None:
        """Schedules pause; what goes on comes to its end; then each replica is brought to a last backup."""
        self.pause()
        self._until(lambda: [f"{r.kind} {r.id} of {r.vm} ({r.state}, {r.error})" for r in self._live()], "stuck")
        last = {name: self._last(activity, name) for name in self.place.guests}
        self._until(lambda: [f"{name} is not at its last backup" for name in last if not self._is_at(name)], "behind")
        self._until(self.left_behind, "left behind")

    def pause(self) -> None:
        self._each(lambda subject: holding.pause(self.world.here, subject, who="the judge", reason="a look"))

    def resume(self) -> None:
        self._each(lambda subject: holding.resume(self.world.here, subject))

    def _each(self, act: Any) -> None:
        names = [*self.place.guests, *(["template-0"] if "template-0" in self.world.log else [])]
        for subject in holding.subjects(self.world.here, names, which="backups"):
            act(subject)

    def _live(self) -> list[Run]:
        return self.world.catalogue.live_runs()

    def _last(self, activity: Activity, name: str) -> Run:
        run = self.world.request_backup(name)
        activity.send(run)
        ended = activity.ended(run)
        assert ended is not None and ended.state is RunState.SUCCEEDED, f"the last backup of {name}: {ended}"
        return ended

    def _is_at(self, name: str) -> bool:
        pair = self.world.pair(name)
        uuid = self.world.state(name).identity.instance_uuid
        newest, held = self.world.store.newest(uuid), self.world.catalogue.sync_point(pair.id)
        return newest is not None and held is not None and held.point == newest.id

    def _until(self, look: Any, what: str) -> None:
        deadline, found = time.monotonic() + SETTLED, ["not looked at"]
        while time.monotonic() < deadline:
            with suppress(UnderstudyError):
                if not (found := look()):
                    return
            time.sleep(0.3)
        raise AssertionError(f"{what} after {SETTLED} s without kills: {'; '.join(found)}")

    # --- what is left -------------------------------------------------------------------------------------------

    def left_behind(self) -> list[str]:
        world, found = self.world, []
        world.store.close()  # else prune waits for this reader
        found += [f"{run.kind} {run.id} of {run.vm} goes on" for run in self._live()]
        found += [f"what {run.kind} {run.id} of {run.vm} left" for run in world.catalogue.unclean_runs()]
        found += [f"the store's writer {run}" for run in world.store.runs()]
        found += [f"the message {queue} {len(waiting)}" for queue, waiting in self.place.realm.queued_work().items()]
        found += self._files(world)
        found += [f"the VM {name}" for name in self._vms() - self._expected()]
        for name in world.log:
            found += [f"{n.name} on {name}" for n in world.state(name).snapshots if n.name.startswith("understudy")]
        for name in self.place.guests:
            found += self._locks(name)
        realm = world.catalogue.realm
        pairs = {f"{realm}:{pair.id}" for pair in world.catalogue.pairs()}
        for uuid in world.store.vms():
            held = {holder for holders in world.store.pins(uuid).values() for holder in holders}
            found += [f"a pin of {holder}" for holder in held - pairs]
        return found

    def _vms(self) -> set[str]:
        sessions = {"prod": self.world.source, "dr": self.world.target}
        return {
            f"{site}/{found.values['name']}"
            for site, session in sessions.items()
            for found in session.read_all({vim.VirtualMachine: ("name",)})
        }

    def _expected(self) -> set[str]:
        return {f"prod/{name}" for name in self.world.log} | {
            f"dr/{pair.replica_name}" for pair in self.world.catalogue.pairs()
        }

    def _files(self, world: World) -> list[str]:
        """Of the store: tombstones, and what killed writers left under hidden names."""
        root = world.folder / "store"
        hidden = [
            p for p in root.rglob(".*") if p.name != ".exchange" and (p.is_file() or p.name.startswith(".ended-"))
        ]
        tombs = [path for path in (root / "tombs").iterdir() if path.suffix == ".json"]
        return [f"the file {path.relative_to(root)}" for path in (*hidden, *tombs)]

    def _locks(self, name: str) -> list[str]:
        busy = []
        for disk in self.world.replica_disks(name).values():
            file = flat(self.world.dr, disk.parent or disk.file)
            try:
                with FileLock(file).lock(0, 0, wait=0):
                    pass
            except DiskBusy:
                busy.append(f"a lock on {file.name}")
        return busy

    # --- what it holds ------------------------------------------------------------------------------------------

    def verdict(self) -> None:
        world = self.world
        for name, guest in self.place.guests.items():
            self._points(guest)
            invariants.check(world, name)
            cursor = invariants.cursor_of(world, name)
            assert cursor is not None and cursor.state == "committed" and cursor.base is not None, cursor
            found = {key: digest(data) for key, data in world.replica_bytes(name).items()}
            self._is_point(guest, cursor.base, found, f"the replica of {name}")
            sealed = {
                key: digest(flat(world.dr, disk.parent).read_bytes())
                for key, disk in world.replica_disks(name).items()
                if disk.parent is not None
            }
            assert sealed in ({}, found), f"the replica of {name} differs from what is under its seal"
            self.replicas += 1
        self._runs()
        assert not world.store.verify(deep=True)

    def _points(self, guest: Guest) -> None:
        """Each restore point is one state of the guest's disks, of between its request and its end."""
        points = self.world.store.points(guest.uuid)
        assert not [run for run, count in Counter(p.run for p in points).items() if count > 1], "committed twice"
        assert [p.seq for p in points] == sorted({p.seq for p in points})
        for point in points:
            if point.id not in self.moments:
                run = self.world.catalogue.run(point.run)
                found = self._read(point)
                what = f"the restore point {point.id} of {guest.name}"
                before = run.ended or datetime.now(UTC)
                self.moments[point.id] = guest.moment_of(found, what=what, after=run.created, before=before)
                self.points += 1

    def _read(self, point: RestorePoint) -> dict[str, bytes]:
        found = {}
        for part in point.disks:
            reader = self.world.store.reader(point, part.disk.id)
            data = bytearray(reader.size)
            for piece in reader.read([(0, reader.size)]):
                if piece.data is not None:
                    data[piece.offset : piece.offset + piece.length] = piece.data
            reader.close()
            found[part.disk.id] = digest(data)
        return found

    def _is_point(self, guest: Guest, point: str, found: dict[str, bytes], what: str) -> None:
        number = self.moments[point]
        wanted = guest.moments[number].disks
        assert found == wanted, f"{what} is not {point}: {guest._mixture(found, guest.moments)}, not moment {number}"

    def _runs(self) -> None:
        """Each run that ended well has one commit on record, and none is told of another; failures are sentences."""
        world = self.world
        points = world.catalogue.sync_points(limit=100_000)
        assert max(Counter(p.run for p in points).values(), default=0) <= 1, points
        assert max(Counter((p.pair, p.fence) for p in points).values(), default=0) <= 1, points
        self.ledger = {p.run: p.point for p in points}
        self.failed, self.ended = Counter(), Counter()
        for run in world.catalogue.runs(limit=100_000):
            assert not run.live, run
            self.ended[f"{run.kind} {run.state}"] += 1
            if run.state is RunState.FAILED:
                invariants.assert_sentence(run.error)
                assert run.family != "unexpected", run.error
                self.failed[f"{run.kind}: {run.family}"] += 1
            if run.kind is RunKind.SYNC and run.state is RunState.SUCCEEDED:
                assert self.ledger.get(run.id) == run.point, f"{run.id} committed {run.point}, on record otherwise"
