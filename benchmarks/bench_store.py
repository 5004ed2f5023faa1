"""The table of speed: the store against Borg, restic, Benji, qemu-img and rsync, on the same disks in one run.

python -m benchmarks.bench_store --runs 3              writes benchmarks/results.md and its charts
python -m benchmarks.bench_store --size 256M --runs 1 --no-lab --out /tmp/tried     to try it

Disks, repositories and what is restored lie on one file system with reflinks (XFS in a file). Sources are in the page
cache for everybody, programs take turns (another one begins each round), everybody's files are synced within the time
that is measured, and what comes out is compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks import bench_diff, bench_lab, bench_tasks, make_disks, peers, report
from tasks.lab import datastores

REPOSITORY = Path(__file__).resolve().parent.parent
_UNITS = {"M": 1 << 20, "G": 1 << 30}


class Bench:
    def __init__(self, folder: Path, threads: int, benji: Path | None) -> None:
        self.folder = folder
        self.disks = folder / "disks"
        self.out = folder / "out"
        self.threads = threads
        self.borg, self.restic = peers.Borg(folder), peers.Restic(folder)
        self.qemu, self.rsync = peers.Qemu(folder), peers.Rsync(folder)
        self.backups: list[peers.Peer] = [self.borg, self.restic, self.qemu]
        if benji is not None:
            self.backups.append(peers.Benji(folder, benji))
        self.found = report.Found()

    def run(self, number: int) -> None:
        """One round of everything, each program in its turn."""
        for path in (self.out, *self.folder.glob("store*")):
            shutil.rmtree(path, ignore_errors=True)
        self.out.mkdir()
        for peer in self.backups:
            peer.prepare()
        self._warm("disk0", "disk1a", "disk1b")
        self._full(number)
        self._limits()
        self._incrementals(number)
        self._restores(number)
        for letter in "ab":
            self._applies(number, letter)

    def _full(self, number: int) -> None:
        disk = self._disk("disk0")
        ours = [(None, lambda: self._ours("full", "full", "store", disk))]
        theirs = [(peer.name, self._stored(peer, "full", "disk0", "v0", None)) for peer in self.backups]
        self._in_turn(number, [*ours, *theirs])
        self.found.stored["full"]["ours"].append(_size(self.folder / "store"))
        for name in ("a4", "a64", "b", "scan"):
            subprocess.run(
                ["cp", "-a", "--reflink=auto", self.folder / "store", self.folder / f"store-{name}"], check=True
            )

    def _incrementals(self, number: int) -> None:
        for letter, jobs in (("a", {"a4": "changes4k", "a64": "changes"}), ("b", {"b": "changes", "scan": None})):
            disk = self._disk(f"disk1{letter}")
            work: list[tuple[str | None, Callable[[], None]]] = []
            for job, told in jobs.items():
                more = () if told is None else ("--changes", disk.with_suffix(f".{told}"))
                work.append((None, self._job(job, "scan" if told is None else "incremental", disk, more)))
            for peer in self.backups:
                if peer is not self.qemu:  # it has no incremental backup
                    hints = disk.with_suffix(".changes4k" if letter == "a" else ".changes")
                    work.append((peer.name, self._stored(peer, letter, disk.stem, f"v{letter}", hints)))
            self._in_turn(number, work)

    def _job(self, job: str, what: str, disk: Path, more: tuple[str | Path, ...]) -> Callable[[], None]:
        def do() -> None:
            store = f"store-{job}"
            before = _size(self.folder / store)
            self._ours(job, what, store, disk, *more)
            self.found.stored[job]["ours"].append(_size(self.folder / store) - before)

        return do

    def _stored(self, peer: peers.Peer, job: str, disk: str, version: str, hints: Path | None) -> Callable[[], None]:
        def do() -> None:
            before = _size(peer.repository)
            self._time(job, peer.name, lambda: peer.backup(self._disk(disk), version, hints))
            self.found.stored[job][peer.name].append(_size(peer.repository) - before)

        return do

    def _restores(self, number: int) -> None:
        def ours() -> None:
            made = self.out / "disk.raw"
            self._ours("restore", "restore", "store", made, "--point", "0")
            self._same("disk0", made)

        def theirs(peer: peers.Peer) -> Callable[[], None]:
            def do() -> None:
                (self.out / "theirs").mkdir()
                self._time("restore", peer.name, lambda: peer.restore("v0", self.out / "theirs"))
                (made,) = (self.out / "theirs").rglob("disk.raw")
                self._same("disk0", made)

            return do

        self._in_turn(number, [(None, ours), *((peer.name, theirs(peer)) for peer in self.backups)])

    def _applies(self, number: int, letter: str) -> None:
        """Onto a copy of disk0; qemu-img commits an overlay that was made before, without any digest."""
        job, new, target = f"apply {letter}", self._disk(f"disk1{letter}"), self.out / "disk.raw"
        overlay = self.qemu.overlay(self._disk("disk0"), new, letter)

        def fresh() -> None:
            shutil.rmtree(self.out)
            self.out.mkdir()
            # A copy of its own, not a reflink: who writes into shared blocks pays for the sharing.
            subprocess.run(["cp", "--sparse=always", "--reflink=never", self._disk("disk0"), target], check=True)
            self._warm(f"disk1{letter}")
            os.sync()

        def ours() -> None:
            fresh()
            store = "store-a4" if letter == "a" else "store-b"
            self._ours(job, "apply", store, target, "--point", "1")
            self._same(new.stem, target)

        def rsync() -> None:
            fresh()
            self._time(job, "rsync", lambda: self.rsync.apply(new, target))
            self._same(new.stem, target)

        def commit() -> None:
            fresh()
            self.qemu.aim(overlay, target)
            self._time(job, "qemu-img", lambda: self.qemu.commit(overlay, target))
            self._same(new.stem, target)

        self._in_turn(number, [(None, ours), ("rsync", rsync), ("qemu-img", commit)])
        overlay.unlink()

    def _limits(self) -> None:
        """What the same threads reach on the parts of the work alone."""
        for what, disk in (("zstd", "disk0"), ("restore", "disk0"), ("scan", "disk1b")):
            words = [what, self._disk(disk), "--out", self.out / "limit.raw", "--threads", self.threads]
            self.found.seconds[f"limit {what}"]["limit"].append(_said("benchmarks.limits", *words)["seconds"])
        self._same("disk0", self.out / "limit.raw")
        (self.out / "limit.raw").unlink()

    # --- one operation each ---------------------------------------------------------------------------------

    def _in_turn(self, number: int, work: list[tuple[str | None, Callable[[], None]]]) -> None:
        first = number % len(work)
        for name, do in work[first:] + work[:first]:
            os.sync()
            do()
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir()
            print(f"  {name or 'ours'}", end="", file=sys.stderr, flush=True)

    def _ours(self, job: str, what: str, store: str, disk: Path, *more: str | Path) -> None:
        began = perf_counter()
        said = _said("benchmarks.ours", what, self.folder / store, disk, "--threads", self.threads, *more)
        self.found.seconds[job]["process"].append(perf_counter() - began)
        self.found.seconds[job]["ours"].append(said["seconds"])
        self.found.peak[job] = max(self.found.peak.get(job, 0), said["peak_mib"])

    def _time(self, job: str, name: str, do: Callable[[], object]) -> None:
        began = perf_counter()
        do()
        self.found.seconds[job][name].append(perf_counter() - began)

    def _disk(self, name: str) -> Path:
        return self.disks / f"{name}.raw"

    def _warm(self, *names: str) -> None:
        for name in names:
            with open(self._disk(name), "rb") as file:
                while file.read(16 << 20):
                    pass

    def _same(self, name: str, made: Path) -> None:
        subprocess.run(["cmp", self._disk(name), made], check=True)

    def sparse(self) -> None:
        """Memory for a full backup and a restore of a disk of 1 TiB with 64 MiB of data here and there."""
        folder = self.folder / "store-sparse"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with open(folder / "disk.raw", "wb") as file:
            file.truncate(1 << 40)
            for i in range(64):
                file.seek(i * (16 << 30) + (5 << 20))
                file.write(os.urandom(1 << 20))
        self._ours("sparse full", "full", "store-sparse/store", folder / "disk.raw")
        self._ours("sparse restore", "restore", "store-sparse/store", folder / "out.raw", "--point", "0")
        shutil.rmtree(folder)


def _said(module: str, *words: object) -> dict[str, float]:
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--size", default="4G", help="of the disks: 4G, or less to try it")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-bench"))
    parser.add_argument(
        "--benji", type=Path, default=Path(".build/benji"), help="its virtual environment, made if it is not there"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks", help="where results.md goes")
    parser.add_argument("--no-lab", action="store_true", help="leave out the task path")
    parser.add_argument("--skip-diff", action="store_true", help="leave out the 10 TiB maps (2 GiB of disk, minutes)")
    args = parser.parse_args()
    missing = sorted({package for tool, package in peers.PACKAGES.items() if _missing(tool)})
    if missing:
        sys.exit(f"missing: apt install {' '.join(missing)}")
    size = int(args.size[:-1]) * _UNITS[args.size[-1]]
    args.folder.mkdir(parents=True, exist_ok=True)
    where = datastores.attach(args.folder)
    try:
        bench = Bench(args.folder / "datastores", args.threads, peers.with_benji(args.benji.absolute()))
        make_disks.make(bench.disks, size)
        for peer in bench.backups:
            peer.prepare()
        versions = [peer.version() for peer in (*bench.backups, bench.rsync)]
        for run in range(args.runs):
            print(f"run {run + 1} of {args.runs}:", end="", file=sys.stderr, flush=True)
            bench.run(run)
            print(file=sys.stderr)
        bench.sparse()
        lab = [] if args.no_lab else [bench_lab.measure(3 * args.runs), bench_tasks.measure(bench.disks, args.runs)]
    finally:
        for path in (args.folder / "datastores").glob("store*"):
            shutil.rmtree(path, ignore_errors=True)
        datastores.detach(args.folder)
    diff = "" if args.skip_diff else bench_diff.report(args.folder / "diff", args.runs)
    machine = report.machine(args.runs, args.threads, args.size, where, versions)
    args.out.mkdir(parents=True, exist_ok=True)
    report.write(args.out, bench.found, machine, lab, diff)
    print((args.out / "results.md").read_text())


def _missing(tool: str) -> bool:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None


if __name__ == "__main__":
    main()
