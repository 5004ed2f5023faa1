"""The disks of the table through the real task path: requests, Redis, workers, two simulated vCenters.

python -m benchmarks.bench_tasks [--disks /tmp/store-bench/datastores/disks] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_lab import POLICY, _here, _through_workers, started
from tasks.lab import lifecycle, vcenter
from tasks.lab.processes import LabError
from workers import backup, dispatch, replicate
from workers.models import Trigger
from workers.run import Here
from workers.vsphere.session import connect

#: bytes of a guest's write that the simulator is asked for at once
AT_ONCE = 1 << 20
JOBS = (
    ("full backup", "backup"),
    ("first sync", "sync"),
    ("backup of (a), 64 KiB grain", "backup"),
    ("sync of (a)", "sync"),
    ("backup of (b), 64 KiB grain", "backup"),
    ("sync of (b)", "sync"),
)


def measure(disks: Path, runs: int) -> str:
    """Each round has a VM whose runs workers carry out, and one whose runs are done in this process, where the share of
    vCenter's calls can be told. What workers take longer is Celery's, Redis' and the catalogue's between them."""
    queued: dict[str, list[float]] = defaultdict(list)
    inside: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, list[float]] = defaultdict(list)
    for number in range(runs):
        for by_workers in (True, False) if number % 2 else (False, True):
            for job, (seconds, asked) in _apart(disks, by_workers).items():
                (queued if by_workers else inside)[job].append(seconds)
                if not by_workers:
                    calls[job].append(asked)
    lines = [
        "| the same disks | request to commit, s | in one process, s | of that in vCenter, s | Celery's share |",
        "|---|---|---|---|---|",
    ]
    for job, _ in JOBS:
        whole, alone, asked = (statistics.median(each[job]) for each in (queued, inside, calls))
        lines.append(f"| {job} | {whole:.2f} | {alone:.2f} | {asked:.2f} | {(whole - alone) / whole:+.0%} |")
    return "\n".join(
        [*lines, "", f"Medians of {runs}. Celery's share is what a request takes longer than its work alone.", ""]
    )


def _apart(disks: Path, by_workers: bool) -> dict[str, tuple[float, float]]:
    """A round in a process of its own: Celery keeps the Redis of the first lab that it was told of."""
    words = ["--disks", str(disks), "--round", "workers" if by_workers else "here"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_tasks", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"a round failed: {done.stderr.strip()[-2000:]}")
    return {job: (seconds, asked) for job, (seconds, asked) in json.loads(done.stdout.splitlines()[-1]).items()}


def _round(disks: Path, by_workers: bool) -> dict[str, tuple[float, float]]:
    """Job -> seconds, and of these in vCenter as far as that is seen here. A lab of its own: in the store of another
    round all of the disk would be there."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "lab"
        try:
            state, here = started(folder, POLICY)
            vm = _Vm(state, here, disks, "bench-disk")
            for job, kind in JOBS:
                vm.change(job)
                ask, work = vm.ask(kind)
                found[job] = (_through_workers(here, ask), 0.0) if by_workers else _here(here, ask, work)
            vm.compare()
        finally:
            lifecycle.down(folder, erase=True)
    return found


class _Vm:
    """A VM with disk0, which becomes disk1a and then has what disk1b has elsewhere."""

    def __init__(self, state: Any, here: Here, disks: Path, name: str) -> None:
        self._state, self._here, self._disks, self._name = state, here, disks, name
        session = connect("prod", here.settings.sites["prod"])
        size = (disks / "disk0.raw").stat().st_size
        vm = vcenter.build(session, name, [size], datastore="prod-ds1", network="VM Network")
        subprocess.run(["cp", "--sparse=always", disks / "disk0.raw", self._flat("prod")], check=True)
        vcenter.power_on(session, vm)
        dispatch.discover(here, "prod")
        (self._member,) = dispatch.find(here, name)
        pair = dispatch.pair_of(here, self._member)
        assert pair is not None
        self._pair = pair

    def _flat(self, site: str) -> Path:
        folders = self._state.vcenters[site].datastores.values()
        found = [Path(flat) for folder in folders for flat in folder.glob(f"{self._name}*/*-flat.vmdk")]
        return min(found, key=lambda flat: len(flat.name))  # what stands on it has a number in its name

    def ask(self, kind: str) -> tuple[Callable[[], Any], Callable[..., Any]]:
        if kind == "backup":
            return lambda: dispatch.request_backup(self._here, self._member, Trigger.AD_HOC), backup.run
        return lambda: dispatch.request_sync(self._here, self._pair, Trigger.AD_HOC), replicate.run

    def change(self, job: str) -> None:
        """What the guest writes before the job."""
        letter = job.partition("(")[2][:1]
        if not letter or "backup" not in job:
            return
        control = self._state.vcenters["prod"].control
        ranges: list[list[int]] = []
        for line in (self._disks / f"disk1{letter}.changes").read_text().splitlines():
            start, length = map(int, line.split())
            if ranges and sum(ranges[-1]) == start and ranges[-1][1] + length <= AT_ONCE:
                ranges[-1][1] += length
            else:
                ranges.append([start, length])
        with open(self._disks / f"disk1{letter}.raw", "rb") as file, vcenter.controlled(control) as tell:
            for start, length in ranges:
                file.seek(start)
                order = {"vm": self._name, "disk": 0, "offset": start, "hex": file.read(length).hex()}
                tell({"guestWrite": order})

    def compare(self) -> None:
        subprocess.run(["cmp", self._flat("prod"), self._flat("dr")], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=Path, default=Path("/tmp/store-bench/datastores/disks"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--round", choices=("workers", "here"), help="one round, as JSON")
    arguments = parser.parse_args()
    if arguments.round is not None:
        print(json.dumps(_round(arguments.disks, arguments.round == "workers")))
    else:
        print(measure(arguments.disks, arguments.runs))
