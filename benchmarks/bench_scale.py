"""Scale on paper and by simulation: stores of 100 TiB, disks of 10 TiB, from generated metadata and no real content.

python -m benchmarks.bench_scale              prints the tables that docs/scaling.md quotes
Manifests, map segments, packs' trailers and runs of the dedup index are made by the store's own writers, at two sizes:
what costs so much for each of a thing is told from what does not grow. Each figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_diff import base, changed
from benchmarks.ours import DISK, peak_mib
from workers.models import Disk, PointDisk, RestorePoint, VmConfig, VmIdentity
from workers.store import Store, index, layout, usage
from workers.store.layout import SEGMENT
from workers.store.maps import GRANULES, MapsWriter
from workers.store.needed import needed
from workers.store.packs import PackCache
from workers.store.points import decode, encode

REPOSITORY = Path(__file__).resolve().parent.parent
#: chunks in 1 TiB of content
CHUNKS = (1 << 40) // layout.BLOCK


def point(vm: str, seq: int, disks: list[list[str]]) -> RestorePoint:
    now = datetime.datetime.now(datetime.UTC)
    return RestorePoint(
        realm="scale",
        id=f"{seq:08d}-0000abcd",
        seq=seq,
        parent=f"{seq - 1:08d}-0000abcd" if seq > 1 else None,
        vm=VmIdentity(site="s", vcenter="v", instance_uuid=vm, bios_uuid="b", moref="vm-1", name=vm),
        run=f"{vm}-{seq}",
        fence=seq,
        created=now,
        data_time=now,
        consistency="quiesced",
        snapshot="snapshot-1",
        config=VmConfig(name=vm, guest_id="g", hardware_version="vmx-19", cpus=2, memory_mib=4096),
        disks=tuple(
            PointDisk(
                disk=Disk(id=f"{DISK}-{number}", key=2000 + number, label=f"Hard disk {number + 1}",
                          capacity=len(names) * SEGMENT, controller=1000, unit=number, file="[b] b.vmdk"),
                segments=tuple(names), segment_size=SEGMENT, mode="delta", reason="change tracking since the parent",
            )
            for number, names in enumerate(disks)
        ),
    )  # fmt: skip


# --- one disk -------------------------------------------------------------------------------------------------------


def of_a_disk(folder: Path, gib: int) -> dict[str, float]:
    """A disk of so many GiB, full of chunks: its maps, its manifest, and an increment with 163 changes in each GiB."""
    store = Store.create(folder / f"disk-{gib}")
    dice = np.random.default_rng(5)
    first, second = (MapsWriter(store.path / "maps", "scale") for _ in range(2))
    names, after = [], []
    for i in range(gib):
        names.append(str(first.append(base(i))))
        runs = [(start, 16) for start in np.sort(dice.choice(GRANULES // 16, 163, replace=False)).tolist()]
        runs = [(start * 16, length) for start, length in runs]
        after.append(str(second.append(*changed(base(i), names[-1], i, runs))))
    for writer in (first, second):
        writer.seal()
    a, b = (point("vm", 1 + i, [each]) for i, each in enumerate((names, after)))
    text, began = encode(b), time.process_time()
    (store.path / "points" / "vm").mkdir(parents=True)
    for each in (a, b):
        (store.path / "points" / "vm" / f"{each.seq:08d}.json").write_bytes(encode(each))
    decode(store.path / "points" / "vm" / "00000002.json", text)
    parsed, began = time.process_time() - began, time.process_time()
    found = store.diff(a.disks[0], b.disks[0])
    told, began = time.process_time() - began, time.process_time()
    backwards = store.diff(b.disks[0], a.disks[0])
    compared = time.process_time() - began
    assert found == backwards
    maps = sum(file.stat().st_size for file in (store.path / "maps").iterdir())
    return {"manifest, bytes": len(text), "maps, bytes": maps / 2, "manifest read, s": parsed, "diff, s": told,
            "diff step by step, s": compared, "ranges": len(found), "memory, MiB": peak_mib()}  # fmt: skip


# --- a store --------------------------------------------------------------------------------------------------------


def of_a_store(folder: Path, vms: int) -> dict[str, float]:
    """VMs with a disk of 20 GiB and 12 restore points, of which each changed 5 segments; then what prune reads."""
    store = Store.create(folder / f"store-{vms}")
    points_each, wrote = 12, time.process_time()
    whole = base(0)
    some, _ = changed(whole, f"{0:032x}-{1:016x}-1-1", 0, [(640, 16)])
    for vm in range(vms):
        names: list[str] = [""] * 20
        here = store.path / "points" / f"vm-{vm:05d}"
        here.mkdir()
        for seq in range(1, points_each + 1):
            writer = MapsWriter(store.path / "maps", "scale")
            for i in range(20) if seq == 1 else [(seq * 5 + k) % 20 for k in range(5)]:
                first = 2 * (vm * 20 + i) + 1
                packs = [first, first + 1, *([(1 << 40) + vm * points_each + seq] if seq > 1 else [])]
                segment = (some if seq > 1 else whole)._replace(packs=np.array(packs, np.uint64))
                names[i] = str(writer.append(segment))
            writer.seal()
            (here / f"{seq:08d}.json").write_bytes(encode(point(f"vm-{vm:05d}", seq, [names])))
    wrote = time.process_time() - wrote
    before, began = peak_mib(), time.process_time()
    refs = needed(store._points, store._maps)
    read, began = time.process_time() - began, time.process_time()
    segments = sum(1 for _ in refs.segments)
    usage.mark(store._maps, refs.segments, {})
    marked = time.process_time() - began
    return {"points": vms * points_each, "segments": segments, "packs": len(refs.packs), "made in, s": wrote,
            "read all points, s": read, "one pass over the maps, s": marked, "memory before, MiB": before,
            "memory, MiB": peak_mib()}  # fmt: skip


def of_an_index(folder: Path, keys: int) -> dict[str, float]:
    """A run of the dedup index of so many chunks, looked up in batches of 32, as a writer does."""
    store = Store.create(folder / f"index-{keys}")
    dice = np.random.default_rng(3)
    packs = np.arange(1, keys // 3000 + 2, dtype=np.uint64)
    sorted_keys = np.sort(dice.integers(0, 1 << 64, keys, dtype=np.uint64))
    slots = np.arange(keys, dtype=np.uint64)
    places = (slots // np.uint64(3000)) << np.uint64(32) | slots % np.uint64(3000)
    path = index.write_run(store.path / "index", index.Run(packs, sorted_keys, places))
    assert path is not None
    size = path.stat().st_size
    del sorted_keys, slots, places
    child = _alone(folder, f"lookup:{keys}")
    return {"bytes": size, "bytes a chunk": size / keys, **child}


def lookup(folder: Path, keys: int) -> dict[str, float]:
    store = Store.open(folder / f"index-{keys}")
    found = index.Index(store.path / "index", PackCache(store.path / "packs"))
    before = peak_mib()
    digests = [os.urandom(32) for _ in range(32 * 400)]
    began = time.process_time()
    for first in range(0, len(digests), 32):
        found.find(digests[first : first + 32])
    each = (time.process_time() - began) / len(digests)
    return {"lookup, us": each * 1e6, "memory before, MiB": before, "memory, MiB": peak_mib()}


def of_packs(folder: Path, count: int) -> dict[str, float]:
    """A folder of so many packs (empty files): what a commit does with it, and what listing it would cost."""
    packs = folder / f"packs-{count}"
    packs.mkdir(parents=True)
    for number in range(count):
        (packs / f"{number:016x}.pack").touch()
    began = time.process_time()
    there = set(index.pack_ids(packs))
    listed, began = time.process_time() - began, time.process_time()
    assert all((packs / f"{number:016x}.pack").exists() for number in range(0, count, count // 20))
    return {"packs": len(there), "listed, s": listed, "20 looked for, s": time.process_time() - began,
            "memory, MiB": peak_mib()}  # fmt: skip


PARTS: dict[str, tuple[Callable[[Path, int], dict[str, float]], tuple[int, int]]] = {
    "disk (GiB)": (of_a_disk, (128, 1024)),
    "store (VMs)": (of_a_store, (25, 200)),
    "index (chunks)": (of_an_index, (1 << 20, 1 << 23)),
    "folder (packs)": (of_packs, (17_000, 135_000)),
}


def _alone(folder: Path, what: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.bench_scale", "--folder", str(folder), "--part", what]
    done = subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _part(folder: Path, what: str) -> dict[str, float]:
    name, _, size = what.partition(":")
    if name == "lookup":
        return lookup(folder, int(size))
    return PARTS[name][0](folder, int(size))


def table(found: dict[int, dict[str, float]], name: str) -> list[str]:
    sizes = list(found)
    lines = [f"| {name} | {sizes[0]:,} | {sizes[1]:,} | grows |", "|---|---|---|---|"]
    for key in found[sizes[0]]:
        small, large = (found[size][key] for size in sizes)
        lines.append(f"| {key} | {_number(small)} | {_number(large)} | {large / small if small else 0:.1f} times |")
    return [*lines, ""]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-bench/scale"))
    parser.add_argument("--small", action="store_true", help="an eighth of the sizes, to try it")
    parser.add_argument("--vms", type=int, default=5000, help="for the catalogue and Redis")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_part(args.folder, args.part)))
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    for name, (_, sizes) in PARTS.items():
        wanted = [size // 8 if args.small else size for size in sizes]
        print("\n".join(table({size: _alone(args.folder, f"{name}:{size}") for size in wanted}, name)), flush=True)
    shutil.rmtree(args.folder)
    from benchmarks import bench_dispatch

    print(bench_dispatch.measure(args.vms))


if __name__ == "__main__":
    main()
