"""The small company of deploy/examples: its two vCenters with sixty VMs, and what each of their disks held and when.

The configuration is the example itself, copied; only addresses, mounts and the clock's times are replaced.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pyVmomi import vim

from tests.integration.world import MIB, PASSWORD, ROOT, Vcenter, flat
from tests.vsphere.tagging import Tagging
from workers import settings
from workers.catalogue import Catalogue
from workers.models import VmState
from workers.run import Here
from workers.settings import Settings
from workers.vsphere import inventory
from workers.vsphere.session import Session, connect

EXAMPLE = ROOT / "deploy" / "examples" / "small-company"
#: as the example has it: not part of what is replaced
LOGIN = "understudy@vsphere.local"


#: networks of both vCenters, by what the example names
NETWORKS = {"office": "Servers,DMZ,Terminals", "colo": "DR Servers,DR DMZ,Isolated"}
#: what a test does not wait for: nothing here is about when something happens
TUNING = """[tuning]
dispatch_every = "2s"
reap_every = "3s"
inventory_every = "4s"
lease = "10s"
retry_pause = "1s"
lock_wait = "2s"
attempts = 3
"""
#: schedule of the example -> the place of the changing cron line that stands for it
SCHEDULES = {
    "1-tier-1.toml": ('backup = { every = "10m" }',),
    "2-databases.toml": ('backup = { every = "1h" }',),
    "3-file-servers.toml": (
        'backup = { cron = "0 20 * * 1-6", timezone = "Europe/Berlin" }',
        'schedule = { cron = "30 23 * * 1-6", timezone = "Europe/Berlin" }',
    ),
    "4-everything-else.toml": ('backup = { cron = "0 22 * * *", timezone = "Europe/Berlin", jitter = "1h" }',),
}


class Machine(NamedTuple):
    """A VM of the office. `disks`: the datastore of each; all are of one size."""

    name: str
    folder: str = "Servers"
    tags: tuple[str, ...] = ()
    disks: tuple[str, ...] = ("office-fast",)
    networks: tuple[str, ...] = ("Servers",)
    on: bool = True
    template: bool = False
    #: whether its changes were tracked before anybody heard of Understudy
    tracked: bool = True


TIER_1, DATABASE, NONE = "protection:tier-1", "protection:database", "protection:none"
BULK, SIZE, GRANULE = "office-bulk", MIB, 4096


def machines() -> list[Machine]:
    tier_1 = [
        Machine("erp-app", disks=("office-fast", BULK), tags=(TIER_1, "backup:old")),
        Machine("shop-web", networks=("DMZ", "Terminals"), tags=(TIER_1,)),
        *(Machine(name, tags=(TIER_1,)) for name in ("shop-api", "mail-01", "dc-01", "dc-02")),
    ]
    databases = [
        Machine("sql-erp", "Databases", tags=(TIER_1,)),  # in two groups
        Machine("sql-warehouse", "Databases", disks=("office-fast", BULK)),
        *(Machine(name, "Databases/Finance") for name in ("sql-ledger", "sql-payroll")),
        Machine("pg-01", "Databases"),
        Machine("ora-legacy", tags=(DATABASE,)),
    ]
    files = [Machine(f"fs-{name}", disks=(BULK,)) for name in ("users", "projects", "archive")]
    others = [
        *(Machine(f"app-{number:02}") for number in range(1, 10)),
        *(Machine(name) for name in ("print-01", "wiki", "ci-01")),
        Machine("app-old", on=False, tracked=False),
        Machine("kiosk-01", networks=(), tracked=False),
        Machine("golden-debian", "Templates", on=False, template=True),
    ]
    left_out = [
        *(Machine(f"test-{number}") for number in range(1, 7)),
        *(Machine(f"tmp-{name}") for name in ("import", "export")),
        *(Machine(f"lab-{number:02}", "Lab/Students", on=False) for number in range(1, 21)),
        Machine("scratch", tags=(NONE,)),
        Machine("sql-copy", "Databases/Scratch", tags=(NONE,)),
    ]
    return [*tier_1, *databases, *files, *others, *left_out]


class Company:
    """Two vCenters, the company's VMs, and the example's folder with their addresses in it."""

    def __init__(self, folder: Path, *, redis: str, catalogue: str) -> None:
        self.folder = folder
        self.config = folder / "understudy.d"
        self.sites = {site: self._vcenter(site) for site in ("office", "colo")}
        self._began = datetime.now(UTC)
        self._copy({"redis": redis, "catalogue": catalogue, "flower": PASSWORD, "office": PASSWORD, "colo": PASSWORD})
        self.settings: Settings = settings.load(self.config)
        #: VM -> disk id -> what is on it now
        self.log: dict[str, dict[str, bytearray]] = {}
        #: VM -> how many bytes at most its last writing has changed, in whole granules
        self.written: dict[str, int] = {}
        #: per round, the same as it was when that round began
        self.rounds: list[dict[str, dict[str, bytes]]] = []
        #: VM -> instance UUID
        self.uuids: dict[str, str] = {}
        self.here: Here | None = None
        self.tagging = Tagging(self.sites["office"].url, f"{LOGIN}:{PASSWORD}")

    def stop(self) -> None:
        if self.here is not None:
            self.here.catalogue.close()
        for vcenter in self.sites.values():
            vcenter.stop()

    def _vcenter(self, site: str) -> Vcenter:
        return Vcenter(
            self.folder,
            site,
            user=LOGIN,
            center=site.capitalize(),
            datastores=f"{site}-fast,{site}-bulk",
            networks=NETWORKS[site],
        )

    # --- the configuration ------------------------------------------------------------------------------------

    def _copy(self, secrets: Mapping[str, str]) -> None:
        shutil.copytree(EXAMPLE, self.config)
        for name, secret in secrets.items():
            (self.config / "secrets").mkdir(exist_ok=True)
            (self.config / "secrets" / name).write_text(secret + "\n")
            (self.config / "secrets" / name).chmod(0o600)
        (self.config / "ca").mkdir()
        (self.config / "tuning.toml").write_text(TUNING)
        for site, vcenter in self.sites.items():
            shutil.copy(vcenter.certificate, self.config / "ca" / f"{site}.pem")
            self.replace("places.toml", f'vcenter = "vcenter.{site}.example.com"', f'vcenter = "{vcenter.url}"')
            for datastore in (f"{site}-fast", f"{site}-bulk"):
                mount = vcenter.datastores / datastore
                self.replace("places.toml", f'"/mnt/datastores/{datastore}"', f'"{mount}"')
        for store in ("main", "files"):
            self.replace("places.toml", f'"/srv/understudy/{store}"', f'"{self.folder / store}"')
        for file, schedules in SCHEDULES.items():
            for schedule in schedules:
                self.replace(file, schedule, self.due(schedule, 1))

    def open(self) -> None:
        """After `understudy init`."""
        self.catalogue = Catalogue.open(self.settings.catalogue)
        self.here = Here(self.settings, self.catalogue)

    def due(self, schedule: str, nth: int) -> str:
        """Instead of the example's schedule: its `nth` time has come, and the next will not within a year."""
        moment = self._began - timedelta(minutes=10 - nth)
        key = schedule.partition(" = ")[0]
        return f'{key} = {{ cron = "{moment:%-M %-H %-d %-m} *", jitter = "none" }}'

    def replace(self, name: str, old: str, new: str) -> None:
        """In one file, in which it is exactly once."""
        file = self.config / name
        text = file.read_text()
        assert text.count(old) == 1, (name, old)
        file.write_text(text.replace(old, new))

    def come_due(self, name: str, schedule: str, nth: int) -> None:
        """While everything runs: what the `schedule` of this file stands for is due for the `nth` time."""
        self.replace(name, self.due(schedule, nth - 1), self.due(schedule, nth))
        then = time.time() - 60  # as if it had been left alone for a while
        os.utime(self.config / name, (then, then))

    # --- the vCenters -----------------------------------------------------------------------------------------

    def session(self, site: str) -> Session:
        return connect(site, self.settings.sites[site])

    def build(self, machines: Iterable[Machine]) -> None:
        """Both vCenters as the example's comments say that they are, and the office's VMs."""
        there = self.session("colo")
        self._folders(there, "Replicas/Standby/ERP", "Replicas/Shelf")
        self._pool(there, "Replicas")
        s = self.session("office")
        machines = list(machines)
        folders = self._folders(s, *{machine.folder for machine in machines})
        pool = self._cluster(s)["resourcePool"]
        tasks = [(machine, folders[machine.folder].CreateVM_Task(_spec(machine), pool)) for machine in machines]
        for number, (machine, task) in enumerate(tasks):
            self._furnish(s, machine, s.wait(task), number)

    def _furnish(self, s: Session, machine: Machine, vm: Any, seed: int) -> None:
        state = inventory.vm_state(s, vm._GetMoId())
        self.uuids[machine.name] = state.identity.instance_uuid
        self.log[machine.name] = {disk.id: bytearray(disk.capacity) for disk in state.config.disks}
        self.scribble(machine.name, seed, state)
        if machine.on:
            s.wait(vm.PowerOnVM_Task())
        if machine.template:
            vm.MarkAsTemplate()
        for tag in machine.tags:
            self.tagging.attach(tag, state.identity.moref)

    def tag(self, tag: str, name: str) -> None:
        self.tagging.attach(tag, self.state(name).identity.moref)

    def untag(self, tag: str, name: str) -> None:
        self.tagging.detach(tag, self.state(name).identity.moref)

    def scribble(self, name: str, seed: int, state: VmState | None = None) -> None:
        """Write on every disk of a VM, as its guest would."""
        rng = random.Random(seed)
        state = state or self.state(name)
        count = 0
        for disk in state.config.disks:
            for _ in range(3):
                data = rng.randbytes(rng.randrange(1, 100_000))
                offset = rng.randrange(0, disk.capacity - len(data))
                with open(flat(self.sites["office"], disk.file), "r+b") as file:
                    file.seek(offset)
                    file.write(data)
                self.log[name][disk.id][offset : offset + len(data)] = data
                count += len(data) + 2 * GRANULE
        self.written[name] = count

    def state(self, name: str) -> VmState:
        """Of a VM of the office."""
        s = self.session("office")
        found = inventory.find_uuid(s, self.uuids[name])
        assert found is not None
        return inventory.vm_state(s, found.identity.moref)

    def begin_round(self) -> None:
        """What the disks hold now is what the next backups hold."""
        self.rounds.append({vm: {disk: bytes(data) for disk, data in disks.items()} for vm, disks in self.log.items()})

    def _folders(self, s: Session, *paths: str) -> dict[str, Any]:
        (center,) = s.read_all({vim.Datacenter: ("vmFolder",)})
        made = {"": center.values["vmFolder"]}
        for path in paths:
            names = path.split("/")
            for end in range(len(names)):
                above, whole = "/".join(names[:end]), "/".join(names[: end + 1])
                if whole not in made:
                    made[whole] = made[above].CreateFolder(names[end])
        return made

    def _cluster(self, s: Session) -> dict[str, Any]:
        (cluster,) = s.read_all({vim.ClusterComputeResource: ("resourcePool",)})
        return cluster.values

    def _pool(self, s: Session, name: str) -> None:
        shares = vim.SharesInfo(level="normal", shares=1)
        limits = vim.ResourceAllocationInfo(reservation=0, limit=-1, expandableReservation=True, shares=shares)
        spec = vim.ResourceConfigSpec(cpuAllocation=limits, memoryAllocation=limits)
        self._cluster(s)["resourcePool"].CreateResourcePool(name, spec)


def _spec(machine: Machine) -> Any:
    device = vim.vm.device
    controller = device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    made = [device.VirtualDeviceSpec(operation="add", device=controller)]
    for number, datastore in enumerate(machine.disks):
        backing = device.VirtualDisk.FlatVer2BackingInfo(
            fileName="" if number == 0 else f"[{datastore}]", diskMode="persistent", thinProvisioned=True
        )
        disk = device.VirtualDisk(
            key=-10 - number, controllerKey=-1, unitNumber=number, capacityInKB=SIZE // 1024, backing=backing
        )
        made.append(device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
    for number, network in enumerate(machine.networks):
        backing = device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network)
        card = device.VirtualVmxnet3(key=-20 - number, backing=backing, addressType="generated")
        made.append(device.VirtualDeviceSpec(operation="add", device=card))
    return vim.vm.ConfigSpec(
        name=machine.name,
        guestId="debian10_64Guest",
        numCPUs=2,
        memoryMB=512,
        version="vmx-19",
        files=vim.vm.FileInfo(vmPathName=f"[{machine.disks[0]}]"),
        deviceChange=made,
        changeTrackingEnabled=machine.tracked,
    )


@contextmanager
def company(folder: Path, *, redis: str, catalogue: str) -> Iterator[Company]:
    made = Company(folder, redis=redis, catalogue=catalogue)
    try:
        yield made
    finally:
        made.stop()
