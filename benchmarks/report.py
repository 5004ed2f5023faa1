"""What was measured as a table with goals and ratios (results.md), and as charts (SVG)."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape


class Found:
    """job -> who -> a figure per round. Who is a program, "ours" (a live worker), "process" (the same, with Python's
    start), "encrypted" (as "ours", in a store that encrypts)."""

    def __init__(self) -> None:
        #: peer -> why it is not here
        self.absent: dict[str, str] = {}
        #: "job, who" -> what went wrong
        self.troubles: dict[str, str] = {}
        self.seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.stored: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.peak: dict[str, float] = {}
        #: bytes of (a) that are random, so that nobody can store them in less
        self.random = 0

    def median(self, job: str, who: str) -> float | None:
        figures = self.seconds[job][who] if job in self.seconds and who in self.seconds[job] else []
        return statistics.median(figures) if figures else None

    def trouble(self, job: str, who: str) -> str | None:
        return self.troubles.get(f"{job}, {who}")

    def bytes(self, job: str, who: str) -> float | None:
        figures = self.stored[job][who] if job in self.stored and who in self.stored[job] else []
        return statistics.median(figures) if figures else None


class Row(NamedTuple):
    title: str
    job: str
    #: what the peers did meanwhile: theirs is not told what changed, Benji is
    theirs: str
    #: peer -> how many times as fast we want to be
    goals: dict[str, float]


ROWS = (
    Row("full backup", "full", "full", {"borg": 2.2, "restic": 4, "benji": 3.5, "qemu-img": 2.2}),
    Row("incremental (a), change list in 4 KiB", "a4", "a", {"borg": 40, "restic": 60, "benji": 50}),
    Row("incremental (a), change list in 64 KiB", "a64", "a", {"borg": 8, "restic": 12}),
    Row("incremental (b), with change list", "b", "b", {"borg": 10, "restic": 15, "benji": 7}),
    Row("incremental (b), scan and compare", "scan", "b", {"borg": 2.5, "restic": 4}),
    Row("full restore, verified, to a new disk", "restore", "restore",
        {"borg": 4.5, "restic": 3, "benji": 3, "qemu-img": 3}),
    Row("apply (a) to an existing copy", "apply a", "apply a", {"rsync": 70, "qemu-img": 1.5}),
    Row("apply (b) to an existing copy", "apply b", "apply b", {"rsync": 30, "qemu-img": 1}),
    Row("nbd path, disk to disk, 4 connections each", "nbd", "nbd", {"nbdcopy": 0.87}),
)  # fmt: skip

SECTIONS = {
    "One disk by four workers": "Each worker is held to the same rate, as one VDDK connection would hold it.",
    "The task path": "A request through Redis and a worker to the commit, in a lab of two simulated vCenters.",
    "The disks by the task path": "The disks of the first table, each round in a lab and a store of its own.",
}
#: what a store that encrypts may take longer
SEALING = 0.10

#: our job, the limit, the goal
SHARES = (("full", "zstd", 0.75), ("restore", "restore", 0.70), ("scan", "scan", 0.85))
#: our job, the peers', what it is
STORED = (("full", "full", "full"), ("a4", "a", "(a), 4 KiB list"), ("a64", "a", "(a), 64 KiB list"), ("b", "b", "(b)"))
LIMITS = {
    "zstd": "zstd of the same blocks in memory",
    "restore": "decompress, verify and write past the page cache alone",
    "scan": "read and BLAKE3 alone",
}


def speed(found: Found) -> list[str]:
    lines = [
        "| job | ours, s | with Python's start, s | encrypted, s | its cost | peer | peer, s | ratio | goal | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        head = [row.title, *_own(found, row)]
        for peer, goal in row.goals.items():
            lines.append(f"| {' | '.join(head)} | {peer} | {_beside(found, row, peer, goal)} |")
            head = [""] * len(head)
    return lines


def _own(found: Found, row: Row) -> list[str]:
    """Our cells: seconds, with Python's start, encrypted, what that costs."""
    ours, process, sealed = (found.median(row.job, who) for who in ("ours", "process", "encrypted"))
    cells = ["" if figure is None else f"{figure:.2f}" for figure in (ours, process, sealed)]
    if ours is None and (found.trouble(row.job, "ours") or found.trouble(row.theirs, "ours")):
        cells[0] = "failed"
    cost = "" if ours is None or sealed is None else f"{sealed / ours - 1:+.0%}"
    if ours and sealed and sealed / ours - 1 > SEALING:
        cost += ", missed"
    return [*cells, cost]


def _beside(found: Found, row: Row, peer: str, goal: float) -> str:
    ours, theirs = found.median(row.job, "ours"), found.median(row.theirs, peer)
    if peer in found.absent:
        return f"not here | | {goal:g} | "
    if theirs is None:
        return f"{'failed' if found.trouble(row.theirs, peer) else ''} | | {goal:g} | "
    if ours is None:
        return f"{theirs:.2f} | | {goal:g} | "
    ratio = theirs / ours
    return f"{theirs:.2f} | {ratio:.{1 if ratio >= 2 else 2}f} | {goal:g} | {'' if ratio >= goal else 'missed'}"


def stored(found: Found) -> list[str]:
    names = [name for name in ("borg", "restic", "benji", "qemu-img") if found.bytes("full", name) is not None]
    lines = [f"| stored, MiB | ours | {' | '.join(names)} |", "|---|" + "---|" * (len(names) + 1)]
    for job, theirs, title in STORED:
        cells = [found.bytes(job, "ours"), *(found.bytes(theirs, name) for name in names)]
        lines.append(f"| {title} | " + " | ".join("" if c is None else f"{c / (1 << 20):.1f}" for c in cells) + " |")
    fine, coarse = found.bytes("a4", "ours"), found.bytes("a64", "ours")
    others = [size for name in names if (size := found.bytes("a", name)) is not None]
    if fine and coarse and others:
        fewer, more = min(others) / fine, coarse / fine
        lines += [
            "",
            f"(a) takes {fewer:.0f} times fewer bytes than with the best of the others (goal 35); with the 64 KiB list",
            f"{more:.2f} times those of the 4 KiB list (goal: at most 1.5).",
        ]
        if found.random:
            lines += [
                f"Half of what (a) rewrites is random, {found.random / (1 << 20):.1f} MiB that nobody can compress: "
                f"{min(others) / found.random:.0f} times is all that",
                "there is to be had beside the best of them.",
            ]
    return lines


def shares(found: Found) -> list[str]:
    lines = ["| share of the limit | limit, s | ours, s | share | goal | |", "|---|---|---|---|---|---|"]
    for job, limit, goal in SHARES:
        ours, alone = found.median(job, "ours"), found.median(f"limit {limit}", "limit")
        if ours is not None and alone is not None:
            share = alone / ours
            missed = "" if share >= goal else "missed"
            lines.append(f"| {job}: {LIMITS[limit]} | {alone:.2f} | {ours:.2f} | {share:.0%} | {goal:.0%} | {missed} |")
    return lines


def memory(found: Found) -> list[str]:
    lines = ["| peak memory of the whole process, MiB | full backup | restore |", "|---|---|---|"]
    for title, prefix in (("these disks", ""), ("a sparse disk of 1 TiB", "sparse ")):
        peaks = [found.peak.get(f"{prefix}{job}") for job in ("full", "restore")]
        if any(peaks):
            lines.append(f"| {title} | " + " | ".join("" if peak is None else f"{peak:.0f}" for peak in peaks) + " |")
    return lines


class Results:
    """results.md and its chart: written again after each step, so that a run that is stopped leaves what it has."""

    def __init__(self, folder: Path, runs: int, threads: int, size: str, where: str) -> None:
        self.found = Found()
        self._folder = folder
        self._runs, self._threads, self._size, self._where = runs, threads, size, where
        self.versions: list[str] = []
        #: rounds that are complete
        self.done = 0
        #: title -> a table; those that are not measured this time stay as they are on the page
        self.sections: dict[str, str] = self._kept()

    def _kept(self) -> dict[str, str]:
        page = self._folder / "results.md"
        parts = page.read_text().split("\n## ")[1:] if page.exists() else []
        kept = [part.split("\n", 1) for part in parts]
        return {title: text.strip().removeprefix(SECTIONS.get(title, "")).strip() + "\n" for title, text in kept}

    def write(self) -> None:
        lines = [
            "# Measured",
            "",
            self._machine(),
            "",
            "Medians in seconds. Sources are in the page cache, programs take turns within a round, all files are",
            "synced within the time, and every disk that came out was compared byte for byte. *Ours* is the store's",
            "library in a worker that runs; the next column has the start of Python in it, *encrypted* is the same",
            f"library in a store that encrypts (goal: at most {SEALING:.0%} more). Ratios are the peer's time by ours.",
            "(a): 1 % of the 4 KiB blocks rewritten, all over; (b): new files. `qemu-img` commits an overlay that was",
            "made before. Who is fast there has three turns in each round: our incremental backups, both who apply",
            "differences without reading all of the copy, and both who copy by NBD.",
            "",
            *(part for table in (speed, stored, shares, memory, troubles) for part in (*table(self.found), "")),
            *(("Why what misses its goal does so: [missed.md](missed.md).", "") if self._explained() else ()),
            "![How many times as fast](ratios.svg)",
            "",
        ]
        for title, text in self.sections.items():
            lines += [f"## {title}", "", *((SECTIONS[title], "") if title in SECTIONS else ()), text]
        for name, text in (("results.md", "\n".join(lines).rstrip() + "\n"), ("ratios.svg", chart(self.found))):
            fresh = self._folder / f".{name}"
            fresh.write_text(text)
            fresh.replace(self._folder / name)

    def _explained(self) -> bool:
        return (self._folder / "missed.md").exists()

    def _machine(self) -> str:
        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
        rounds = f"{self._runs} rounds" if self.done == self._runs else f"{self.done} of {self._runs} rounds so far"
        return (
            f"{os.cpu_count()} x {cpu}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}; "
            f"disks of {self._size}B; {rounds}, {self._threads} threads; everything on {self._where}; load of the "
            f"machine at the end {os.getloadavg()[1]:.1f}. Peers: {'; '.join(self.versions)}."
        )


def troubles(found: Found) -> list[str]:
    return [f"- {what}: {' '.join(why.split())}" for what, why in found.troubles.items()]


def chart(found: Found) -> str:
    """A bar for each peer of each row, on a scale of logarithms; a tick where the goal is."""
    bars = [
        (row.title, peer, theirs / ours, goal)
        for row in ROWS
        for peer, goal in row.goals.items()
        if (ours := found.median(row.job, "ours")) and (theirs := found.median(row.theirs, peer))
    ]
    left, wide, high = 330, 560, 18
    height = 46 + high * len(bars)

    def at(ratio: float) -> float:
        """From 0.5 to 200 times."""
        return left + wide * (math.log10(min(max(ratio, 0.5), 200)) - math.log10(0.5)) / math.log10(400)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="14">how many times as fast as the peer '
        "(tick: goal)</text>",
    ]
    for grid in (0.5, 1, 2, 5, 10, 20, 50, 100, 200):
        x = at(grid)
        parts.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="34" y2="{height}" stroke="#{"888" if grid == 1 else "ddd"}"/>'
        )
        parts.append(f'<text x="{x:.0f}" y="30" text-anchor="middle" fill="#666">{grid:g}</text>')
    last = ""
    for number, (title, peer, ratio, goal) in enumerate(bars):
        y = 38 + high * number
        one, other = sorted((at(1), at(ratio)))
        colour = "#2a7f4f" if ratio >= goal else "#c08a2c"
        parts.append(f'<text x="4" y="{y + 12}">{escape(title if title != last else "")}</text>')
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end" fill="#444">{escape(peer)}</text>')
        parts.append(
            f'<rect x="{one:.0f}" y="{y + 2}" width="{max(1, other - one):.0f}" height="{high - 5}" fill="{colour}"/>'
        )
        parts.append(f'<line x1="{at(goal):.0f}" x2="{at(goal):.0f}" y1="{y}" y2="{y + high - 1}" stroke="black" '
                     'stroke-width="2"/>')  # fmt: skip
        parts.append(f'<text x="{at(max(ratio, goal)) + 6:.0f}" y="{y + 12}">{ratio:.1f}</text>')
        last = title
    return "\n".join([*parts, "</svg>", ""])
