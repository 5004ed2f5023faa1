"""Disks and restore points for the store's tests: the content is a log the test keeps, never what the store says."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Sequence

import numpy as np

from workers.extents import EMPTY, GRANULE, Extents
from workers.models import Disk, PointDisk, RestorePoint, VmConfig, VmIdentity
from workers.point import BATCH, Piece, Reader
from workers.store import Segment, Store, StoreWriter
from workers.store.layout import SEGMENT

VM = "5029c8a0-1111-2222-3333-444444444444"


class MemoryDisk:
    """A sparse disk: granule number -> 4 KiB. Implements Reader; remembers what was read."""

    def __init__(self, size: int, granules: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.granules = dict(granules or {})
        self.asked = 0

    def copy(self) -> MemoryDisk:
        return MemoryDisk(self.size, self.granules)

    def put(self, offset: int, data: bytes) -> None:
        assert offset % GRANULE == 0
        data = data.ljust(-(-len(data) // GRANULE) * GRANULE, b"\0")
        for i in range(0, len(data), GRANULE):
            self.granules[(offset + i) // GRANULE] = data[i : i + GRANULE]

    def content(self, offset: int, length: int) -> bytes:
        first, last = offset // GRANULE, -(-(offset + length) // GRANULE)
        whole = b"".join(self.granules.get(g, bytes(GRANULE)) for g in range(first, last))
        return whole[offset - first * GRANULE : offset - first * GRANULE + length]

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return Extents.of((g * GRANULE, GRANULE) for g in self.granules).clip(start, self.size if end is None else end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        self.asked += sum(length for _, length in batch)
        return [Piece(offset, length, self.content(offset, length)) for offset, length in batch]

    def close(self) -> None:
        pass

    def differs(self, other: MemoryDisk | None) -> Extents:
        """The truth: granules whose bytes differ."""
        zero, mine, theirs = bytes(GRANULE), self.granules, other.granules if other else {}
        changed = [g for g in mine.keys() | theirs.keys() if mine.get(g, zero) != theirs.get(g, zero)]
        return Extents.of((g * GRANULE, GRANULE) for g in changed).clip(0, self.size)


def noise(length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def identity(vm: str = VM) -> VmIdentity:
    return VmIdentity(site="a", vcenter="vc", instance_uuid=vm, bios_uuid="b", moref="vm-1", name="web")


def disk_model(size: int, disk_id: str = "disk-1") -> Disk:
    return Disk(
        id=disk_id, key=2000, label="Hard disk 1", capacity=size, controller=1000, unit=0, file="[ds] web/web.vmdk"
    )


def point_disk(size: int, names: Sequence[str], disk_id: str = "disk-1") -> PointDisk:
    return PointDisk(
        disk=disk_model(size, disk_id), segments=tuple(names), segment_size=SEGMENT, mode="full", reason="a test"
    )


def make_point(parent: RestorePoint | None, run: str, disks: Sequence[PointDisk], vm: str = VM) -> RestorePoint:
    seq = parent.seq + 1 if parent else 1
    now = datetime.datetime.now(datetime.UTC)
    return RestorePoint(
        realm="r",
        id=f"{seq:08d}-{secrets.token_hex(4)}",
        seq=seq,
        parent=parent.id if parent else None,
        vm=identity(vm),
        run=run,
        fence=1,
        created=now,
        data_time=now,
        consistency="powered-off",
        snapshot="snapshot-1",
        config=VmConfig(name="web", guest_id="g", hardware_version="vmx-19", cpus=1, memory_mib=1024),
        disks=tuple(disks),
    )


def write_disk(
    writer: StoreWriter,
    source: Reader,
    candidates: Extents,
    parent: PointDisk | None = None,
    *,
    threads: int = 2,
    mode: str = "delta",
    exact: Extents = EMPTY,
) -> tuple[PointDisk, list[Segment]]:
    made = [
        writer.segment(
            i,
            size=source.size,
            source=source,
            candidates=candidates,
            parent=parent,
            threads=threads,
            mode=mode,
            exact=exact,
        )
        for i in range(-(-source.size // SEGMENT))
    ]
    return point_disk(source.size, [s.name for s in made]), made


def backup(
    store: Store,
    source: Reader,
    candidates: Extents | None = None,
    *,
    vm: str = VM,
    run: str | None = None,
    mode: str = "delta",
    threads: int = 2,
    exact: Extents = EMPTY,
) -> tuple[RestorePoint, list[Segment]]:
    """One restore point on top of the newest: full when there is none."""
    parent = store.newest(vm)
    run = run or f"run-{secrets.token_hex(4)}"
    with store.writer(run) as writer:
        disk, made = write_disk(
            writer,
            source,
            candidates if candidates is not None else source.allocated(),
            parent.disks[0] if parent else None,
            threads=threads,
            mode=mode,
            exact=exact,
        )
        point = make_point(parent, run, [disk], vm)
        writer.commit(point)
    return point, made


def assert_content(store: Store, point: RestorePoint, truth: MemoryDisk, *, size: int = BATCH) -> None:
    """Every byte of the disk, read back in batches."""
    reader = store.reader(point, point.disks[0].disk.id)
    assert reader.size == truth.size
    allocated = store.allocated(point.disks[0])
    nonzero = truth.differs(None)
    assert not nonzero - allocated, "content outside of what the store calls allocated"
    for batch in (allocated | nonzero).batches(size):
        pieces = reader.read(batch)
        at = iter(pieces)
        for offset, length in batch:
            end = offset + length
            while offset < end:
                piece = next(at)
                assert piece.offset == offset
                data = bytes(piece.length) if piece.data is None else bytes(piece.data)
                assert len(data) == piece.length
                assert data == truth.content(offset, piece.length), f"wrong bytes at {offset}"
                offset += piece.length
        assert next(at, None) is None
