"""A vCenter of one's own: the simulator as a real process, and a control over what goes wrong in it."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vmodl

from workers.models import Controller, Disk, Nic, VmConfig
from workers.settings import Site
from workers.vsphere import building, replica
from workers.vsphere.session import Session

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "pa55-w0rd-of-the-tests"
MIB = 1 << 20


class Simulator:
    def __init__(self, binary: Path, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [
                binary,
                *("-u", f"user:{PASSWORD}", "-dir", folder / "datastores", "-datastores", "ds1,ds2"),
                *("-cert", folder / "cert.pem", "-key", folder / "key.pem"),
                *flags,
            ],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.about = json.loads(self.process.stdout.readline())
        tls = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        ).open

    @property
    def address(self) -> str:
        return str(self.about["url"])

    def control(self, **order: Any) -> dict[str, Any]:
        data = json.dumps(order).encode() if order else None
        with self._open(urllib.request.Request(self.about["control"], data)) as answer:
            return dict(json.load(answer))

    def rule(self, method: str, **rule: Any) -> None:
        self.control(Rules=[{"Method": method, "Count": 1, **rule}])

    def calls(self) -> dict[str, int]:
        return dict(self.control()["calls"])

    def file(self, path: str) -> Path:
        """'[ds1] vm/x.vmdk' as a file of this machine."""
        datastore, _, relative = path[1:].partition("] ")
        return Path(self.about["datastores"][datastore]) / relative

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def binary() -> Path:
    out = ROOT / ".build" / "vcenter-sim"
    subprocess.run([ROOT / "deploy/simulator/build.sh", out], check=True)
    return out


@pytest.fixture(scope="module")
def simulator(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(binary, tmp_path_factory.mktemp("vcenter"))
    yield simulator
    simulator.stop()


@pytest.fixture(autouse=True)
def _nothing_planned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TEST_VCENTER_PASSWORD", PASSWORD)
    yield
    if "simulator" in request.fixturenames:
        request.getfixturevalue("simulator").control(Clear=True, MaxAreas=2000, OverReport=10)


def site_of(simulator: Simulator, **how: Any) -> Site:
    trust = {} if {"thumbprint", "insecure", "ca_file"} & how.keys() else {"ca_file": simulator.folder / "cert.pem"}
    settings = {"user": "user", "password_env": "TEST_VCENTER_PASSWORD", **trust, **how}
    return Site(vcenter=simulator.address, **settings)


@pytest.fixture
def session(simulator: Simulator) -> Iterator[Session]:
    with Session("prod", site_of(simulator)) as s:
        yield s


def config(*capacities: int, networks: tuple[str, ...] = ("VM Network",), **more: Any) -> VmConfig:
    """A VM's configuration as read from some source: one pvscsi controller, disks of these capacities."""
    return VmConfig(
        name="source",
        guest_id="otherGuest64",
        hardware_version="vmx-13",
        cpus=2,
        memory_mib=256,
        controllers=(Controller(kind="pvscsi", key=1000, bus=0),),
        disks=tuple(
            Disk(
                id=f"6000c29{number}-0000-0000-0000-00000000000{number}",
                key=2000 + number,
                label=f"Hard disk {number + 1}",
                capacity=capacity,
                controller=1000,
                unit=number,
                file=f"[src] source/source_{number}.vmdk",
            )
            for number, capacity in enumerate(capacities)
        ),
        nics=tuple(
            Nic(kind="vmxnet3", key=4000 + n, network=name, mac=f"00:50:56:01:02:0{n}")
            for n, name in enumerate(networks)
        ),
    ).model_copy(update=more)


def spec(name: str, *capacities: int, **more: Any) -> building.ReplicaSpec:
    of = more.pop("config", None) or config(*(capacities or (4 * MIB,)))
    return building.ReplicaSpec(name=name, mark="realm-1/pair-1", config=of, **{"datastore": "ds1", **more})


@pytest.fixture
def make_vm(session: Session) -> Iterator[Any]:
    """Builds VMs and removes them at the end of the test; give it a name and capacities."""
    made: list[str] = []

    def make(name: str, *capacities: int, **more: Any) -> str:
        made.append(replica.create(session, spec(name, *capacities, **more)).moref)
        return made[-1]

    yield make
    for moref in made:
        vm = session.vm(moref)
        try:
            if str(session.read(vm, "runtime.powerState")["runtime.powerState"]) == "poweredOn":
                session.wait(vm.PowerOffVM_Task())
            session.wait(vm.Destroy_Task())
        except vmodl.fault.ManagedObjectNotFound:
            continue  # the test removed it


def until(what: Any, seconds: float = 10) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
