"""The task path: from a request to a committed sync point, through Redis, workers and two simulated vCenters.

`python -m benchmarks.bench_lab [--runs 9]` starts a lab of its own and prints medians: request to commit for a change
of 1 MiB, the share of it that vCenter calls take (measured in this process, same work), and the workers' peak memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pyVmomi.SoapAdapter import SoapStubAdapter

from tasks import current
from tasks.dispatch import send_requested
from tasks.lab import lifecycle, vcenter
from workers import backup, dispatch, replicate
from workers.catalogue import Catalogue
from workers.models import RunReport, RunState, Trigger
from workers.run import Here
from workers.settings import load
from workers.vsphere.session import connect

MIB = 1 << 20
POLICY = """
[groups.bench]
source = "prod"
vms = ["bench-*"]
store = "main"
target = "dr"
replicate = { after_backup = false }
"""


class Calls:
    """Seconds spent in vCenter calls of this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._real = SoapStubAdapter.InvokeMethod

    def __enter__(self) -> Calls:
        def timed(stub: Any, *args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return self._real(stub, *args, **more)
            finally:
                self.seconds += time.perf_counter() - began

        SoapStubAdapter.InvokeMethod = timed
        return self

    def __exit__(self, *_: object) -> None:
        SoapStubAdapter.InvokeMethod = self._real


class Statements:
    """Transactions and statements of this process's catalogue."""

    def __init__(self, engine: sa.Engine) -> None:
        self.commits = self.statements = 0
        sa.event.listen(engine, "commit", self._commit)
        sa.event.listen(engine, "before_cursor_execute", self._statement)

    def _commit(self, *_: Any) -> None:
        self.commits += 1

    def _statement(self, *_: Any) -> None:
        self.statements += 1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=9)
    print(measure(arguments.parse_args().runs))


def measure(runs: int) -> str:
    """A lab of its own, and what it took in it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _measure(Path(folder) / "lab", runs)
        finally:
            lifecycle.down(Path(folder) / "lab", erase=True)


def started(folder: Path, policy: str) -> tuple[lifecycle.LabState, Here]:
    """A lab that runs, and what a worker of it has at hand."""
    state = lifecycle.up(folder, extra=policy)
    os.environ["UNDERSTUDY_CONFIG"] = str(state.config)
    settings = load(state.config)
    current.forget()
    return state, Here(settings, Catalogue.open(settings.catalogue))


def _measure(folder: Path, runs: int) -> str:
    state, here = started(folder, POLICY)
    settings = here.settings
    statements = Statements(here.catalogue.engine)
    session = connect("prod", settings.sites["prod"])
    vcenter.power_on(
        session, vcenter.build(session, "bench-01", [256 * MIB], datastore="prod-ds1", network="VM Network")
    )
    dispatch.discover(here, "prod")
    (member,) = dispatch.find(here, "bench-01")
    pair = dispatch.pair_of(here, member)
    assert pair is not None

    def ask_backup() -> Any:
        return dispatch.request_backup(here, member, Trigger.AD_HOC)

    def ask_sync() -> Any:
        return dispatch.request_sync(here, pair, Trigger.AD_HOC)

    def change(number: int) -> None:
        data = os.urandom(MIB)
        order = {"guestWrite": {"vm": "bench-01", "disk": 0, "offset": number * 2 * MIB, "hex": data.hex()}}
        vcenter.control(state.vcenters["prod"].control, order)

    for number in range(2):
        change(number)
        _through_workers(here, ask_backup)
        _through_workers(here, ask_sync)
    queued: dict[str, list[float]] = {"backup": [], "sync": []}
    inside: dict[str, list[tuple[float, float]]] = {"backup": [], "sync": []}
    asked: dict[str, tuple[int, int]] = {}
    for number in range(runs):
        change(2 + number)
        queued["backup"].append(_through_workers(here, ask_backup))
        queued["sync"].append(_through_workers(here, ask_sync))
        change(50 + number)
        for what, ask, work in (("backup", ask_backup, backup.run), ("sync", ask_sync, replicate.run)):
            before = statements.commits, statements.statements
            inside[what].append(_here(here, ask, work))
            asked[what] = (statements.commits - before[0], statements.statements - before[1])
    head = (
        "| 1 MiB changed of 256 MiB | request to commit, s (median) | range | in process, s | in vCenter, s | "
        "transactions | statements |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for what in ("backup", "sync"):
        times = queued[what]
        total = statistics.median(t for t, _ in inside[what])
        calls = statistics.median(c for _, c in inside[what])
        spread = f"{min(times):.2f} to {max(times):.2f}"
        lines.append(
            f"| {what} | {statistics.median(times):.2f} | {spread} | {total:.2f} | {calls:.2f} | "
            f"{asked[what][0]} | {asked[what][1]} |"
        )
    lines.append(
        f"\nPeak memory of a worker's process: {_peak(state) / 1024:.0f} MiB. Datastores: {state.datastores}.\n"
    )
    return "\n".join(lines)


def _through_workers(here: Here, ask: Callable[[], Any]) -> float:
    """Seconds from the request to the run's end in the catalogue."""
    began = time.perf_counter()
    requested = ask()
    send_requested([requested])
    while (run := here.catalogue.run(requested[0].id)).live:
        time.sleep(0.005)
    assert run.state is RunState.SUCCEEDED, run.error
    return time.perf_counter() - began


def _here(here: Here, ask: Callable[[], Any], work: Callable[[Here, str], RunReport]) -> tuple[float, float]:
    run, _ = ask()
    began = time.perf_counter()
    with Calls() as calls:
        report = work(here, run.id)
    assert report.outcome == "succeeded", report
    return time.perf_counter() - began, calls.seconds


def _peak(state: lifecycle.LabState) -> int:
    """KiB: the largest resident set that any process of the workers ever had (VmHWM)."""
    roots = {s.pid for s in state.services if s.name.startswith("worker") and s.pid}
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if int(fields["Pid"]) in roots or int(fields["PPid"]) in roots:
            peaks.append(int(fields.get("VmHWM", "0 kB").split()[0]))
    return max(peaks)


if __name__ == "__main__":
    main()
