"""Two vCenters, a store, a catalogue, and a log of what each disk held: the judge of every replica's bytes.

Nothing here is mocked: the vCenters are simulator processes, the disks are files, and a run that has to be killed is a
process of its own. Only Celery is left out; `tests/integration/test_celery.py` has that.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pyVmomi import vim

from tests.integration.child import Forked, work
from tests.integration.vcenter import PASSWORD, ROOT, USER, Vcenter
from workers import backup, dispatch, replicate
from workers.catalogue import Catalogue
from workers.models import Cursor, Disk, Pair, Run, RunReport, SyncPlan, Trigger, VmState
from workers.replica import CURSOR
from workers.run import Here, give_up
from workers.settings import Settings, load
from workers.store import Store
from workers.vsphere import building, inventory
from workers.vsphere.session import Session, connect

MIB = 1 << 20


class World:
    """One realm over two vCenters."""

    def __init__(self, folder: Path, prod: Vcenter, dr: Vcenter, **settings: Any) -> None:
        self.folder = folder
        self.prod, self.dr = prod, dr
        secret = folder / "password"
        secret.write_text(PASSWORD + "\n")
        folder.joinpath("understudy.toml").write_text(self._toml(secret, settings))
        self.config = folder / "understudy.toml"
        self.settings: Settings = load(self.config)
        self.catalogue = Catalogue.create(self.settings.catalogue)
        self.store = Store.make(self.settings.stores["main"])
        self.here = Here(self.settings, self.catalogue)
        #: VM name -> disk id -> what the guest has written
        self.log: dict[str, dict[str, bytearray]] = {}
        #: restore point id -> disk id -> what the disk held at its snapshot
        self.held: dict[str, dict[str, bytes]] = {}

    def _toml(self, secret: Path, changes: dict[str, Any]) -> str:
        tuning = {"retry_pause": "1s", "lock_wait": "2s", "lease": "5s", "attempts": 3, **changes.get("tuning", {})}
        lines = [
            f'redis = "{changes.get("redis", "redis://127.0.0.1:1/0")}"',
            f'catalogue = "{changes.get("catalogue", "sqlite:///catalogue.db")}"',
            "[tuning]",
            *(f"{key} = {json.dumps(value)}" for key, value in tuning.items()),
        ]
        for vcenter in (self.prod, self.dr):
            lines += [
                f"[sites.{vcenter.name}]",
                f'vcenter = "{vcenter.url}"',
                f'user = "{USER}"',
                f'password_file = "{secret}"',
                f'ca_file = "{vcenter.certificate}"',
                *(f'worker_rate = "{rate}"' for site, rate in changes.get("rates", {}).items() if site == vcenter.name),
                *changes.get("sites", {}).get(vcenter.name, ()),
                f"[sites.{vcenter.name}.datastores]",
                *(f'{ds} = "{vcenter.datastores / ds}"' for ds in changes.get("mounted", ("ds1", "ds2"))),
            ]
        lines += [
            "[stores.main]",
            changes.get("place", 'path = "store"'),
            f"scrub = {changes.get('scrub', 0)}",
            *changes.get("store", ()),
            '[targets.recovery]\nsite = "dr"\ndatastore = "ds1"\nnetworks = { "*" = "DR Network" }',
            f'[groups.all]\nsource = "prod"\nstore = "main"\ntarget = {json.dumps(changes.get("target", "recovery"))}',
            changes.get("who") or f"vms = {json.dumps(changes.get('vms', ['*']))}",
            f"keep = {changes.get('keep', '{ last = 50 }')}",
            f"scrub = {changes.get('scrub', 0)}",  # what is due must not depend on the time of day
            *changes.get("group", ()),
            *changes.get("more", ()),
        ]
        return "\n".join(lines) + "\n"

    # --- source VMs -------------------------------------------------------------------------------------------

    @property
    def source(self) -> Session:
        return connect("prod", self.settings.sites["prod"])

    @property
    def target(self) -> Session:
        return connect("dr", self.settings.sites["dr"])

    def make_vm(self, name: str, *sizes: int, powered_on: bool = True, **config: Any) -> None:
        """A source VM with disks of so many bytes, known to the inventory."""
        devices = [
            vim.vm.device.VirtualDeviceSpec(
                operation="add",
                device=vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing"),
            ),
            *(self._new_disk(-1, number, size, -10 - number) for number, size in enumerate(sizes)),
        ]
        spec = vim.vm.ConfigSpec(
            name=name,
            guestId="debian10_64Guest",
            numCPUs=2,
            memoryMB=512,
            version="vmx-19",
            files=vim.vm.FileInfo(vmPathName="[ds1]"),
            deviceChange=devices,
            **config,
        )
        s = self.source
        centers = s.read_all({vim.Datacenter: ("vmFolder",), vim.ResourcePool: ("name",)})
        folder = next(f.values["vmFolder"] for f in centers if isinstance(f.ref, vim.Datacenter))
        pool = next(f.ref for f in centers if isinstance(f.ref, vim.ResourcePool))
        vm = s.wait(folder.CreateVM_Task(spec, pool))
        if powered_on:
            s.wait(vm.PowerOnVM_Task())
        self.log[name] = {}
        self._learn_disks(name)
        self.discover()

    @staticmethod
    def _new_disk(controller: int, unit: int, size: int, key: int) -> Any:
        return vim.vm.device.VirtualDeviceSpec(
            operation="add",
            fileOperation="create",
            device=vim.vm.device.VirtualDisk(
                key=key,
                controllerKey=controller,
                unitNumber=unit,
                capacityInKB=size // 1024,
                backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                    fileName="", diskMode="persistent", thinProvisioned=True
                ),
            ),
        )

    def discover(self) -> None:
        dispatch.discover(self.here, "prod")

    def state(self, name: str, site: str = "prod") -> VmState:
        s = self.source if site == "prod" else self.target
        return inventory.vm_state(s, inventory.find_vm(s, name).identity.moref)

    def vm(self, name: str, site: str = "prod") -> Any:
        s = self.source if site == "prod" else self.target
        return s.vm(self.state(name, site).identity.moref)

    def disks(self, name: str) -> list[Disk]:
        return sorted(self.state(name).config.disks, key=lambda d: d.key)

    def _learn_disks(self, name: str) -> None:
        here = {d.id: d for d in self.disks(name)}
        for gone in set(self.log[name]) - set(here):
            del self.log[name][gone]
        for key, disk in here.items():
            log = self.log[name].setdefault(key, bytearray(disk.capacity))
            log.extend(bytes(disk.capacity - len(log)))

    def write(self, name: str, offset: int, data: bytes, disk: int = 0) -> None:
        """As the guest: to the disk's live file, and into the log."""
        self._put(name, self.disks(name)[disk], offset, data)

    def _put(self, name: str, disk: Disk, offset: int, data: bytes) -> None:
        with open(flat(self.prod, disk.file), "r+b") as file:
            file.seek(offset)
            file.write(data)
        self.log[name][disk.id][offset : offset + len(data)] = data

    def scribble(self, name: str, seed: int, *, count: int = 5, longest: int = 200_000, busy: bool = False) -> None:
        """Random writes on every disk, some of zeroes. Of a VM that is busy, a snapshot may come and go meanwhile, so
        that the vCenter has to say which file is the live one; that is slower."""
        put = self._put_through_vcenter if busy else self._put
        rng = random.Random(seed)
        for disk in self.disks(name):
            for _ in range(count):
                length = rng.randrange(1, min(longest, disk.capacity))
                data = bytes(length) if rng.random() < 0.2 else rng.randbytes(length)
                put(name, disk, rng.randrange(0, disk.capacity - length), data)

    def _put_through_vcenter(self, name: str, disk: Disk, offset: int, data: bytes) -> None:
        number = [d.id for d in self.disks(name)].index(disk.id)
        order = {"VM": name, "Disk": number, "Offset": offset, "Hex": data.hex(), "Force": True}
        self.prod.control(guestWrite=order)
        self.log[name][disk.id][offset : offset + len(data)] = data

    def add_disk(self, name: str, size: int) -> None:
        state = self.state(name)
        used = {d.unit for d in state.config.disks}
        unit = next(u for u in range(16) if u not in used and u != 7)
        change = self._new_disk(state.config.controllers[0].key, unit, size, -1)
        self._reconfigure(name, change)

    def remove_disk(self, name: str, number: int) -> None:
        self._edit(name, number, "remove", "destroy")

    def grow_disk(self, name: str, number: int, size: int) -> None:
        self._edit(name, number, "edit", None, size)

    def _edit(self, name: str, number: int, operation: str, files: str | None, size: int | None = None) -> None:
        key = self.disks(name)[number].key
        device = next(d for d in self.vm(name).config.hardware.device if d.key == key)
        if size is not None:
            device.capacityInKB, device.capacityInBytes = size // 1024, size
        self._reconfigure(
            name, vim.vm.device.VirtualDeviceSpec(operation=operation, fileOperation=files, device=device)
        )

    def _reconfigure(self, name: str, change: Any) -> None:
        self.source.wait(self.vm(name).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
        self._learn_disks(name)

    # --- runs -------------------------------------------------------------------------------------------------

    def request_backup(self, name: str) -> Run:
        (member,) = dispatch.find(self.here, name)
        return dispatch.request_backup(self.here, member, Trigger.AD_HOC)[0]

    def request_sync(self, name: str, *, discard: bool = False) -> Run:
        return dispatch.request_sync(self.here, self.pair(name), Trigger.AD_HOC, discard=discard)[0]

    def backup(self, name: str) -> RunReport:
        """Back up; what the disks held is kept in the log under the new point's id."""
        report = backup.run(self.here, self.request_backup(name).id)
        self.keep(name, report)
        return report

    def keep(self, name: str, report: RunReport) -> None:
        if report.point is not None:
            self.held[report.point] = {key: bytes(data) for key, data in self.log[name].items()}

    def sync(self, name: str, *, discard: bool = False) -> RunReport:
        return replicate.run(self.here, self.request_sync(name, discard=discard).id)

    def pair(self, name: str) -> Pair:
        (member,) = dispatch.find(self.here, name)
        pair = dispatch.pair_of(self.here, member)
        assert pair is not None
        return pair

    def plan(self, name: str) -> SyncPlan:
        return replicate.preview(self.here, self.pair(name))

    def in_child(self, run: Run, fault: str = "") -> subprocess.Popen[bytes]:
        """The run's work in a process of its own, which may be told to die at a step."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.child", str(self.config), run.id],
            cwd=ROOT,
            env={**os.environ, "UNDERSTUDY_FAULT": fault, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def killed_at(self, run: Run, step: str, here: Here | None = None) -> None:
        """Do the run's work up to a step and die there (SIGKILL). Fails when the step is not reached."""
        log = self.folder / "forked.log"
        child = Forked(lambda: work(here or self.here, run.id), log, doomed=lambda label: label == step)
        assert child.wait(120) == -9 and child.hit == step, f"the step {step} was not reached: {child.said[-3000:]}"
        self.expire_lease(run)

    def expire_lease(self, run: Run) -> None:
        """What the passing of time does to a dead worker's leases, of the run and of its slices."""
        given = {"long_ago": "2000-01-01 00:00:00.000000", "id": run.id}
        with self.catalogue.write() as conn:
            for change in (
                "update runs set not_before = null where id = :id",
                "update runs set lease_until = :long_ago where id = :id and lease_until is not null",
                "update slices set lease_until = :long_ago where run = :id and lease_until is not null",
            ):
                conn.execute(sa.text(change), given)

    def give_up(self, run_id: str) -> None:
        """A person or the reaper ends a dead run, so that the next one is a new run with a new fence."""
        give_up(self.here, self.catalogue.run(run_id), "given up by the test")

    # --- judging ----------------------------------------------------------------------------------------------

    def cursor(self, name: str) -> Cursor:
        return Cursor.model_validate_json(self.state(self.pair(name).replica_name, "dr").notes[CURSOR])

    def replica_disks(self, name: str) -> dict[str, Disk]:
        """Source disk id -> the replica's disk, with the file that holds its bytes now."""
        return building.disk_map(self.state(self.pair(name).replica_name, "dr"))

    def replica_bytes(self, name: str) -> dict[str, bytes]:
        return {key: flat(self.dr, disk.file).read_bytes() for key, disk in self.replica_disks(name).items()}

    def assert_replica_is(self, name: str, point: str) -> None:
        """Byte for byte what the log says the source held at this point, on every disk, also under the seal."""
        found = self.replica_bytes(name)
        wanted = self.held[point]
        assert found.keys() == wanted.keys()
        for key, data in wanted.items():
            assert len(found[key]) == len(data), key
            assert first_difference(found[key], data) is None, (key, first_difference(found[key], data))
        for key, disk in self.replica_disks(name).items():
            if disk.parent is not None:
                assert flat(self.dr, disk.parent).read_bytes() == wanted[key]

    def assert_point_is_readable(self, name: str, point: str) -> None:
        uuid = self.state(name).identity.instance_uuid
        found = self.store.point(uuid, point)
        for part in found.disks:
            reader = self.store.reader(found, part.disk.id)
            data = bytearray(reader.size)
            for offset in range(0, reader.size, 8 * MIB):
                for piece in reader.read([(offset, min(8 * MIB, reader.size - offset))]):
                    if piece.data is not None:
                        data[piece.offset : piece.offset + piece.length] = piece.data
            reader.close()
            assert data == self.held[point][part.disk.id], part.disk.id


def flat(vcenter: Vcenter, file: str) -> Path:
    datastore, _, relative = file.removeprefix("[").partition("] ")
    return vcenter.datastores / datastore / relative.replace(".vmdk", "-flat.vmdk")


def first_difference(a: bytes, b: bytes) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@contextmanager
def two_vcenters(folder: Path) -> Iterator[tuple[Vcenter, Vcenter]]:
    prod = Vcenter(folder, "prod")
    try:
        dr = Vcenter(folder, "dr")
        try:
            yield prod, dr
        finally:
            dr.stop()
    finally:
        prod.stop()
