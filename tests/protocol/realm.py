"""A realm small enough to live a hundred times in some seconds: one pair, a source in memory, the content log.

Real are the planner, the flow, the target, the ledger and its SQLite catalogue, the store, the reaper and the file
carrier; on tmpfs all of them together take some 30 ms for a sync, so nothing needs to be imitated for speed. Imitated
is vCenter (vcenter.py), and time: leases end when the test says so.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.paired import PLACES
from tests.protocol.steps import Execution, Steps
from tests.protocol.storage import Unsynced
from tests.protocol.vcenter import MemoryVcenter, Vm
from workers import dispatch, reaper, replicate, settings, spread
from workers.catalogue import Catalogue
from workers.disks.memory import MemoryDisk
from workers.errors import UnderstudyError
from workers.extents import GRANULE, Extents
from workers.models import (
    Controller,
    Cursor,
    Disk,
    PointDisk,
    RestorePoint,
    Run,
    RunKind,
    Trigger,
    VmConfig,
    VmIdentity,
)
from workers.replica import read_cursor
from workers.replica_held import BACK_TO, HeldReplica
from workers.run import Here, give_up
from workers.store import Store
from workers.store.layout import SEGMENT
from workers.undo import SYNC_POINT
from workers.vsphere.building import disk_map

SHM = Path("/dev/shm")
#: of a slice: two granules, so that a disk of some granules has several
SLICE = 2 * GRANULE

CONFIG = f"""{PLACES}
[tuning]
lock_wait = "1s"
retry_pause = "1s"
attempts = 1000
threads = 1
[limits]  # who died holds no place for others: these leases end by a clock that is not the test's
host = 0
datastore = 0
vcenter = 0
[sites.dr.datastores]
ds1 = "ds1"
[targets.recovery]
site = "dr"
datastore = "ds1"
undo = "always"
[groups.all]
source = "prod"
store = "main"
target = "recovery"
vms = ["web"]
keep = {{ last = 50 }}
"""

CONTROLLER = Controller(kind="pvscsi", key=1000, bus=0)


class Ground:
    """What the realms of one test share, one after the other: to make it takes longer than a sync."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="understudy-life-", dir=SHM if SHM.is_dir() else None))
        file = self.folder / "understudy.toml"
        file.write_text(CONFIG)
        conf = settings.load(file)
        self.here = Here(conf, Catalogue.create(conf.catalogue))
        self.count = 0

    def close(self) -> None:
        self.here.catalogue.close()
        shutil.rmtree(self.folder)


class Realm:
    """A pair with a source, a store and a vCenter of its own, and the content log."""

    def __init__(self, ground: Ground, patch: pytest.MonkeyPatch) -> None:
        ground.count += 1
        self.folder, self.here = ground.folder, ground.here
        for name in ("store", "ds1"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "ds1").mkdir()
        conf = self.here.settings
        self.vm = VmIdentity(
            site="prod",
            vcenter="v-prod",
            instance_uuid=f"uuid-web-{ground.count}",
            bios_uuid="b",
            moref="vm-1",
            name="web",
        )
        self.store = Store.create(conf.stores["main"].path)
        self.steps = Steps()
        self.vcenter = MemoryVcenter(self.folder / "ds1", self.steps.alive, conf.sites["dr"])
        self.steps.install(patch)
        self.vcenter.install(patch)
        self.unsynced = Unsynced()
        self.unsynced.install(patch)
        patch.setattr(spread, "slice_bytes", lambda *_, **__: SLICE)
        patch.setattr(HeldReplica, "_wait", lambda _: -1.0)  # who has the lock does not go on while we wait
        self.pair = self.here.catalogue.ensure_pair(
            source_site="prod",
            source=self.vm.instance_uuid,
            vm="web",
            store="main",
            recovery_target="recovery",
            site="dr",
            replica_name="web-replica",
        )
        #: disk id -> content; and the unit where it hangs
        self.source: dict[str, bytearray] = {}
        self._units: dict[str, int] = {}
        self._disks, self._points = itertools.count(1), itertools.count(1)
        #: the content log: restore point -> disk -> bytes
        self.held: dict[str, dict[str, bytes]] = {}
        self.executions: list[Execution] = []
        self.add_disk(6)

    def close(self) -> None:
        for execution in self.alive():
            execution.kill()
        self.let_time_pass()
        if (run := self.live_run()) is not None:
            self.give_up(run)
        self.store.close()

    # --- the source -------------------------------------------------------------------------------------------

    def add_disk(self, granules: int) -> None:
        name = f"disk-{next(self._disks)}"
        self.source[name] = bytearray(granules * GRANULE)
        self._units[name] = next(unit for unit in range(16) if unit != 7 and unit not in self._units.values())

    def remove_disk(self, number: int) -> None:
        name = sorted(self.source)[number % len(self.source)]
        del self.source[name], self._units[name]

    def grow_disk(self, number: int, granules: int) -> None:
        name = sorted(self.source)[number % len(self.source)]
        self.source[name].extend(bytes(granules * GRANULE))

    def write(self, number: int, granule: int, value: int) -> None:
        """One of few values, so that a block comes back to one that it had; 0 is zeroes."""
        disk = self.source[sorted(self.source)[number % len(self.source)]]
        start = granule * GRANULE % len(disk)
        disk[start : start + GRANULE] = content(value)

    def take_back(self) -> None:
        """The disks hold again what they held at the last point but one, as far as they were there."""
        ids = sorted(self.held)
        for name, data in self.held[ids[-2]].items() if len(ids) > 1 else ():
            if name in self.source:
                self.source[name][: len(data)] = data

    def _disk(self, name: str) -> Disk:
        return Disk(
            id=name,
            key=2000 + self._units[name],
            label=f"Hard disk {name[5:]}",
            capacity=len(self.source[name]),
            controller=CONTROLLER.key,
            unit=self._units[name],
            file=f"[ds] web/{name}.vmdk",
        )

    def backup(self) -> str:
        """One restore point, by the real store; the whole disk is compared with the point before."""
        parent = self.store.newest(self.vm.instance_uuid)
        before = {part.disk.id: part for part in parent.disks} if parent is not None else {}
        number = next(self._points)
        with self.store.writer(f"backup-{number}") as writer:
            parts = []
            for name, data in sorted(self.source.items()):
                old = before.get(name)
                made = writer.segment(
                    0,
                    size=len(data),
                    source=MemoryDisk(bytes(data)),
                    candidates=Extents.whole(len(data)),
                    parent=old,
                    threads=1,
                    mode="delta" if old is not None else "full",
                )
                parts.append(
                    PointDisk(
                        disk=self._disk(name), segments=(made.name,), segment_size=SEGMENT, mode="full", reason="a test"
                    )
                )
            moment = datetime.now(UTC)
            point = RestorePoint(
                realm=self.here.catalogue.realm,
                id=f"{number:08d}-{number:08x}",
                seq=number,
                parent=parent.id if parent is not None else None,
                vm=self.vm,
                run=f"backup-{number}",
                fence=1,
                created=moment,
                data_time=moment,
                consistency="powered-off",
                snapshot="snapshot-1",
                config=VmConfig(
                    name="web",
                    guest_id="g",
                    hardware_version="vmx-19",
                    cpus=1,
                    memory_mib=64,
                    controllers=(CONTROLLER,),
                    disks=tuple(part.disk for part in parts),
                ),
                disks=tuple(parts),
            )
            writer.commit(point)
        self.held[point.id] = {name: bytes(data) for name, data in self.source.items()}
        return point.id

    def prune(self, keep: int) -> list[str]:
        """Retention: all but the newest and what is pinned. The ids that are gone."""
        gone = []
        for point in self.store.points(self.vm.instance_uuid)[:-keep]:
            try:
                self.store.retire(self.vm.instance_uuid, point.id)
                gone.append(point.id)
            except UnderstudyError:
                continue  # pinned
        self.store.prune()
        return gone

    # --- runs -------------------------------------------------------------------------------------------------

    def live_run(self) -> Run | None:
        return next((r for r in self.here.catalogue.live_runs() if r.target == replicate.target_of(self.pair.id)), None)

    def request(self, *, discard: bool = False) -> Run:
        return dispatch.request_sync(self.here, self.pair, Trigger.AD_HOC, discard=discard)[0]

    def request_undo(self) -> Run:
        return self.here.catalogue.request_run(
            RunKind.SYNC,
            replicate.target_of(self.pair.id),
            vm="web",
            site="dr",
            trigger=Trigger.AD_HOC,
            pair=self.pair.id,
            memory={BACK_TO: SYNC_POINT},
        )[0]

    def begin(self, run: Run, *, helps: bool = False) -> Execution:
        work = replicate.help_out if helps else replicate.run
        name = f"{'help' if helps else 'lead'} {len(self.executions)} of {run.id[:4]}"
        execution = self.steps.begin(name, lambda: work(self.here, run.id))
        self.executions.append(execution)
        return execution

    def alive(self) -> list[Execution]:
        return [execution for execution in self.executions if not execution.over]

    def let_time_pass(self) -> None:
        """All leases end, all pauses are over, no message is under way any more."""
        given = {"long_ago": "2000-01-01 00:00:00.000000"}
        with self.here.catalogue.write() as conn:
            for change in (
                "update runs set not_before = null, sent = :long_ago where ended is null",
                "update runs set lease_until = :long_ago where lease_until is not null and ended is null",
                "update slices set lease_until = :long_ago where lease_until is not null",
            ):
                conn.execute(sa.text(change), given)

    def reap(self) -> list[Execution]:
        found = reaper.reap(self.here)
        self.here.catalogue.mark_sent(run.id for run in [*found.lost, *(run for run, _ in found.short)])
        begun = [self.begin(run) for run in found.lost]
        return begun + [self.begin(run, helps=True) for run, _ in found.short]

    def give_up(self, run: Run) -> None:
        give_up(self.here, run, "given up by the test")

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def replica(self) -> Vm | None:
        return next(iter(self.vcenter.vms.values()), None)

    def cursor(self) -> Cursor | None:
        vm = self.replica
        return read_cursor(self.vcenter.vm_state(vm.identity.moref)) if vm is not None else None

    def content(self) -> dict[str, bytes]:
        """Source disk id -> what is under the seal of the replica's disk for it."""
        assert self.replica is not None
        disks = disk_map(self.vcenter.vm_state(self.replica.identity.moref))
        return {name: self.vcenter.flat(disk.parent or disk.file).read_bytes() for name, disk in disks.items()}


def content(value: int) -> bytes:
    return random.Random(value).randbytes(GRANULE) if value else bytes(GRANULE)
