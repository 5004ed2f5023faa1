"""Map segments: what a GiB of disk holds, as steps of places in packs. Immutable, named by digest and position."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import GRANULE, Extents
from workers.store import files, layout, place, sealing
from workers.store.crypt import PLAIN, Keys
from workers.store.layout import (
    BLOCK,
    FORMAT,
    HEAD_SIZE,
    MAPPED,
    MAPS_MAGIC,
    SEGMENT,
    SEGMENT_FROM,
    SEGMENT_HEAD,
    SEGMENT_HEAD_SIZE,
)
from workers.store.place import Fd, Path

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


class Since(NamedTuple):
    """Where a segment differs from the one that it was made from: a diff between the two needs no more than this."""

    parent: Name
    #: granules [starts[i], ends[i]), ascending; what lies outside has the same place in both
    starts: Starts
    ends: Starts


#: A segment with more changes than this does not list them: the list would weigh as much as the map.
MOST_CHANGES = 4096

EMPTY_MAP = SegmentMap(np.zeros(1, np.uint32), np.zeros(1, np.uint64), np.zeros(0, np.uint64))


def encode(segment: SegmentMap, since: Since | None = None, keys: Keys = PLAIN) -> bytes:
    origin = segment.packs.astype("<u8").tobytes()
    if since is not None:
        parent = since.parent
        origin += SEGMENT_FROM.pack(bytes.fromhex(parent.digest), parent.file, parent.offset, parent.length)
        origin += np.column_stack((since.starts, since.ends)).astype("<u4").tobytes()
    steps = segment.places.astype("<u8").tobytes() + segment.starts.astype("<u4").tobytes()
    steps = steps.ljust(-(-len(steps) // 8) * 8, b"\0")
    counts = (len(segment.starts), len(segment.packs), len(since.starts) if since is not None else 0)
    digests = (keys.digest(origin)[:16], keys.digest(steps)[:16])
    return SEGMENT_HEAD.pack(layout.SEGMENT_MAGIC, FORMAT, *counts, *digests) + origin + steps


def digest_of(body: bytes | memoryview, keys: Keys = PLAIN) -> str:
    """For a segment's name."""
    return keys.digest(body[:SEGMENT_HEAD_SIZE])[:16].hex()


class _Head(NamedTuple):
    steps: int
    packs: int
    changes: int
    origin: bytes
    rest: bytes

    @classmethod
    def of(cls, body: bytes | memoryview) -> _Head:
        return cls(*SEGMENT_HEAD.unpack_from(body)[2:])

    @property
    def places_at(self) -> int:
        return SEGMENT_HEAD_SIZE + 8 * self.packs + (SEGMENT_FROM.size + 8 * self.changes if self.changes else 0)


def _read_head(path: Path, name: Name, data: bytes | memoryview, keys: Keys) -> _Head:
    """Checked against the name's digest before anything in it is believed."""
    if len(data) < SEGMENT_HEAD_SIZE or digest_of(data, keys) != name.digest:
        raise layout.damaged(path, f"the map segment at byte {name.offset} is not what it was named after")
    magic, version, *_ = SEGMENT_HEAD.unpack_from(data)
    layout.check_magic(path, magic, layout.SEGMENT_MAGIC, version)
    return _Head.of(data)


def _check(path: Path, name: Name, data: bytes | memoryview, wanted: bytes, keys: Keys) -> None:
    if keys.digest(data)[:16] != wanted:
        raise layout.damaged(path, f"the map segment at byte {name.offset} is not what its head says")


def decode(path: Path, name: Name, body: bytes | memoryview, keys: Keys = PLAIN) -> SegmentMap:
    head = _read_head(path, name, body, keys)
    at = head.places_at
    _check(path, name, body[SEGMENT_HEAD_SIZE:at], head.origin, keys)
    _check(path, name, body[at : name.length], head.rest, keys)
    return SegmentMap(
        np.frombuffer(body, "<u4", head.steps, at + 8 * head.steps),
        np.frombuffer(body, "<u8", head.steps, at),
        np.frombuffer(body, "<u8", head.packs, SEGMENT_HEAD_SIZE),
    )


def since(parent: Name, before: Places, after: Places) -> Since | None:
    """How a segment came from `parent`, by the places of all granules; None when that is not worth a list."""
    differs = np.concatenate(([False], before != after, [False]))
    edges = np.flatnonzero(differs[1:] != differs[:-1]).astype(np.uint32)
    return Since(parent, edges[::2], edges[1::2]) if 0 < len(edges) <= 2 * MOST_CHANGES else None


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

    def __init__(self, folder: Path, run: str, keys: Keys = PLAIN) -> None:
        self.id = layout.fresh_id()
        self.path = maps_path(folder, self.id)
        self._lock = threading.Lock()
        self._fd: Fd | None = files.open_new(self.path)
        self._records: list[tuple[bytes, int, int]] = []
        self.size = HEAD_SIZE
        self._keys = keys
        head, self._sealing = layout.head(MAPS_MAGIC, self.id, run, keys)
        files.write_all(self._fd, head, 0)

    @property
    def empty(self) -> bool:
        return not self._records

    def append(self, segment: SegmentMap, since: Since | None = None) -> Name:
        body = encode(segment, since, self._keys)
        name = digest_of(body, self._keys)
        length = len(body) + sealing.longer(self._sealing)
        with self._lock:
            offset = self.size
            self._records.append((bytes.fromhex(name), offset, length))
            self.size += length
        assert self._fd is not None
        files.write_all(self._fd, sealing.seal(self._sealing, body, _Head.of(body).places_at, offset), offset)
        return Name(name, self.id, offset, length)

    def seal(self) -> None:
        records = np.array(self._records, dtype=MAPPED).tobytes()
        trailer, foot = layout.ending(len(self._records), self.size, records, self._keys, self._sealing)
        assert self._fd is not None
        files.write_all(self._fd, trailer + foot, self.size)
        fd, self._fd = self._fd, None
        files.finish(fd)

    def discard(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            files.give_up(fd, self.path)


class MapsFile:
    """A file of maps, for reading."""

    def __init__(self, path: Path, file_id: int, keys: Keys = PLAIN) -> None:
        self.path = path
        self._keys = keys
        self.fd = files.open_read(path)
        _, self._sealed = layout.read_head(path, files.read_all(self.fd, HEAD_SIZE, 0), MAPS_MAGIC, file_id, keys)

    def segment(self, name: Name, data: bytes | memoryview) -> SegmentMap:
        """Of the bytes that stand there."""
        return decode(self.path, name, sealing.unseal(self.path, self._sealed, data, name.offset), self._keys)

    def beginning(self, name: Name) -> tuple[bytes, _Head]:
        """A segment's bytes up to its places, checked."""
        data = sealing.beginning(self.path, self._sealed, self.fd, name.offset, name.length)
        head = _read_head(self.path, name, data, self._keys)
        if head.places_at > len(data):
            data = files.read_all(self.fd, head.places_at, name.offset)
        _check(self.path, name, data[SEGMENT_HEAD_SIZE : head.places_at], head.origin, self._keys)
        return data, head

    def segments(self) -> list[tuple[int, int]]:
        """Offset and length of each, by the trailer."""
        table = layout.read_trailer(self.path, self.fd, MAPPED, self._keys, self._sealed)
        return list(zip(table["offset"].tolist(), table["length"].tolist(), strict=True))

    def __del__(self, close: Callable[[Fd], None] = place.close) -> None:
        if (fd := getattr(self, "fd", None)) is not None:
            close(fd)


class Maps:
    """All maps of a store: loads segments by name, keeps a few. Thread-safe."""

    #: a segment of scattered 4 KiB changes may have 100,000 steps = 1.2 MB; of chunks it is 50 KB
    KEEP_SEGMENTS = 8
    KEEP_FILES = 32

    def __init__(self, folder: Path, keys: Keys = PLAIN) -> None:
        self.folder = folder
        self.keys = keys
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
        segment = file.segment(where, files.read_all(file.fd, where.length, where.offset))
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
                found[i] = file.segment(name, data[offset - start : offset - start + name.length])
            first = last + 1
        return found

    @staticmethod
    def _end(where: Sequence[Name | None], i: int) -> int:
        name = where[i]
        assert name is not None
        return name.offset + name.length

    def packs(self, name: str) -> list[int]:
        """The packs that a segment refers to, from its beginning alone: prune asks this of every segment."""
        data, head = self._beginning(name)
        return [int(p) for p in np.frombuffer(data, "<u8", head.packs, SEGMENT_HEAD_SIZE).tolist()]

    def since(self, name: str) -> Since | None:
        """Where the segment differs from the one that it was made from, from its beginning alone."""
        data, head = self._beginning(name)
        if not head.changes:
            return None
        at = SEGMENT_HEAD_SIZE + 8 * head.packs
        digest, *where = SEGMENT_FROM.unpack_from(data, at)
        listed = np.frombuffer(data, "<u4", 2 * head.changes, at + SEGMENT_FROM.size)
        return Since(Name(digest.hex(), *where), listed[::2], listed[1::2])

    def _beginning(self, name: str) -> tuple[bytes, _Head]:
        where = self.parse(name)
        return self.file(where.file).beginning(where)

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
        file = MapsFile(maps_path(self.folder, file_id), file_id, self.keys)
        with self._lock:
            self._files[file_id] = file
            while len(self._files) > self.KEEP_FILES:
                self._files.popitem(last=False)
        return file


def maps_path(folder: Path, file_id: int) -> Path:
    return folder / f"{file_id:016x}.maps"


def maps_ids(folder: Path) -> list[int]:
    return sorted(layout.ids(files.names(folder, ".maps"), ".maps"))


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
