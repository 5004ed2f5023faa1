"""What one thread does with a batch of a segment: read, compare, cut, hash, compress, place. Own buffers, no queues."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import EMPTY, GRANULE, Extents
from workers.gather import gather, gather_some
from workers.point import BATCH, Piece, Reader
from workers.store import files, layout
from workers.store.crypt import PLAIN, Keys
from workers.store.layout import ALIGN, BLOCK, PACKED, SCRAP, SMALL, ZSTD
from workers.store.maps import GRANULES, Places
from workers.store.packs import Blob
from workers.store.read import Padded

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Most ranges of one batch: a batch of lone granules is 16 MiB of Python objects at 64 K of them, so it is cut here.
RANGES = 4096
#: Room for what a batch leaves: its chunks, compressed or raw, and a blob of scraps.
OUT = BATCH + 2 * SCRAP
_PER_BLOCK = BLOCK // GRANULE


class Part(NamedTuple):
    """A batch: ranges of the disk in order, whole granules; `source` is what of them the source is asked for."""

    ranges: list[tuple[int, int]]
    bytes: int
    source: bool


@dataclass
class Work:
    """One segment while it is being made. Threads write disjoint parts of `places`."""

    base: int
    size: int
    places: Places
    packs: list[int]
    #: the content before, None where that is nothing but zeroes
    before: Padded | None
    source: Reader
    #: what the source is asked for; the rest of a batch comes from `before`
    candidates: Extents
    #: much is expected to be as it was: digests are asked before anything is read from `before`
    scan: bool
    #: what of `candidates` is known to differ: it is not compared
    exact: Extents
    #: blocks that are stored whole as soon as one granule of them differs
    fragmented: Mask
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: dict[int, int] = field(default_factory=dict)
    #: chunks on their way, by digest: a thread that meets one again adds its granules to it
    claimed: dict[bytes, Pending] = field(default_factory=dict)
    read: int = 0
    stored: int = 0
    rewritten: int = 0
    differing: list[Extents] = field(default_factory=list)

    def join(self, digest: bytes, granules: Ints) -> bool:
        """Whether a chunk of that digest is on its way; then it will be the content of `granules` too."""
        with self.lock:
            pending = self.claimed.get(digest)
            if pending is not None:
                pending.users.append(granules)
            return pending is not None

    def number(self, pack_id: int) -> int:
        """The pack's number in this segment, from 1."""
        with self.lock:
            number = self.numbers.get(pack_id)
            if number is None:
                self.packs.append(pack_id)
                number = self.numbers[pack_id] = len(self.packs)
            return number

    def place(self, granules: Ints, pack_id: int, slot: int, *, packed: bool) -> None:
        first = self.number(pack_id) << layout.PLACE_PACK | slot << layout.PLACE_SLOT
        first |= layout.PLACE_PACKED if packed else 0
        self.places[granules] = np.uint64(first) + np.arange(len(granules), dtype=np.uint64)


class Pending(NamedTuple):
    """A blob in a lane's buffer whose place is not known yet, and the granules it is for."""

    blob: Blob
    users: list[Ints]


Find = Callable[[Sequence[bytes]], list[tuple[int, int] | None]]
Store = Callable[[Sequence[Blob], memoryview], tuple[int, int]]


class Lane:
    """One thread's buffers. Used for one segment after the other."""

    def __init__(self, find: Find, store: Store, keys: Keys = PLAIN) -> None:
        self._keys = keys
        self._find = find
        self._store = store
        self._compress = ZstdCompressor(level=1)
        self._now = np.empty(BATCH + BLOCK, np.uint8)
        self._was = np.empty(0, np.uint8)
        self._out = files.buffer(OUT)
        self._filled = 0
        self._pending: list[Pending] = []
        self._scraps = np.empty((SCRAP // GRANULE, GRANULE), np.uint8)
        self._scrap_users: list[Ints] = []
        self._scrap_count = 0

    def process(self, work: Work, part: Part) -> None:
        granules = _granules(part.ranges, work.base)
        whole = part.source and (work.before is None or _intersect(part.ranges, work.candidates) == part.ranges)
        alone = whole and work.before is not None and (work.scan or bool(work.exact))
        was = None
        if work.before is not None and not alone:
            was = (self._compared if whole else self._previous)(work, part.ranges)
        now = self._current(work, part, None if whole else was)
        lines = _lines(now)
        if part.source:
            if alone:
                changed = (self._unproven if work.scan else self._told)(work, part, now, granules)
            else:
                changed = _filled(lines) if was is None else (lines != _lines(was)).any(axis=1)
            self._report(work, granules[changed])
            changed |= self._rewrite(work, granules, changed)
        else:
            changed = np.ones(len(granules), bool)
            work.rewritten += part.bytes
        at = np.flatnonzero(changed)
        if work.before is not None:
            filled = _filled(lines[at])
            work.places[granules[at[~filled]]] = 0
            at = at[filled]
        self._cut(work, now, granules, at)

    def finish(self, work: Work) -> None:
        """Everything of the segment has its place after this."""
        self._pack_scraps(work)
        self._flush(work)

    def reset(self) -> None:
        """Forget what a failed segment left."""
        self._filled = self._scrap_count = 0
        self._pending, self._scrap_users = [], []

    # --- reading --------------------------------------------------------------------------------------------

    def _previous(self, work: Work, ranges: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """The content before, of which parts will be kept."""
        assert work.before is not None
        was = self._room(ranges)
        gather(work.before, ranges, was)
        return was

    def _compared(self, work: Work, ranges: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """The content before, only to compare with."""
        assert work.before is not None
        was = self._room(ranges)
        work.before.peek(ranges, was)
        return was

    def _room(self, ranges: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        if not len(self._was):
            self._was = np.empty(BATCH + BLOCK, np.uint8)
        return self._was[: sum(length for _, length in ranges)]

    def _unproven(self, work: Work, part: Part, now: NDArray[np.uint8], granules: Ints) -> Mask:
        """Which granules differ. Where a chunk's digest proves that it is as it was, it is not read from the store."""
        assert work.before is not None
        held, beyond, position = [], [], 0
        for offset, length in part.ranges:
            inside = min(length, max(0, work.before.size - offset))
            held.append(Piece(offset, inside, now[position : position + inside].data))
            beyond.append((offset + inside, length - inside))  # where the disk has grown
            position += length
        changed = np.zeros(len(granules), bool)
        if left := work.before.undecided([p for p in held if p.length]) + [more for more in beyond if more[1]]:
            at = np.searchsorted(granules, _granules(left, work.base))
            changed[at] = (_lines(now)[at] != _lines(self._compared(work, left))).any(axis=1)
        return changed

    def _told(self, work: Work, part: Part, now: NDArray[np.uint8], granules: Ints) -> Mask:
        """Which granules differ. What is known to the granule is not read from the store: of a chunk of 256 KiB one
        such granule would have all be read, decompressed and checked."""
        changed = np.ones(len(granules), bool)
        if left := list(Extents.of(part.ranges) - work.exact):
            at = np.searchsorted(granules, _granules(left, work.base))
            changed[at] = (_lines(now)[at] != _lines(self._compared(work, left))).any(axis=1)
        return changed

    def _current(self, work: Work, part: Part, was: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The content of the batch's ranges as it shall be: the source's, and where it is not asked what `was`."""
        if not part.source:
            assert was is not None
            return was
        into = self._now[: part.bytes]
        if was is None:
            read = gather(work.source, part.ranges, into)
        else:
            into[:] = was
            read = gather_some(work.source, part.ranges, _intersect(part.ranges, work.candidates), into)
        with work.lock:
            work.read += read
        return into

    def _report(self, work: Work, changed: Ints) -> None:
        if not len(changed):
            return
        first = np.flatnonzero(np.diff(changed, prepend=-2) != 1)
        last = np.append(first[1:], len(changed)) - 1
        starts, ends = changed[first] * GRANULE + work.base, (changed[last] + 1) * GRANULE + work.base
        with work.lock:
            work.differing.append(Extents(starts, np.minimum(ends, work.size)))

    def _rewrite(self, work: Work, granules: Ints, changed: Mask) -> Mask:
        """Unchanged granules of blocks that are stored whole, because they changed and were in too many parts."""
        blocks = granules // _PER_BLOCK
        touched = np.zeros(GRANULES // _PER_BLOCK, bool)
        touched[blocks[changed]] = True
        touched &= work.fragmented
        if not touched.any():
            return np.zeros(len(granules), bool)
        more = touched[blocks] & ~changed
        with work.lock:
            work.rewritten += int(more.sum()) * GRANULE
        return more

    # --- storing --------------------------------------------------------------------------------------------

    def _cut(self, work: Work, now: NDArray[np.uint8], granules: Ints, at: Ints) -> None:
        """Of each block what is kept (`at`): enough of it becomes a chunk, little of it goes to the scraps."""
        if not len(at):
            return
        lines = now.reshape(-1, GRANULE)
        blocks = granules[at] // _PER_BLOCK
        first = np.flatnonzero(np.diff(blocks, prepend=-1))
        counts = np.diff(first, append=len(at))
        big = counts * GRANULE >= SMALL
        chunks = []
        for start, count in zip(first[big].tolist(), counts[big].tolist(), strict=True):
            mine = at[start : start + count]
            low, high = int(mine[0]), int(mine[-1]) + 1
            data = lines[low:high] if high - low == count else lines[mine]
            chunks.append((granules[mine], data.reshape(-1)))
        self._chunks(work, chunks)
        small = at[np.repeat(~big, counts)]
        if len(small):
            self._keep_scraps(work, lines, granules, small)

    def _chunks(self, work: Work, chunks: list[tuple[Ints, NDArray[np.uint8]]]) -> None:
        digests = [self._keys.digest(data) for _, data in chunks]
        for (granules, data), digest, found in zip(chunks, digests, self._find(digests), strict=True):
            if found is not None:
                work.place(granules, *found, packed=False)
            elif not work.join(digest, granules):
                self._put(work, data, digest, granules, 0)

    def _keep_scraps(self, work: Work, lines: NDArray[np.uint8], granules: Ints, small: Ints) -> None:
        while len(small):
            fit = min(len(small), len(self._scraps) - self._scrap_count)
            taken, small = small[:fit], small[fit:]
            self._scraps[self._scrap_count : self._scrap_count + fit] = lines[taken]
            self._scrap_users.append(granules[taken])
            self._scrap_count += fit
            if self._scrap_count == len(self._scraps):
                self._pack_scraps(work)

    def _pack_scraps(self, work: Work) -> None:
        if not self._scrap_count:
            return
        data = self._scraps[: self._scrap_count].reshape(-1)
        users = np.concatenate(self._scrap_users)
        self._scrap_users, self._scrap_count = [], 0
        self._put(work, data, self._keys.digest(data), users, PACKED)

    def _put(self, work: Work, data: NDArray[np.uint8], digest: bytes, granules: Ints, flags: int) -> None:
        """Compressed into the lane's buffer; raw when that gains nothing."""
        raw = data.data
        stored: bytes | memoryview = self._compress.compress(raw, ZstdCompressor.FLUSH_FRAME)
        if len(stored) < len(raw):
            flags |= ZSTD
        else:
            stored = raw
        size = len(stored) + self._keys.room
        if self._filled + size > len(self._out) - ALIGN:
            self._flush(work)
        self._out[self._filled : self._filled + len(stored)] = stored
        self._filled += size
        pending = Pending(Blob(digest, size, len(raw), flags), [granules])
        self._pending.append(pending)
        if not flags & PACKED:
            with work.lock:
                work.claimed[digest] = pending

    def _flush(self, work: Work) -> None:
        if not self._pending:
            return
        end = -(-self._filled // ALIGN) * ALIGN
        self._out[self._filled : end] = bytes(end - self._filled)
        pack_id, slot = self._store([pending.blob for pending in self._pending], self._out[:end])
        with work.lock:
            # From here on others find these in the pack; who came before is in `users`.
            for pending in self._pending:
                work.claimed.pop(pending.blob.digest, None)
            work.stored += self._filled
        for number, pending in enumerate(self._pending):
            for granules in pending.users:
                work.place(granules, pack_id, slot + number, packed=bool(pending.blob.flags & PACKED))
        self._filled = 0
        self._pending = []


def parts(extents: Extents, size: int, *, source: bool = True) -> Iterator[Part]:
    """Batches of up to `size` bytes and one block; what lies in one block is in one batch."""
    ranges: list[tuple[int, int]] = []
    held, block, end = 0, -1, -1
    for offset, length in extents.cut(BLOCK):
        if offset // BLOCK != block:
            block = offset // BLOCK
            if ranges and (held + BLOCK > size or len(ranges) >= RANGES):
                yield Part(ranges, held, source)
                ranges, held, end = [], 0, -1
        if offset == end:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))
        held, end = held + length, offset + length
    if ranges:
        yield Part(ranges, held, source)


def _lines(content: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return content.view(np.uint64).reshape(-1, GRANULE // 8)


def _filled(lines: NDArray[np.uint64]) -> Mask:
    """Which granules are not zeroes."""
    return np.asarray(np.bitwise_or.reduce(lines, axis=1) != 0)


def _granules(ranges: Sequence[tuple[int, int]], base: int) -> Ints:
    """The numbers of the ranges' granules within the segment."""
    table = np.array(ranges, np.int64)
    first = (table[:, 0] - base) // GRANULE
    counts = table[:, 1] // GRANULE
    shift: Ints = np.repeat(first - (np.cumsum(counts) - counts), counts)
    return np.arange(len(shift), dtype=np.int64) + shift


def _intersect(ranges: Sequence[tuple[int, int]], extents: Extents) -> list[tuple[int, int]]:
    near = extents.clip(ranges[0][0], ranges[-1][0] + ranges[-1][1])
    return list(near & Extents.of(ranges)) if near else list(EMPTY)
