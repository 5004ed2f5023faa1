"""One disk's first sync by several workers against one, each worker behind the same limit.

`python -m benchmarks.bench_spread [--gib 1] [--rate 20MB] [--workers 4]` starts two vCenters of the lab.
The limit stands for a path that one connection cannot fill: of a VDDK connection about 145 MB/s are known. Here it is
lower, so that two cores can decompress for all together: measured is how the work spreads, not the codec.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks.lab import lifecycle, vcenter
from workers import backup, dispatch, replicate
from workers.catalogue import Catalogue
from workers.models import Run, RunState, Trigger
from workers.run import Here
from workers.settings import load
from workers.vsphere.session import connect

MIB = 1 << 20
POLICY = """
[groups.bench]
source = "prod"
vms = ["spread-*"]
store = "main"
target = "dr"
replicate = { after_backup = false }
"""
_fork = multiprocessing.get_context("fork")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--gib", type=int, default=1)
    arguments.add_argument("--rate", default="20MB")
    arguments.add_argument("--workers", type=int, default=4)
    given = arguments.parse_args()
    print(measure(given.gib << 30, given.rate, given.workers))


def measure(size: int, rate: str, workers: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _measure(Path(folder) / "lab", size, rate, workers)
        finally:
            lifecycle.down(Path(folder) / "lab", erase=True)


def _measure(folder: Path, size: int, rate: str, workers: int) -> str:
    state = lifecycle.up(folder, only=("prod", "dr"), extra=POLICY)
    settings = load(state.config)
    here = Here(settings, Catalogue.create(settings.catalogue))
    session = connect("prod", settings.sites["prod"])
    lines = ["| workers | s | MB/s | workers at once, by the ledger |", "|---|---|---|---|"]
    took = {}
    for count in (1, workers):
        name = f"spread-{count}"
        vcenter.build(session, name, [size], datastore="prod-ds1", network="VM Network")
        (flat,) = state.vcenters["prod"].datastores["prod-ds1"].glob(f"{name}/*-flat.vmdk")
        with open(flat, "r+b") as file:
            for _ in range(size // (4 * MIB)):
                file.write(os.urandom(4 * MIB))
        dispatch.discover(here, "prod")
        (member,) = dispatch.find(here, name)
        made = dispatch.request_backup(here, member, Trigger.AD_HOC)[0]
        assert backup.run(here, made.id).outcome == "succeeded"
        took[count] = seconds = _first_sync(limited(here, rate, count), member, count)
        together = _at_once(here, name)
        lines.append(f"| {count} | {seconds:.1f} | {size / seconds / 1e6:.0f} | {together} |")
    lines.append(f"\n{workers} workers are {took[1] / took[workers]:.2f} times as fast as one (goal: 3).")
    lines.append(f"Disk: {size >> 20} MiB of random data; each worker writes at most {rate} a second.\n")
    return "\n".join(lines)


def limited(here: Here, rate: str, workers: int) -> Here:
    """The same realm, with workers that carry so much at most."""
    sites = here.settings.sites | {"dr": here.settings.sites["dr"].model_copy(update={"worker_rate": rate})}
    tuning = here.settings.tuning.model_copy(update={"spread": workers, "slice_time": "30m"})
    return Here(here.settings.model_copy(update={"sites": sites, "tuning": tuning}), here.catalogue)


def _first_sync(here: Here, member: Any, workers: int) -> float:
    """Seconds from the claim to the commit. Helpers are asked for by the lead, as messages would."""
    pair = dispatch.pair_of(here, member)
    assert pair is not None
    run = dispatch.request_sync(here, pair, Trigger.AD_HOC)[0]
    called = _fork.Semaphore(0)

    def call(_: Run, count: int) -> None:
        for _helper in range(count):
            called.release()

    def help_out() -> None:
        called.acquire()
        replicate.help_out(here, run.id)

    lead = Here(here.settings, here.catalogue, call)
    jobs = [lambda: replicate.run(lead, run.id), *([help_out] * (workers - 1))]
    processes = [_fork.Process(target=job) for job in jobs]
    began = time.perf_counter()
    for process in processes:
        process.start()
    while (now := here.catalogue.run(run.id)).live:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    for process in processes:
        called.release()  # who was not called goes home
        process.join()
    assert now.state is RunState.SUCCEEDED, now.error
    return seconds


def _at_once(here: Here, name: str) -> int:
    run = here.catalogue.runs(vm=name, limit=1)[0]
    spans = [(s.began, s.ended, s.owner) for s in here.catalogue.slices(run.id) if s.began and s.ended]
    return max(len({owner for began, ended, owner in spans if began <= at <= ended}) for at, _, _ in spans)


if __name__ == "__main__":
    main()
