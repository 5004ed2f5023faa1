"""Map segments: what a GiB of disk holds, as steps of places in packs. Immutable, named by digest and position."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import GRANULE, Extents
from workers.store import files, layout
from workers.store.layout import BLOCK, FORMAT, HEAD_SIZE, MAPPED, MAPS_MAGIC, SEGMENT, SEGMENT_HEAD, SEGMENT_HEAD_SIZE

#: granules of a segment
GRANULES = SEGMENT // GRANULE

#: A block that changes and was in more than this many parts is stored whole. 16 lone granules that changed, a quarter
#: of the block, leave 33 parts: storing it whole costs at most four times what the changes did, and what can be read
#: together stays together. A segment has at most 64 steps a block, in practice below half of that.
PARTS = 32

Starts = NDArray[np.uint32]
Places = NDArray[np.uint64]


class SegmentMap(NamedTuple):
    """Step i holds from granule starts[i] up to starts[i + 1] (or the segment's end); starts[0] is 0.

    places[i] is where its first granule is (layout.py); the next granules follow in the same blob. 0 = zeroes.
    """

    starts: Starts
    places: Places
    #: ids of the packs that places refer to, none twice, none unused
    packs: NDArray[np.uint64]


EMPTY_MAP = SegmentMap(np.zeros(1, np.uint32), np.zeros(1, np.uint64), np.zeros(0, np.uint64))


class Name(NamedTuple):
    """Where a segment is and what it must hash to: no index is needed, and a manifest vouches for its maps."""

    digest: str
    file: int
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.digest}-{self.file:016x}-{self.offset:x}-{self.length:x}"

    @classmethod
    def parse(cls, text: str) -> Name:
        """Raises ValueError."""
        digest, file, offset, length = text.split("-")
        if len(digest) != 32 or len(file) != 16:
            raise ValueError(f"{text!r} is not the name of a map segment")
        return cls(digest, int(file, 16), int(offset, 16), int(length, 16))


def encode(segment: SegmentMap) -> bytes:
    head = SEGMENT_HEAD.pack(layout.SEGMENT_MAGIC, FORMAT, len(segment.starts), len(segment.packs), 0)
    packs = segment.packs.astype("<u8").tobytes()
    head += layout.digest(head + packs)[:16]
    body = b"".join(
        (
            head.ljust(SEGMENT_HEAD_SIZE, b"\0"),
            packs,
            segment.places.astype("<u8").tobytes(),
            segment.starts.astype("<u4").tobytes(),
        )
    )
    return body.ljust(-(-len(body) // 8) * 8, b"\0")


def decode(path: Path, name: Name, body: bytes | memoryview) -> SegmentMap:
    """Checked against the name's digest before anything in it is believed."""
    if len(body) != name.length or layout.digest(body)[:16].hex() != name.digest:
        raise layout.damaged(path, f"the map segment at byte {name.offset} is not what it was named after")
    magic, version, steps, packs, _ = SEGMENT_HEAD.unpack_from(body)
    layout.check_magic(path, magic, layout.SEGMENT_MAGIC, version)
    at = SEGMENT_HEAD_SIZE
    return SegmentMap(
        np.frombuffer(body, "<u4", steps, at + 8 * packs + 8 * steps),
        np.frombuffer(body, "<u8", steps, at + 8 * packs),
        np.frombuffer(body, "<u8", packs, at),
    )


def dense(segment: SegmentMap) -> Places:
    """The place of each granule of the segment: 2 MiB, simple to change."""
    starts = segment.starts.astype(np.int64)
    lengths = np.diff(starts, append=GRANULES)
    places = np.repeat(segment.places, lengths)
    steps = np.repeat(starts, lengths)
    run = (np.arange(GRANULES, dtype=np.int64) - steps).astype(np.uint64)
    return np.where(places == 0, places, places + run)


def from_dense(places: Places, packs: Sequence[int]) -> SegmentMap:
    """The steps of a dense map, and of `packs` only those in use."""
    follows = places[1:] == places[:-1] + np.uint64(1)
    # A step ends with its blob, though the next slot's first place is numerically the next.
    follows &= (places[1:] & np.uint64(0xFF)) != 0
    follows &= places[:-1] != 0
    follows |= (places[1:] == 0) & (places[:-1] == 0)
    starts = np.flatnonzero(np.concatenate(([True], ~follows)))
    steps = places[starts]
    numbers = pack_numbers(steps)
    used = np.unique(numbers[numbers > 0])
    renumber = np.zeros(len(packs) + 1, np.uint64)
    renumber[used] = np.arange(1, len(used) + 1, dtype=np.uint64)
    steps = (steps & KEEP) | (renumber[numbers] << np.uint64(layout.PLACE_PACK))
    ids = np.array(packs, np.uint64)[used.astype(np.int64) - 1] if len(used) else np.zeros(0, np.uint64)
    return SegmentMap(starts.astype(np.uint32), steps, ids)


#: everything of a place but the number of its pack
KEEP = np.uint64(layout.PLACE_PACKED | 0xFFFFFFFF)


def pack_numbers(places: Places) -> NDArray[np.int64]:
    """For each place 1 + its pack's index in the segment's list; 0 for zeroes."""
    return ((places & np.uint64(layout.PLACE_PACKED - 1)) >> np.uint64(layout.PLACE_PACK)).astype(np.int64)


class MapsWriter:
    """One open file of maps."""

    def __init__(self, folder: Path, run: str) -> None:
        self.id = layout.fresh_id()
        self.path = maps_path(folder, self.id)
        self._lock = threading.Lock()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._records: list[tuple[bytes, int, int]] = []
        self.size = HEAD_SIZE
        files.write_all(self._fd, layout.head(MAPS_MAGIC, self.id, run), 0)

    def append(self, segment: SegmentMap) -> Name:
        body = encode(segment)
        name = layout.digest(body)[:16]
        with self._lock:
            offset = self.size
            self._records.append((name, offset, len(body)))
            self.size += len(body)
        files.write_all(self._fd, body, offset)
        return Name(name.hex(), self.id, offset, len(body))

    def seal(self) -> None:
        trailer = np.array(self._records, dtype=MAPPED).tobytes()
        files.write_all(self._fd, trailer + layout.foot(len(self._records), self.size, trailer), self.size)
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                files.remove(self.path)


class MapsFile:
    """A file of maps, for reading."""

    def __init__(self, path: Path, file_id: int) -> None:
        self.path = path
        self.fd = files.open_read(path)
        layout.read_head(path, files.read_all(self.fd, HEAD_SIZE, 0), MAPS_MAGIC, file_id)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if (fd := getattr(self, "fd", -1)) >= 0:
            close(fd)


class Maps:
    """All maps of a store: loads segments by name, keeps a few. Thread-safe."""

    #: a segment of scattered 4 KiB changes may have 100,000 steps = 1.2 MB; of chunks it is 50 KB
    KEEP_SEGMENTS = 8
    KEEP_FILES = 32

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._files: OrderedDict[int, MapsFile] = OrderedDict()
        self._segments: OrderedDict[str, SegmentMap] = OrderedDict()

    def load(self, name: str) -> SegmentMap:
        """The segment called `name`; the empty name is a GiB of zeroes."""
        if not name:
            return EMPTY_MAP
        with self._lock:
            found = self._segments.get(name)
            if found is not None:
                self._segments.move_to_end(name)
                return found
        where = self.parse(name)
        file = self.file(where.file)
        segment = decode(file.path, where, files.read_all(file.fd, where.length, where.offset))
        with self._lock:
            self._segments[name] = segment
            while len(self._segments) > self.KEEP_SEGMENTS:
                self._segments.popitem(last=False)
        return segment

    def load_many(self, names: Sequence[str]) -> list[SegmentMap]:
        """Many segments at once, past the cache; what lies together in a file is read together."""
        where = [self.parse(name) if name else None for name in names]
        found: list[SegmentMap] = [EMPTY_MAP] * len(names)
        order = sorted((w.file, w.offset, i) for i, w in enumerate(where) if w is not None)
        first = 0
        while first < len(order):
            last, end = first, self._end(where, order[first][2])
            while last + 1 < len(order) and order[last + 1][:2] == (order[first][0], end):
                last += 1
                end = self._end(where, order[last][2])
            file, start = self.file(order[first][0]), order[first][1]
            data = memoryview(files.read_all(file.fd, end - start, start))
            for _, offset, i in order[first : last + 1]:
                name = where[i]
                assert name is not None
                found[i] = decode(file.path, name, data[offset - start : offset - start + name.length])
            first = last + 1
        return found

    @staticmethod
    def _end(where: Sequence[Name | None], i: int) -> int:
        name = where[i]
        assert name is not None
        return name.offset + name.length

    def packs(self, name: str) -> list[int]:
        """The packs that a segment refers to, from its head alone: prune asks this of every segment."""
        where = self.parse(name)
        file = self.file(where.file)
        data = files.read_all(file.fd, min(where.length, 4096), where.offset)
        if len(data) < SEGMENT_HEAD_SIZE:
            raise layout.damaged(file.path, f"it ends before the map segment at byte {where.offset}")
        magic, version, _, count, _ = SEGMENT_HEAD.unpack_from(data)
        layout.check_magic(file.path, magic, layout.SEGMENT_MAGIC, version)
        end = SEGMENT_HEAD_SIZE + 8 * count
        if end > where.length:
            raise layout.damaged(file.path, f"the head of the map segment at byte {where.offset} makes no sense")
        if end > len(data):
            data = files.read_all(file.fd, end, where.offset)
        wanted = data[SEGMENT_HEAD.size : SEGMENT_HEAD.size + 16]
        if layout.digest(data[: SEGMENT_HEAD.size] + data[SEGMENT_HEAD_SIZE:end])[:16] != wanted:
            raise layout.damaged(file.path, f"the checksum of the map segment's head at byte {where.offset} is wrong")
        return [int(p) for p in np.frombuffer(data, "<u8", count, SEGMENT_HEAD_SIZE).tolist()]

    def parse(self, name: str) -> Name:
        try:
            return Name.parse(name)
        except ValueError as err:
            raise layout.damaged(
                self.folder, f"a restore point refers to a map segment {name!r}, which is no name"
            ) from err

    def file(self, file_id: int) -> MapsFile:
        with self._lock:
            file = self._files.get(file_id)
            if file is not None:
                self._files.move_to_end(file_id)
                return file
        file = MapsFile(maps_path(self.folder, file_id), file_id)
        with self._lock:
            self._files[file_id] = file
            while len(self._files) > self.KEEP_FILES:
                self._files.popitem(last=False)
        return file


def maps_path(folder: Path, file_id: int) -> Path:
    return folder / f"{file_id:016x}.maps"


def maps_ids(folder: Path) -> list[int]:
    return [int(name.removesuffix(".maps"), 16) for name in files.names(folder, ".maps")]


def mapped(segment: SegmentMap, base: int) -> Extents:
    starts = segment.starts.astype(np.int64)
    ends = np.append(starts[1:], GRANULES)
    used = segment.places != 0
    return Extents.from_arrays(starts[used] * GRANULE + base, (ends - starts)[used] * GRANULE)


def fragmented(segment: SegmentMap) -> np.ndarray:
    """For each block whether it lies in more than PARTS parts."""
    starts = segment.starts[segment.places != 0].astype(np.int64)
    return np.bincount(starts * GRANULE // BLOCK, minlength=SEGMENT // BLOCK) > PARTS


def equal(a: SegmentMap, b: SegmentMap) -> bool:
    return (
        np.array_equal(a.starts, b.starts) and np.array_equal(a.places, b.places) and np.array_equal(a.packs, b.packs)
    )
