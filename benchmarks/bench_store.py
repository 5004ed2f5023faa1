"""The store against Borg and rsync on the same disks: interleaved, synced, compared byte for byte, medians.

python -m benchmarks.bench_store --runs 3      writes benchmarks/results.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from benchmarks import bench_diff, bench_lab, make_disks

TOOLS = {"borg": "borgbackup", "rsync": "rsync", "mkfs.ext4": "e2fsprogs", "debugfs": "e2fsprogs", "cmp": "diffutils"}
REPOSITORY = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    title: str
    ours: str
    peer: str
    goal: float


ROWS = (
    Row("full backup", "full", "borg full", 1.8),
    Row("incremental, 100 MiB of new files (b)", "incremental b", "borg b", 8),
    Row("incremental, 1 % scattered (a)", "incremental a", "borg a", 1),
    Row("full restore, verified", "restore", "borg restore", 2),
    Row("b onto an existing copy", "apply b", "rsync b", 25),
    Row("a onto an existing copy", "apply a", "rsync a", 40),
)


class Bench:
    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.disks = folder / "disks"
        self.threads = threads
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.engine: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, float] = {}
        self.sizes: dict[str, int] = {}

    def run(self) -> None:
        """One round of everything, ours and theirs in turn."""
        store, borg, out = self.folder / "store", self.folder / "borg", self.folder / "out"
        for path in (store, borg, out, self.folder / "store-b"):
            shutil.rmtree(path, ignore_errors=True)
        out.mkdir(parents=True)
        environment = {"BORG_BASE_DIR": str(self.folder / "borg-base"), "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
                       "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}  # fmt: skip
        os.environ.update(environment)
        subprocess.run(["borg", "init", "-e", "none", borg], check=True, stderr=subprocess.DEVNULL)
        for name in ("disk0", "disk1a", "disk1b"):
            self._warm(name)
        self._ours("full", "full", store, self._disk("disk0"))
        self._borg("borg full", borg, "disk0", "v0")
        self.sizes["ours, full"], self.sizes["borg, full"] = _size(store), _size(borg)
        subprocess.run(["cp", "-a", store, self.folder / "store-b"], check=True)
        for letter, where in (("a", store), ("b", self.folder / "store-b")):
            before, before_borg = _size(where), _size(borg)
            changes = self.disks / f"disk1{letter}.changes"
            disk = self._disk(f"disk1{letter}")
            self._ours(f"incremental {letter}", "incremental", where, disk, "--changes", changes)
            self._borg(f"borg {letter}", borg, f"disk1{letter}", f"v{letter}")
            self.sizes[f"ours, {letter}"] = _size(where) - before
            self.sizes[f"borg, {letter}"] = _size(borg) - before_borg
        self._restore(store, borg, out)
        for letter, where in (("a", store), ("b", self.folder / "store-b")):
            self._apply(where, letter, out)

    def _restore(self, store: Path, borg: Path, out: Path) -> None:
        ours, theirs = out / "disk.raw", out / "theirs"
        self._ours("restore", "restore", store, ours, "--point", "0")
        self._same("disk0", ours)
        ours.unlink()
        theirs.mkdir()
        name = str(self._disk("disk0")).lstrip("/")
        began = time.perf_counter()
        subprocess.run(["borg", "extract", "--sparse", f"{borg}::v0"], cwd=theirs, check=True)
        _sync(theirs / name)
        self.seconds["borg restore"].append(time.perf_counter() - began)
        self._same("disk0", theirs / name)
        shutil.rmtree(theirs)

    def _apply(self, store: Path, letter: str, out: Path) -> None:
        target, new = out / "disk.raw", self._disk(f"disk1{letter}")
        for ours in (True, False):
            target.unlink(missing_ok=True)
            subprocess.run(["cp", "--sparse=always", self._disk("disk0"), target], check=True)
            self._warm(f"disk1{letter}")
            os.sync()
            if ours:
                self._ours(f"apply {letter}", "apply", store, target, "--point", "1")
            else:
                command = ["rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync", new, target]
                self._time(f"rsync {letter}", command)
            self._same(f"disk1{letter}", target)
        target.unlink()

    # --- one operation each ---------------------------------------------------------------------------------

    def _ours(self, key: str, what: str, store: Path, disk: Path, *more: object) -> None:
        os.sync()
        began = time.perf_counter()
        words = [sys.executable, "-m", "benchmarks.ours", what, store, disk, "--threads", self.threads, *more]
        done = subprocess.run([str(word) for word in words], cwd=REPOSITORY, check=True, capture_output=True, text=True)
        self.seconds[key].append(time.perf_counter() - began)
        said = json.loads(done.stdout)
        self.engine[key].append(said["seconds"])
        self.peak[key] = max(self.peak.get(key, 0), said["peak_mib"])

    def _borg(self, key: str, repository: Path, disk: str, archive: str) -> None:
        """The disk under one name in all archives, as a backup of a VM would have it."""
        here = self._disk("disk0") if disk == "disk0" else self.disks / "now" / "disk0.raw"
        here.parent.mkdir(exist_ok=True)
        if disk != "disk0":
            here.unlink(missing_ok=True)
            os.link(self._disk(disk), here)
        options = ["-C", "zstd,1", "--chunker-params", "fixed,4194304"]
        self._time(key, ["borg", "create", *options, f"{repository}::{archive}", here])

    def _time(self, key: str, command: list[str | Path]) -> None:
        os.sync()
        began = time.perf_counter()
        subprocess.run(command, check=True)
        self.seconds[key].append(time.perf_counter() - began)

    def _disk(self, name: str) -> Path:
        return self.disks / f"{name}.raw"

    def _warm(self, name: str) -> None:
        with open(self._disk(name), "rb") as file:
            while file.read(16 << 20):
                pass

    def _same(self, name: str, made: Path) -> None:
        subprocess.run(["cmp", self._disk(name), made], check=True)

    def sparse_peak(self) -> tuple[float, float]:
        """MiB of memory for a full backup and a restore of a disk of 1 TiB with 64 MiB of data here and there."""
        folder = self.folder / "sparse"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with open(folder / "disk.raw", "wb") as file:
            file.truncate(1 << 40)
            for i in range(64):
                file.seek(i * (16 << 30) + (5 << 20))
                file.write(os.urandom(1 << 20))
        self._ours("sparse full", "full", folder / "store", folder / "disk.raw")
        self._ours("sparse restore", "restore", folder / "store", folder / "out.raw", "--point", "0")
        shutil.rmtree(folder)
        return self.peak["sparse full"], self.peak["sparse restore"]


def _size(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def report(bench: Bench, runs: int, sparse: tuple[float, float], lab: str, diff: str) -> str:
    lines = [
        "# Measured",
        "",
        _machine(runs, bench.threads),
        "",
        "Medians in seconds; every result was compared byte for byte. *Process* is the whole command with the start of",
        "Python, as Borg and rsync are measured; *worker* is the same work without it, as in a worker that is running.",
        "",
        "| | peer | peer, s | process, s | ratio | worker, s | ratio | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        peer, ours = statistics.median(bench.seconds[row.peer]), statistics.median(bench.seconds[row.ours])
        engine = statistics.median(bench.engine[row.ours])
        lines.append(
            f"| {row.title} | {row.peer.split()[0]} | {peer:.2f} | {ours:.2f} | {peer / ours:.1f} | "
            f"{engine:.2f} | {peer / engine:.1f} | {row.goal} |"
        )
    lines += ["", "| stored, MiB | ours | borg |", "|---|---|---|"]
    for what in ("full", "a", "b"):
        lines.append(f"| {what} | {bench.sizes[f'ours, {what}'] >> 20} | {bench.sizes[f'borg, {what}'] >> 20} |")
    full, restore = bench.peak["full"], bench.peak["restore"]
    lines += [
        "",
        "| peak memory, MiB (whole process) | full backup | restore |",
        "|---|---|---|",
        f"| disk of 4 GiB | {full:.0f} | {restore:.0f} |",
        f"| sparse disk of 1 TiB | {sparse[0]:.0f} | {sparse[1]:.0f} |",
        "",
        "The task path: a request through Redis and a worker to the commit, in a lab of two simulated vCenters.",
        "",
        lab,
        diff,
    ]
    return "\n".join(lines)


def _machine(runs: int, threads: int) -> str:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    load = os.getloadavg()[1]
    borg = subprocess.run(["borg", "--version"], capture_output=True, text=True).stdout.strip()
    rsync = subprocess.run(["rsync", "--version"], capture_output=True, text=True).stdout.split("\n")[0].split("  ")
    return (
        f"{os.cpu_count()} x {cpu}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{borg} (fixed 4 MiB chunks, zstd 1), {rsync[0]} {rsync[1].removeprefix('version ')}; {runs} runs, "
        f"{threads} threads, sources in the page cache, load of the machine at the end {load:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-bench"))
    parser.add_argument("--skip-diff", action="store_true", help="leave out the 10 TiB maps (2 GiB of disk, minutes)")
    args = parser.parse_args()
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        sys.exit(f"missing: apt install {' '.join(missing)}")
    make_disks.make(args.folder / "disks")
    bench = Bench(args.folder, args.threads)
    for run in range(args.runs):
        bench.run()
        print(f"run {run + 1} of {args.runs} done", file=sys.stderr)
    sparse = bench.sparse_peak()
    diff = "" if args.skip_diff else bench_diff.report(args.folder / "diff", args.runs)
    text = report(bench, args.runs, sparse, bench_lab.measure(3 * args.runs), diff)
    (REPOSITORY / "benchmarks" / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
