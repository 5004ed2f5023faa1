"""The main job, told step by step: VMs with real file systems go from one vCenter to another, and stay in sync.

Everything is done by what an operator has: Beat, Redis, the workers and the command `understudy`. The demo itself only
plays the guests (it writes to their disks) and the sceptic (it compares every byte at the end).
"""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console

from tasks.lab import guest, lifecycle, vcenter
from tasks.lab.configuration import USER
from tasks.lab.processes import LabError
from workers.catalogue import Catalogue
from workers.disks.file import FileReader, datastore_file
from workers.models import Disk, RunKind, RunState, SyncPoint, Trigger, VmState
from workers.point import Piece
from workers.settings import Settings, load
from workers.transfer import differing
from workers.vsphere.building import disk_map
from workers.vsphere.session import connect

MIB = 1 << 20
VMS: dict[str, tuple[int, ...]] = {"web-01": (192 * MIB,), "db-01": (256 * MIB, 128 * MIB), "files-01": (160 * MIB,)}

#: Seconds where an operator would write hours. Servers are replicated after each backup, files on a schedule. A VM
#: joins when it is switched on: while its disks are formatted from outside, no backup's snapshot may come in between.
POLICY = """
[groups.servers]
source = "prod"
members = { name = ["web-*", "db-*"], power = "on" }
store = "main"
target = "dr"
keep = { last = 5 }
backup = { every = "45s", jitter = "10s" }

[groups.files]
source = "prod"
members = { name = "files-*", power = "on" }
store = "main"
target = "dr"
keep = { last = 5 }
backup = { every = "45s", jitter = "10s" }
replicate = { after_backup = false, schedule = { every = "60s", jitter = "none" } }

[tuning]
dispatch_every = "2s"
reap_every = "5s"
inventory_every = "10s"
"""
T = TypeVar("T")


class Lab(NamedTuple):
    """What the demo works with."""

    config: Path
    flower: str
    settings: Settings
    catalogue: Catalogue
    controls: Mapping[str, str]


def run(folder: Path = Path(".lab-demo")) -> int:
    """0 when every step came out as told. What a former demo left in the folder is removed first."""
    console = Console(highlight=False)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[bold]{time.monotonic() - began:6.1f} s[/bold]  {text}")

    try:
        lifecycle.down(folder, erase=True)
        _play(folder, say, console)
    except LabError as err:
        lifecycle.down(folder)  # what it left says why
        console.print(f"[red]The demo failed:[/red] {err}")
        return 1
    except BaseException:
        lifecycle.down(folder, erase=True)
        raise
    lifecycle.down(folder, erase=True)
    say("The lab is stopped and removed. `make lab-up` starts one that stays.")
    return 0


def _play(folder: Path, say: Callable[[str], None], console: Console) -> None:
    state = lifecycle.up(folder, extra=POLICY)
    settings = load(state.config)
    controls = {name: v.control for name, v in state.vcenters.items()}
    lab = Lab(state.config, state.flower, settings, Catalogue.open(settings.catalogue), controls)
    say(
        "Redis, two vCenters (prod and dr), workers of both sites, Beat and Flower run. "
        f"Datastores: {state.datastores}."
    )

    for name, sizes in VMS.items():
        _make(lab, name, sizes)
    words = ", ".join(f"{name} with {len(sizes)} disk{'s' if len(sizes) > 1 else ''}" for name, sizes in VMS.items())
    say(f"At prod there are now {words}; each disk holds an ext4 file system of real files, and the VMs run.")

    say("Beat finds them due: first backups, then first syncs, which build the replicas at dr ...")
    first = {name: _wait(partial(_synced, lab, name), f"the first sync of {name}") for name in VMS}
    for name, point in first.items():
        say(f"{name}: replica {point.replica} holds restore point {point.point}; {_size(point.written)} written")

    say("The guests work: new files, rewritten blocks. The schedule takes care of the rest ...")
    for name in VMS:
        before = lab.catalogue.now()
        _work(lab, name, seed=1)
        point = _wait(partial(_synced_since, lab, name, lab.catalogue.now()), f"the scheduled sync of {name}")
        written = _scheduled_since(lab, point.pair, before)
        say(f"{name}: scheduled incremental to {point.point}; {_size(written)} of {_size(sum(VMS[name]))} written")

    say("A person wants files-01 at dr right now, with what it holds right now:")
    _right_after_a_scheduled_sync(lab, "files-01")
    _work(lab, "files-01", seed=2)
    asked = lab.catalogue.now()
    _understudy(lab, console, "backup", "files-01", "--wait")
    _understudy(lab, console, "sync", "files-01", "--plan")
    _understudy(lab, console, "sync", "files-01", "--wait")
    synced = _synced_since(lab, "files-01", asked)
    if synced is None or lab.catalogue.run(synced.run).trigger is not Trigger.AD_HOC:
        raise LabError("the ad hoc sync of files-01 did not bring the change over")

    say("And once more, with nothing new:")
    _nothing_new(lab, console, "files-01")

    say("The guests rest. Their last state travels to dr, and is then compared byte for byte ...")
    quiet = lab.catalogue.now()
    for name in VMS:
        _wait(partial(_synced_since, lab, name, quiet), f"the last sync of {name}")
        for line in _compare(lab, name):
            say(line)
    _understudy(lab, console, "status")
    say(f"Flower at {lab.flower} saw {_flower_tasks(lab)}.")


# --- playing the guest ------------------------------------------------------------------------------------------


def _make(lab: Lab, name: str, sizes: tuple[int, ...]) -> None:
    site = lab.settings.sites["prod"]
    session = connect("prod", site)
    state = vcenter.build(session, name, sizes, datastore="prod-ds1", network="VM Network")
    for number, disk in enumerate(_disks(state)):
        with tempfile.TemporaryDirectory() as folder:
            guest.real_files(Path(folder), disk.capacity // 3)
            guest.format_disk(_flat(site.datastores, disk), Path(folder), seed=number + len(name))
    vcenter.power_on(session, state)


def _work(lab: Lab, name: str, *, seed: int) -> None:
    """Change files on a copy of each disk; the vCenter then writes what changed, as the running guest would."""
    for number in range(len(VMS[name])):
        with tempfile.TemporaryDirectory(dir=lab.config.parent) as folder:
            copy = Path(folder) / "disk"
            _wait(partial(_copy_live, lab, name, number, copy), f"a quiet moment of {name}")
            before = copy.read_bytes()
            rng = random.Random(f"{name} {number} {seed}")
            guest.write_files(copy, {f"/work/{seed}-{i}.bin": rng.randbytes(200_000) for i in range(4)})
            guest.check(copy)
            _apply(lab, name, number, before, copy.read_bytes())


def _copy_live(lab: Lab, name: str, number: int, to: Path) -> bool | None:
    """None when a snapshot stood, came or went meanwhile: then the file that was copied was not the live one all the
    time, or the simulator was at work on it."""
    session, mounts = connect("prod", lab.settings.sites["prod"]), lab.settings.sites["prod"].datastores
    state = vcenter.find(session, name)
    live = _flat(mounts, _disks(state)[number])
    done = subprocess.run(["cp", "--reflink=auto", "--sparse=always", str(live), str(to)], capture_output=True)
    after = vcenter.find(session, name)
    quiet = after.change_version == state.change_version and not state.snapshots and not after.snapshots
    return True if done.returncode == 0 and quiet and guest.formatted(to) else None


def _apply(lab: Lab, name: str, number: int, old: bytes, new: bytes) -> None:
    for offset in range(0, len(new), MIB):
        if new[offset : offset + MIB] == old[offset : offset + MIB]:
            continue
        data = new[offset : offset + MIB]
        order = {"guestWrite": {"vm": name, "disk": number, "offset": offset, "hex": data.hex()}}
        vcenter.control(lab.controls["prod"], order)


def _disks(state: VmState) -> list[Disk]:
    return sorted(state.config.disks, key=lambda d: d.key)


def _flat(mounts: Mapping[str, Path], disk: Disk) -> Path:
    file = datastore_file(mounts, disk.file)
    return file.with_name(file.name.removesuffix(".vmdk") + "-flat.vmdk")


# --- watching ---------------------------------------------------------------------------------------------------


def _wait(look: Callable[[], T | None], what: str, seconds: float = 180) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.3)
    raise LabError(
        f"{what} did not come within {seconds:.0f} s; see the logs and the catalogue in .lab-demo, which the next demo "
        "removes"
    )


def _synced(lab: Lab, name: str) -> SyncPoint | None:
    failed = [f for f in lab.catalogue.failures(vm=name, limit=1)]
    if failed:
        raise LabError(f"{name}: {failed[0].message}")
    pairs = lab.catalogue.pairs(vm=name)
    return lab.catalogue.sync_point(pairs[0].id) if pairs else None


def _synced_since(lab: Lab, name: str, moment: datetime) -> SyncPoint | None:
    point = _synced(lab, name)
    return point if point is not None and point.data_time > moment else None


def _scheduled_since(lab: Lab, pair: str, moment: datetime) -> int:
    """Bytes that scheduled runs wrote to the pair's replica since then; an error when somebody else was at work."""
    points = [p for p in lab.catalogue.sync_points(pair) if p.committed > moment]
    if any(lab.catalogue.run(p.run).trigger is Trigger.AD_HOC for p in points):
        raise LabError(f"a sync of {points[0].vm} was asked for by somebody; the schedule should have done it")
    return sum(p.written for p in points)


def _right_after_a_scheduled_sync(lab: Lab, name: str) -> None:
    """There is most of a minute until the next one: time for an ad hoc sync that finds something to do."""
    known = {r.id for r in lab.catalogue.runs(vm=name, kind=RunKind.SYNC)}

    def ended() -> bool | None:
        runs = lab.catalogue.runs(vm=name, kind=RunKind.SYNC)
        return True if any(r.id not in known and not r.live for r in runs) else None

    _wait(ended, f"the next scheduled sync of {name}")


def _nothing_new(lab: Lab, console: Console, name: str) -> None:
    """A scheduled backup may come in between; then there is something new, and it is asked again."""
    for _ in range(5):
        _understudy(lab, console, "sync", name, "--wait")
        last = next(r for r in lab.catalogue.runs(vm=name, kind=RunKind.SYNC, limit=10) if not r.live)
        if last.state is RunState.NOTHING_NEW:
            return
    raise LabError(f"each of five syncs of {name} found something new")


def _understudy(lab: Lab, console: Console, *words: str) -> None:
    console.print(f"          [green]$ understudy {' '.join(words)}[/green]")
    done = subprocess.run([sys.executable, "-P", "-m", "tasks.cli", "--config", str(lab.config), *words], text=True)
    if done.returncode != 0:
        raise LabError(f"`understudy {' '.join(words)}` ended with {done.returncode}")


def _flower_tasks(lab: Lab) -> str:
    """What Flower's task list says, by name and state."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    login = lab.config.parent / "secrets" / "flower"
    request = urllib.request.Request(f"{lab.flower}/api/tasks?limit=2000")
    token = base64.b64encode(f"{USER}:{login.read_text().strip()}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    with opener.open(request, timeout=20) as answer:
        tasks = json.load(answer).values()
    done: dict[str, int] = {}
    for task in tasks:
        if task["state"] == "SUCCESS" and task["name"] in ("understudy.backup.run", "understudy.sync.run"):
            done[task["name"]] = done.get(task["name"], 0) + 1
    if len(done) < 2:
        raise LabError(f"Flower at {lab.flower} does not show the runs: {done}")
    return " and ".join(f"{count} tasks {name}" for name, count in sorted(done.items())) + " succeed"


# --- judging ----------------------------------------------------------------------------------------------------


def _compare(lab: Lab, name: str) -> list[str]:
    """Each replica disk against the source's disk, every byte; and its file system by e2fsck."""
    settings = lab.settings
    source = vcenter.find(connect("prod", settings.sites["prod"]), name)
    pair = lab.catalogue.pairs(vm=name)[0]
    replica = vcenter.find(connect("dr", settings.sites["dr"]), pair.replica_name)
    copies = disk_map(replica)
    lines = []
    for disk in _disks(source):
        copy = copies[disk.id]
        base = copy.model_copy(update={"file": copy.parent or copy.file})
        mine, theirs = _flat(settings.sites["prod"].datastores, disk), _flat(settings.sites["dr"].datastores, base)
        offset = _first_difference(mine, datastore_file(settings.sites["dr"].datastores, base.file))
        if offset is not None:
            raise LabError(f"{name}, {disk.label}: {theirs} differs from {mine} at byte {offset}")
        guest.check(theirs)
        lines.append(f"{name}, {disk.label}: all {_size(disk.capacity)} identical, e2fsck finds nothing")
    return lines


def _first_difference(flat: Path, descriptor: Path) -> int | None:
    copy = FileReader(descriptor)
    try:
        with open(flat, "rb") as file:
            for offset in range(0, copy.size, 8 * MIB):
                data = file.read(8 * MIB)
                found = differing([Piece(offset, len(data), data)], copy.read([(offset, len(data))]))
                if found:
                    return found[0].offset
    finally:
        copy.close()
    return None


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
