"""The table of speed: the store against Borg, restic, Benji, qemu-img, rsync and nbdcopy, on the same disks in one run.

python -m benchmarks.bench_store --runs 3              writes benchmarks/results.md and its charts
python -m benchmarks.bench_store --size 256M --runs 1 --no-lab --out /tmp/tried     to try it

Disks, repositories and what is restored lie on one file system with reflinks (XFS in a file). Sources are in the page
cache for everybody, programs take turns (another one begins each round), everybody's files are synced within the time
that is measured, and what comes out is compared byte for byte. What fails, or is not installed, is a line of its own;
the rest goes on, and what was measured is written after each step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from benchmarks import bench_diff, bench_lab, bench_nbd, bench_spread, bench_tasks, make_disks, peers, report
from tasks.lab import datastores
from tasks.lab.processes import LabError

REPOSITORY = Path(__file__).resolve().parent.parent
_UNITS = {"M": 1 << 20, "G": 1 << 30}
#: What is read for a job is in the page cache before each turn, not before each round: who came after a program that
#: fills gigabytes of cache with what it writes would read from the disk, and it was mostly the same one.
SOURCES = {"full": ("disk0",), "a": ("disk1a",), "b": ("disk1b",), "nbd": ("disk0",)}
#: What takes about a second is done so often in one turn, each time anew: one late fsync would be most of its figure.
#: And the copies by NBD: nbdcopy took 2.9 to 12.1 s for the same one within a few minutes.
TIMES = 3
#: work, and whose: its name in `report.Found`
Turn = tuple[str, Callable[[], None]]


class Bench:
    def __init__(self, folder: Path, threads: int, benji: Path, out: report.Results) -> None:
        self.folder = folder
        self.disks = folder / "disks"
        self.out = folder / "out"
        self.threads = threads
        self.results = out
        self.found = out.found
        self.borg, self.restic = peers.Borg(folder), peers.Restic(folder)
        self.qemu, self.rsync, self.nbdcopy = peers.Qemu(folder), peers.Rsync(folder), peers.NbdCopy(folder)
        everybody: list[peers.Peer] = [self.borg, self.restic, self.qemu, self.rsync, self.nbdcopy]
        try:
            everybody.append(peers.Benji(folder, peers.with_benji(benji)))
        except peers.Failed as err:
            self.found.absent["benji"] = f"it could not be installed: {err}"
        for peer in everybody:
            package = peers.PACKAGES.get(peer.name)
            if package is not None and not peers.there(peer.name):
                self.found.absent[peer.name] = f"apt install {package}"
        self.peers = [peer for peer in everybody if peer.name not in self.found.absent]
        self.backups = [peer for peer in self.peers if peer.stores]
        #: ours, and ours in a store that encrypts
        self.kinds = ("ours", "encrypted")

    def versions(self) -> list[str]:
        said = []
        for peer in self.peers:
            with self.noted("its version", peer.name):
                peer.prepare()
                said.append(peer.version())
        return [*said, *(f"{name} not here ({why})" for name, why in self.found.absent.items())]

    def run(self, number: int) -> None:
        """One round of everything, each program in its turn."""
        for path in (self.out, *self.folder.glob("store*")):
            shutil.rmtree(path, ignore_errors=True)
        self.out.mkdir()
        (self.folder / "key").write_text(secrets.token_hex(32))
        for peer in self.backups:
            with self.noted("a new repository", peer.name):
                peer.prepare()
        self._full(number)
        self._limits()
        self._incrementals(number)
        self._restores(number)
        for letter in "ab":
            self._applies(number, letter)
        self._nbd(number)

    def _full(self, number: int) -> None:
        disk = self._disk("disk0")

        def ours(kind: str) -> None:
            self._ours("full", kind, "full", "store", disk)
            self.found.stored["full"][kind].append(_size(self._store("store", kind)))

        work = [*self._kinds(ours), *((p.name, self._stored(p, "full", "disk0", "v0", None)) for p in self.backups)]
        self._in_turn("full", number, work)

    def _incrementals(self, number: int) -> None:
        for letter, jobs in (("a", {"a4": "changes4k", "a64": "changes"}), ("b", {"b": "changes", "scan": None})):
            disk = self._disk(f"disk1{letter}")
            work: list[Turn] = []
            for job, told in jobs.items():
                more = () if told is None else ("--changes", disk.with_suffix(f".{told}"))
                work += self._kinds(self._job(job, "scan" if told is None else "incremental", disk, more))
            for peer in self.backups:
                if peer is not self.qemu:  # it has no incremental backup
                    hints = disk.with_suffix(".changes4k" if letter == "a" else ".changes")
                    work.append((peer.name, self._stored(peer, letter, disk.stem, f"v{letter}", hints)))
            self._in_turn(letter, number, work)

    def _kinds(self, do: Callable[[str], None]) -> list[Turn]:
        def bound(kind: str) -> Turn:
            return kind, lambda: do(kind)

        return [bound(kind) for kind in self.kinds]

    def _job(self, job: str, what: str, disk: Path, more: tuple[str | Path, ...]) -> Callable[[str], None]:
        def do(kind: str) -> None:
            store = self._store(f"store-{job}", kind)
            for _ in range(TIMES):
                shutil.rmtree(store, ignore_errors=True)
                peers.run("cp", "-a", "--reflink=auto", self._store("store", kind), store)
                before = _size(store)
                self._settle()
                self._warm(disk.stem)
                self._ours(job, kind, what, f"store-{job}", disk, *more)
                self.found.stored[job][kind].append(_size(store) - before)

        return do

    def _stored(self, peer: peers.Peer, job: str, disk: str, version: str, hints: Path | None) -> Callable[[], None]:
        def do() -> None:
            before = _size(peer.repository)
            self._time(job, peer.name, lambda: peer.backup(self._disk(disk), version, hints))
            self.found.stored[job][peer.name].append(_size(peer.repository) - before)

        return do

    def _restores(self, number: int) -> None:
        def ours(kind: str) -> None:
            made = self.out / "disk.raw"
            self._ours("restore", kind, "restore", "store", made, "--point", "0")
            self._same("disk0", made)

        def theirs(peer: peers.Peer) -> Callable[[], None]:
            def do() -> None:
                (self.out / "theirs").mkdir()
                self._time("restore", peer.name, lambda: peer.restore("v0", self.out / "theirs"))
                (made,) = (self.out / "theirs").rglob("disk.raw")
                self._same("disk0", made)

            return do

        self._in_turn("restore", number, [*self._kinds(ours), *((p.name, theirs(p)) for p in self.backups)])

    def _applies(self, number: int, letter: str) -> None:
        """Onto a copy of disk0; qemu-img commits an overlay that was made before, without any digest."""
        job, new, target = f"apply {letter}", self._disk(f"disk1{letter}"), self.out / "disk.raw"

        def fresh() -> None:
            shutil.rmtree(self.out)
            self.out.mkdir()
            # A copy of its own, not a reflink: who writes into shared blocks pays for the sharing.
            peers.run("cp", "--sparse=always", "--reflink=never", self._disk("disk0"), target)
            self._warm(f"disk1{letter}")
            self._settle()

        def ours(kind: str) -> None:
            for _ in range(TIMES):
                fresh()
                self._ours(job, kind, "apply", "store-a4" if letter == "a" else "store-b", target, "--point", "1")
                self._same(new.stem, target)

        def rsync() -> None:
            fresh()
            self._time(job, "rsync", lambda: self.rsync.apply(new, target))
            self._same(new.stem, target)

        def commit() -> None:
            overlay = self.qemu.overlay(self._disk("disk0"), new, letter)
            for _ in range(TIMES):
                fresh()
                self.qemu.aim(overlay, target)
                self._time(job, "qemu-img", lambda: self.qemu.commit(overlay, target))
                self._same(new.stem, target)
            overlay.unlink()

        theirs: list[tuple[peers.Peer, Callable[[], None]]] = [(self.rsync, rsync), (self.qemu, commit)]
        here = [(peer.name, do) for peer, do in theirs if peer in self.peers]
        self._in_turn(job, number, [*self._kinds(ours), *here])

    def _nbd(self, number: int) -> None:
        """From one socket to another, both served by nbdkit; the target is new for each."""

        def times(bring: Callable[[str, str], None]) -> Callable[[], None]:
            def do() -> None:
                for _ in range(TIMES):
                    made = self.out / "disk.raw"
                    made.unlink(missing_ok=True)
                    self._settle()
                    with bench_nbd.pair(self._disk("disk0"), made) as (source, target):
                        bring(source, target)
                    self._same("disk0", made)

            return do

        def ours(source: str, target: str) -> None:
            began = perf_counter()
            said = _said("benchmarks.bench_nbd", source, target, "--threads", max(self.threads, bench_nbd.THREADS))
            self.found.seconds["nbd"]["process"].append(perf_counter() - began)
            self.found.seconds["nbd"]["ours"].append(said["seconds"])

        def nbdcopy(source: str, target: str) -> None:
            words = f"nbd+unix:///?socket={source}", f"nbd+unix:///?socket={target}"
            self._time("nbd", "nbdcopy", lambda: self.nbdcopy.copy(*words))

        work: list[Turn] = [("ours", times(ours))]
        if self.nbdcopy in self.peers:
            work.append(("nbdcopy", times(nbdcopy)))
        self._in_turn("nbd", number, work)

    def _limits(self) -> None:
        """What the same threads reach on the parts of the work alone."""
        for what, disk in (("zstd", "disk0"), ("restore", "disk0"), ("scan", "disk1b")):
            words = [what, self._disk(disk), "--out", self.out / "limit.raw", "--threads", self.threads]
            with self.noted(f"limit {what}", "limit"):
                self._warm(disk)
                self.found.seconds[f"limit {what}"]["limit"].append(_said("benchmarks.limits", *words)["seconds"])
                if what == "restore":
                    self._same("disk0", self.out / "limit.raw")
        (self.out / "limit.raw").unlink(missing_ok=True)

    # --- one operation each ---------------------------------------------------------------------------------

    def _in_turn(self, job: str, number: int, work: list[Turn]) -> None:
        first = number % len(work)
        print(f"  {job}:", end="", file=sys.stderr, flush=True)
        for name, do in work[first:] + work[:first]:
            with self.noted(job, name):
                self._settle()
                self._warm(*SOURCES.get(job, ()))
                do()
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir()
            print(f" {name}", end="", file=sys.stderr, flush=True)
        self.results.write()

    def _settle(self) -> None:
        """Nobody pays for what another has left to write. Not sync: what others do on this machine is not ours."""
        peers.run("sync", "--file-system", self.folder)

    @contextlib.contextmanager
    def noted(self, job: str, who: str) -> Iterator[None]:
        """Whatever goes wrong with one program, the others are measured."""
        try:
            yield
        except Exception as err:
            self.found.troubles[f"{job}, {who}"] = f"{type(err).__name__}: {err}"
            print(f" ({job}, {who}: {err})", end="", file=sys.stderr, flush=True)

    def _store(self, name: str, kind: str) -> Path:
        return self.folder / (name if kind == "ours" else f"{name}-{kind}")

    def _ours(self, job: str, kind: str, what: str, store: str, disk: Path, *more: str | Path) -> None:
        began = perf_counter()
        if kind == "encrypted":
            more = (*more, "--key-file", self.folder / "key")
        said = _said("benchmarks.ours", what, self._store(store, kind), disk, "--threads", self.threads, *more)
        if kind == "ours":
            self.found.seconds[job]["process"].append(perf_counter() - began)
            self.found.peak[job] = max(self.found.peak.get(job, 0), said["peak_mib"])
        self.found.seconds[job][kind].append(said["seconds"])

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
        peers.run("cmp", self._disk(name), made)

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
        for what, disk, more in (("full", "disk.raw", ()), ("restore", "out.raw", ("--point", "0"))):
            with self.noted(f"sparse {what}", "ours"):
                self._ours(f"sparse {what}", "ours", what, "store-sparse/store", folder / disk, *more)
        shutil.rmtree(folder)

    def section(self, title: str, measure: Callable[[], str]) -> None:
        print(f"{title} ...", file=sys.stderr, flush=True)
        with self.noted(title, "ours"):
            try:
                self.results.sections[title] = measure()
            except LabError as err:  # a machine that is busy: a worker of the lab was not ready in time
                print(f"once more, for {err}", file=sys.stderr, flush=True)
                self.results.sections[title] = measure()
        self.results.write()


def _written_before(place: Path) -> None:
    """All of a file system's blocks are written once, as a datastore's are: whoever comes first to a part of a sparse
    image pays for the file system below, which has to find room for it."""
    if not place.is_mount():
        return
    with open(place / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):  # until there is no space
        while file.write(bytes(16 << 20)):
            pass
    peers.run("sync", "--file-system", place)
    (place / "filler").unlink()


def _said(module: str, *words: object) -> dict[str, float]:
    return dict(json.loads(peers.run(sys.executable, "-m", module, *words, cwd=REPOSITORY)))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=(os.cpu_count() or 2) + 1, help="one waits for its storage")
    parser.add_argument("--size", default="4G", help="of the disks: 4G, or less to try it")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-bench"))
    parser.add_argument(
        "--benji", type=Path, default=Path(".build/benji"), help="its virtual environment, made if it is not there"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks", help="where results.md goes")
    parser.add_argument("--no-lab", action="store_true", help="leave out the task path and the disk of four workers")
    parser.add_argument("--skip-diff", action="store_true", help="leave out the 10 TiB maps (2 GiB of disk, minutes)")
    args = parser.parse_args()
    if missing := sorted({package for tool, package in peers.NEEDS.items() if not peers.there(tool)}):
        sys.exit(f"missing: apt install {' '.join(missing)}")
    size = int(args.size[:-1]) * _UNITS[args.size[-1]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    args.folder.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    where = datastores.attach(args.folder, 8 * size)
    results = report.Results(args.out, args.runs, args.threads, args.size, where)
    try:
        _written_before(args.folder / "datastores")
        bench = Bench(args.folder / "datastores", args.threads, args.benji.absolute(), results)
        print("making the disks ...", file=sys.stderr, flush=True)
        try:
            make_disks.make(bench.disks, size)
            results.found.random = size // 100 // 2
        except subprocess.CalledProcessError as err:
            sys.exit(f"the disks to measure with could not be made: {err}")
        results.versions = bench.versions()
        for run in range(args.runs):
            print(f"round {run + 1} of {args.runs}:", end="", file=sys.stderr, flush=True)
            bench.run(run)
            results.done = run + 1
            print(file=sys.stderr)
        with bench.noted("the sparse disk", "ours"):
            bench.sparse()
        if not args.no_lab:
            bench.section("One disk by four workers", lambda: bench_spread.measure(min(size, 1 << 30), "20MB", 4))
            bench.section("The task path", lambda: bench_lab.measure(3 * args.runs))
            bench.section("The disks by the task path", lambda: bench_tasks.measure(bench.disks, args.runs))
    finally:
        for path in (args.folder / "datastores").glob("store*"):
            shutil.rmtree(path, ignore_errors=True)
        try:
            datastores.detach(args.folder)
        except LabError as err:
            results.found.troubles["the disks' file system"] = str(err)
    if not args.skip_diff:
        bench.section("Differences of large disks", lambda: bench_diff.report(args.folder / "diff", args.runs))
    results.write()
    print((args.out / "results.md").read_text())
    if failed := [what for what in results.found.troubles if what.endswith((", ours", ", encrypted"))]:
        sys.exit(f"ours failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
