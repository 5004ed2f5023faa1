"""One real simulator process for each test module, and the few verbs its tests share."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

REPO = Path(__file__).resolve().parents[2]
MIB = 1 << 20
GRAIN = 64 << 10


class Sim:
    """A running vCenter: its process, a session, and what tests do to it."""

    def __init__(self, binary: Path, folder: Path, *args: str, name: str = "alpha") -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [str(binary), "-dir", str(folder), "-name", name, "-u", "robot:secret",
             "-datastores", "fast,slow", *args],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.address = self.facts["url"].removeprefix("https://").removesuffix("/sdk")
        self.trust = ssl.create_default_context(cafile=self.facts["cert"])
        self.si = self.login()

    def login(self, user: str = "robot", password: str = "secret") -> Any:
        host, port = self.address.split(":")
        return SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=self.trust)

    def stop(self, *, kill: bool = False) -> None:
        if self.process.poll() is None:
            if kill:
                self.process.kill()
            else:
                Disconnect(self.si)
                self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def control(self, **order: Any) -> dict[str, Any]:
        data = json.dumps(order).encode() if order else None
        request = urllib.request.Request(f"https://{self.address}/_ctl", data=data)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.trust)
        )
        try:
            with opener.open(request) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as err:
            raise ValueError(err.read().decode().strip()) from err

    # What a test looks at

    @property
    def content(self) -> Any:
        return self.si.RetrieveContent()

    def all(self, kind: Any) -> dict[str, Any]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        try:
            return {o.name: o for o in view.view}
        finally:
            view.Destroy()

    @property
    def dc(self) -> Any:
        return self.content.rootFolder.childEntity[0]

    @property
    def pool(self) -> Any:
        return self.all(vim.ClusterComputeResource)["cluster1"].resourcePool

    def read(self, obj: Any, *paths: str) -> dict[str, Any]:
        """Leaf properties by the collector: the only reading that works for tasks on every version."""
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=obj)],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=type(obj), pathSet=list(paths))],
        )
        result = self.content.propertyCollector.RetrievePropertiesEx(
            [spec], vmodl.query.PropertyCollector.RetrieveOptions()
        )
        return {p.name: p.val for p in result.objects[0].propSet}

    def wait(self, task: Any, *, seconds: float = 20) -> Any:
        """The result of a task, or its fault raised."""
        limit = time.monotonic() + seconds
        while True:
            got = self.read(task, "info.state", "info.error", "info.result")
            if got["info.state"] == "success":
                return got.get("info.result")
            if got["info.state"] == "error":
                raise got["info.error"]
            assert time.monotonic() < limit, f"{task} did not end in {seconds} s"
            time.sleep(0.005)

    # What a test does

    def create(self, name: str, *, sizes: tuple[int, ...] = (4 * MIB,), cbt: bool = False, **spec: Any) -> Any:
        changes = [add(vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing"))]
        changes += [add(new_disk(size, unit=n), file="create") for n, size in enumerate(sizes)]
        config = {
            "name": name, "guestId": "otherGuest64", "numCPUs": 1, "memoryMB": 64,
            "files": vim.vm.FileInfo(vmPathName="[fast]"), "changeTrackingEnabled": cbt, "deviceChange": changes,
        } | spec  # fmt: skip
        return self.wait(self.dc.vmFolder.CreateVM_Task(vim.vm.ConfigSpec(**config), self.pool))

    def reconfigure(self, vm: Any, **spec: Any) -> None:
        self.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(**spec)))

    def snapshot(self, vm: Any, name: str, **more: Any) -> Any:
        return self.wait(vm.CreateSnapshot_Task(name, more.get("description", ""), more.get("memory", False), False))

    def path(self, disk_or_name: Any) -> Path:
        """The flat file of a disk."""
        name = disk_or_name if isinstance(disk_or_name, str) else disk_or_name.backing.fileName
        return self.descriptor(name).with_name(self.descriptor(name).stem + "-flat.vmdk")

    def descriptor(self, disk_or_name: Any) -> Path:
        name = disk_or_name if isinstance(disk_or_name, str) else disk_or_name.backing.fileName
        datastore, path = name[1:].split("] ", 1)
        return self.folder / datastore / path

    def write(self, vm: Any, offset: int, data: bytes, *, disk: int = 0) -> None:
        """As a raw writer would: behind vCenter's back."""
        with self.path(disks(vm)[disk]).open("r+b") as f:
            f.seek(offset)
            f.write(data)

    def bytes(self, vm: Any, disk: int = 0) -> bytes:
        return self.path(disks(vm)[disk]).read_bytes()

    def areas(self, vm: Any, snapshot: Any, change_id: str, disk: int = 0) -> list[tuple[int, int]]:
        device = disks(snapshot)[disk]
        found: list[tuple[int, int]] = []
        offset = 0
        while offset < device.capacityInBytes:
            answer = vm.QueryChangedDiskAreas(snapshot, device.key, offset, change_id)
            found += [(a.start, a.length) for a in answer.changedArea]
            offset = answer.startOffset + answer.length
        return found


def disks(owner: Any) -> list[Any]:
    return [d for d in owner.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def add(device: Any, *, file: str | None = None) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation=file, device=device)


def edit(device: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="edit", device=device)


def remove(device: Any, *, destroy: bool = False) -> Any:
    return vim.vm.device.VirtualDeviceSpec(
        operation="remove", fileOperation="destroy" if destroy else None, device=device
    )


def new_disk(
    size: int, *, unit: int, controller: int = -1, mode: str = "persistent", thin: bool = True, file: str = ""
) -> Any:
    return vim.vm.device.VirtualDisk(
        key=-10 - unit, controllerKey=controller, unitNumber=unit, capacityInKB=size // 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode=mode, thinProvisioned=thin),
    )  # fmt: skip


def change_id(snapshot: Any, disk: int = 0) -> str | None:
    value: str | None = disks(snapshot)[disk].backing.changeId
    return value


def extra(vm: Any) -> dict[str, Any]:
    return {o.key: o.value for o in vm.config.extraConfig}


@pytest.fixture(scope="session")
def binary() -> Path:
    if shutil.which("go") is None or not Path("/usr/share/gocode/src/github.com/vmware/govmomi").is_dir():
        pytest.skip("the simulator needs the packages golang-go and golang-github-vmware-govmomi-dev")
    out = REPO / ".build" / "vcenter-sim"
    subprocess.run([REPO / "deploy" / "simulator" / "build.sh", out], check=True)
    return out


@pytest.fixture(scope="module")
def sim(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    running = Sim(binary, tmp_path_factory.mktemp("vcenter"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def fresh_rules(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sim" in request.fixturenames:
        request.getfixturevalue("sim").control(clear=True, maxAreas=2000, overReport=10)


@pytest.fixture
def start(binary: Path, tmp_path: Path) -> Iterator[Callable[..., Sim]]:
    """Start further simulators in one test; they end with it."""
    running: list[Sim] = []

    def run(*args: str, folder: Path | None = None, name: str = "beta") -> Sim:
        running.append(Sim(binary, folder or tmp_path / "vcenter", *args, name=name))
        return running[-1]

    yield run
    for one in running:
        one.stop()
