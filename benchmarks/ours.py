"""One operation of ours on a benchmark disk, in a process of its own; prints its seconds without Python's start."""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import time
from pathlib import Path
from typing import Literal

from workers import plan
from workers.disks.file import FileReader, FileWriter
from workers.extents import EMPTY, Extents
from workers.models import Disk, PointDisk, RestorePoint, VmConfig, VmIdentity
from workers.store import Store
from workers.store.layout import SEGMENT
from workers.transfer import copy

Mode = Literal["full", "delta", "compare"]
VM = "5029c8a0-0000-0000-0000-000000000001"
DISK = "disk-1"


def descriptor(raw: Path) -> Path:
    """A VMDK descriptor beside a raw file, so that the real file carrier opens it."""
    path = raw.with_suffix(".vmdk")
    if not path.exists():
        sectors = raw.stat().st_size // 512
        path.write_text(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
            f'createType="vmfs"\nRW {sectors} VMFS "{raw.name}"\n'
        )
    return path


def backup(
    store: Store, raw: Path, candidates: Extents | None, parent: RestorePoint | None, threads: int, mode: Mode = "delta"
) -> None:
    """`candidates` None: what the file has allocated, and for a comparison what the parent has, too."""
    reader = FileReader(descriptor(raw))
    extents = reader.allocated() if candidates is None else candidates
    exact = EMPTY if candidates is None else plan.exact(candidates, reader.size)
    before = parent.disks[0] if parent is not None else None
    run = f"bench-{secrets.token_hex(4)}"
    with store.writer(run) as writer:
        made = [
            writer.segment(
                i,
                size=reader.size,
                source=reader,
                candidates=extents,
                parent=before,
                threads=threads,
                mode=mode,
                exact=exact,
            )
            for i in range(-(-reader.size // SEGMENT))
        ]
        writer.commit(_point(parent, run, reader.size, tuple(segment.name for segment in made)))
    reader.close()


def _point(parent: RestorePoint | None, run: str, size: int, names: tuple[str, ...]) -> RestorePoint:
    seq = parent.seq + 1 if parent is not None else 1
    now = datetime.datetime.now(datetime.UTC)
    disk = Disk(id=DISK, key=2000, label="Hard disk 1", capacity=size, controller=1000, unit=0, file="[bench] vm.vmdk")
    return RestorePoint(
        realm="bench",
        id=f"{seq:08d}-{secrets.token_hex(4)}",
        seq=seq,
        parent=parent.id if parent is not None else None,
        vm=VmIdentity(site="bench", vcenter="", instance_uuid=VM, bios_uuid="", moref="", name="bench"),
        run=run,
        fence=1,
        created=now,
        data_time=now,
        consistency="powered-off",
        snapshot="",
        config=VmConfig(name="bench", guest_id="", hardware_version="", cpus=1, memory_mib=1),
        disks=(PointDisk(disk=disk, segments=names, segment_size=SEGMENT, mode="full", reason="benchmark"),),
    )


def bring(store: Store, point: RestorePoint, base: RestorePoint | None, raw: Path, threads: int) -> None:
    """Restore (no base, onto an empty file) or apply the difference onto a copy of the base; synced."""
    extents = store.diff(base.disks[0] if base is not None else None, point.disks[0])
    reader, writer = store.reader(point, DISK), FileWriter(descriptor(raw))
    copy(reader, writer, extents, threads=threads)
    writer.flush()
    writer.close()


def changes(path: Path) -> Extents:
    lines = path.read_text().split()
    numbers = [int(word) for word in lines]
    return Extents.of(zip(numbers[::2], numbers[1::2], strict=True))


def peak_mib() -> float:
    """Of this process since it began; getrusage's figure starts with what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["full", "incremental", "scan", "restore", "apply"])
    parser.add_argument("store", type=Path)
    parser.add_argument("disk", type=Path)
    parser.add_argument("--changes", type=Path)
    parser.add_argument("--point", type=int, default=-1, help="number of the restore point, from 0")
    parser.add_argument("--base", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--key-file", type=Path, help="of an encrypted store")
    args = parser.parse_args()
    key = bytes.fromhex(args.key_file.read_text()) if args.key_file is not None else None
    began = time.perf_counter()
    if args.what == "full":
        backup(Store.create(args.store, key), args.disk, None, None, args.threads)
    else:
        store = Store.open(args.store, key)
        points = store.points(VM)
        if args.what == "incremental":
            backup(store, args.disk, changes(args.changes), points[-1], args.threads)
        elif args.what == "scan":
            backup(store, args.disk, None, points[-1], args.threads, "compare")
        elif args.what == "restore":
            with open(args.disk, "wb") as file:
                file.truncate(points[args.point].disks[0].disk.capacity)
            bring(store, points[args.point], None, args.disk, args.threads)
        else:
            bring(store, points[args.point], points[args.base], args.disk, args.threads)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": round(seconds, 3), "peak_mib": round(peak_mib(), 1)}))


if __name__ == "__main__":
    main()
