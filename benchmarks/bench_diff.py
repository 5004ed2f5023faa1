"""Seconds that `Store.diff` takes between two points of a 10 TiB disk, by generated maps, in two shapes of change."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.ours import peak_mib
from workers.extents import GRANULE
from workers.models import Disk, PointDisk
from workers.store import Store
from workers.store.layout import BLOCK, PLACE_PACK, PLACE_PACKED, PLACE_SLOT, SEGMENT
from workers.store.maps import GRANULES, MapsWriter, Name, SegmentMap, Since, from_dense, since

SEGMENTS = 10 << 10
SPREAD = "spread over every segment"
#: from the newer to the older: no segment says where it comes from, so every step is compared
BACKWARDS = "the same, compared step by step"
PER_BLOCK = BLOCK // GRANULE
#: chunks of a pack of 256 MiB at a compression of 3
PER_PACK = 3000


def base(index: int) -> SegmentMap:
    """A GiB full of chunks, which lie in two or three packs."""
    blocks = np.arange(SEGMENT // BLOCK, dtype=np.uint64) + np.uint64(index * (SEGMENT // BLOCK))
    pack, slot = blocks // np.uint64(PER_PACK), blocks % np.uint64(PER_PACK)
    ids, number = np.unique(pack, return_inverse=True)
    places = (number.astype(np.uint64) + np.uint64(1)) << np.uint64(PLACE_PACK) | slot << np.uint64(PLACE_SLOT)
    starts = np.arange(SEGMENT // BLOCK, dtype=np.uint32) * np.uint32(PER_BLOCK)
    return SegmentMap(starts, places, ids + np.uint64(1))


def changed(segment: SegmentMap, name: str, index: int, runs: list[tuple[int, int]]) -> tuple[SegmentMap, Since | None]:
    """The segment with runs of granules in scraps of a later run's pack, as a writer makes it."""
    starts = segment.starts.astype(np.int64)
    places = np.repeat(segment.places, np.diff(starts, append=GRANULES))
    places += np.arange(GRANULES, dtype=np.uint64) % np.uint64(PER_BLOCK)
    before = places.copy()
    packs = [*segment.packs.tolist(), (1 << 40) + index // 30]
    done = 0
    for start, length in runs:
        at = np.arange(done, done + length, dtype=np.uint64)
        places[start : start + length] = (
            np.uint64(PLACE_PACKED | len(packs) << PLACE_PACK)
            | (np.uint64(index % 30 * 64) + at // np.uint64(256)) << np.uint64(PLACE_SLOT)
            | at % np.uint64(256)
        )
        done += length
    return from_dense(places, packs), since(Name.parse(name), before, places)


def shapes(dice: np.random.Generator) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """1 % of the disk in each: whole runs of it in 1 % of the segments; or 64 KiB here and there in every segment."""
    clustered = {
        int(i): [(int(start), 1024) for start in range(0, GRANULES, 1024)]
        for i in dice.choice(SEGMENTS, SEGMENTS // 100, replace=False)
    }
    per_segment = GRANULES // 100 // 16
    spread = {}
    for i in range(SEGMENTS):
        places = np.sort(dice.choice(GRANULES // 16, per_segment, replace=False)) * 16
        spread[i] = [(start, 16) for start in places.tolist()]
    return {"in clusters": clustered, SPREAD: spread}


def measure(folder: Path, runs: int) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    Store.create(folder)
    dice = np.random.default_rng(11)
    wanted = shapes(dice)
    writers = {name: MapsWriter(folder / "maps", "bench") for name in ("base", *wanted)}
    names: dict[str, list[str]] = {name: [] for name in writers}
    for index in range(SEGMENTS):
        segment = base(index)
        names["base"].append(str(writers["base"].append(segment)))
        for shape, where in wanted.items():
            same = index not in where
            made = names["base"][-1]
            if not same:
                made = str(writers[shape].append(*changed(segment, made, index, where[index])))
            names[shape].append(made)
    for writer in writers.values():
        writer.seal()
    (folder / "names.json").write_text(json.dumps(names))
    lines = []
    for shape, where in (*wanted.items(), (BACKWARDS, wanted[SPREAD])):
        said = [_in_a_process_of_its_own(folder, shape) for _ in range(runs)]
        truth = sum(length for parts in where.values() for _, length in parts) * GRANULE
        assert {one["total"] for one in said} == {truth}, (said, truth)
        seconds, busy, peak = (statistics.median(one[key] for one in said) for key in ("seconds", "busy", "peak_mib"))
        lines.append(
            f"| {shape} | {seconds:.2f} | {busy:.2f} | {peak:.0f} | {truth >> 30} GiB in {said[0]['ranges']} ranges |"
        )
    size = sum(file.stat().st_size for file in (folder / "maps").iterdir())
    shutil.rmtree(folder)
    return [*lines, f"\nThe maps take {size >> 20} MiB. Memory is the peak of the whole process.", ""]


def _in_a_process_of_its_own(folder: Path, shape: str) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.bench_diff", "--folder", str(folder), "--diff", shape]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def diff(folder: Path, shape: str) -> dict[str, float]:
    """What a worker does for `sync --plan`, from the two points' names of segments on."""
    names = json.loads((folder / "names.json").read_text())
    a, b = _disk(tuple(names["base"])), _disk(tuple(names[SPREAD if shape == BACKWARDS else shape]))
    if shape == BACKWARDS:
        a, b = b, a
    began, worked = time.perf_counter(), time.process_time()
    found = Store.open(folder).diff(a, b)
    return {
        "seconds": time.perf_counter() - began,
        "busy": time.process_time() - worked,
        "total": found.total,
        "ranges": len(found),
        "peak_mib": peak_mib(),
    }


def _disk(names: tuple[str, ...]) -> PointDisk:
    capacity = SEGMENTS * SEGMENT
    disk = Disk(id="d", key=2000, label="Hard disk 1", capacity=capacity, controller=1000, unit=0, file="[b] b.vmdk")
    return PointDisk(disk=disk, segments=names, segment_size=SEGMENT, mode="full", reason="benchmark")


def report(folder: Path, runs: int) -> str:
    return "\n".join(
        [
            "| 1 % of 10 TiB changed | diff, s | CPU, s | memory, MiB | found |",
            "|---|---|---|---|---|",
            *measure(folder, runs),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-bench/diff"))
    parser.add_argument("--diff", metavar="SHAPE", help="only this, of maps that are there")
    arguments = parser.parse_args()
    if arguments.diff:
        print(json.dumps(diff(arguments.folder, arguments.diff)))
    else:
        print(report(arguments.folder, arguments.runs))
