"""The disks of the table through the real task path: requests, Redis, workers, two simulated vCenters.

python -m benchmarks.bench_tasks [--disks /tmp/store-bench/datastores/disks] [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_lab import POLICY, _here, _through_workers, started
from tasks.lab import lifecycle, vcenter
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
    """A lab of its own. A round more is done in this process, where the share of vCenter's calls can be told."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "lab"
        try:
            state, here = started(folder, POLICY)
            queued: dict[str, list[float]] = defaultdict(list)
            calls: dict[str, tuple[float, float]] = {}
            for number in range(runs + 1):
                round_ = _Round(state, here, disks, f"bench-disk-{number}")
                for job, kind in JOBS:
                    round_.change(job)
                    ask, work = round_.ask(kind)
                    if number == runs:
                        calls[job] = _here(here, ask, work)
                    else:
                        queued[job].append(_through_workers(here, ask))
                round_.compare()
        finally:
            lifecycle.down(folder, erase=True)
    lines = ["| the same disks | request to commit, s (median) | in process, s | in vCenter, s |", "|---|---|---|---|"]
    for job, _ in JOBS:
        lines.append(f"| {job} | {statistics.median(queued[job]):.2f} | {calls[job][0]:.2f} | {calls[job][1]:.2f} |")
    return "\n".join([*lines, ""])


class _Round:
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
        with open(self._disks / f"disk1{letter}.raw", "rb") as file:
            for start, length in ranges:
                file.seek(start)
                order = {"vm": self._name, "disk": 0, "offset": start, "hex": file.read(length).hex()}
                vcenter.control(control, {"guestWrite": order})

    def compare(self) -> None:
        subprocess.run(["cmp", self._flat("prod"), self._flat("dr")], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=Path, default=Path("/tmp/store-bench/datastores/disks"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print(measure(arguments.disks, arguments.runs))
