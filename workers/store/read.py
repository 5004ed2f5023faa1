"""One disk of a restore point as a Reader: each blob is read and decompressed once per batch, and always checked.

The exception is `peek`, for bytes that are only compared with others.
"""

from __future__ import annotations

import errno
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.errors import StoreDamaged, Transient
from workers.extents import GRANULE, Extents
from workers.models import PointDisk
from workers.point import Piece
from workers.store import crypt, diff, files, layout
from workers.store.layout import PACKED, SEGMENT, ZSTD
from workers.store.maps import Maps
from workers.store.packs import Pack, PackCache
from workers.store.unzstd import beginning, decompress

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

Ints = NDArray[np.int64]

#: Blobs of a pack that lie this close are fetched by one read: less than the cost of a second call or a seek.
GAP = 64 << 10
#: Stored bytes of one such read. With two threads, four of these are all that reading holds besides the result.
READ = 4 << 20
#: How far before and behind the last batch a batch counts as the next one, with several threads; and how much is
#: fetched ahead of it.
AHEAD = 2 * READ
#: Decoded scraps kept: a segment is repacked above 64 blobs of scraps (write.py), so a pass in disk order decodes
#: each of them once.
SCRAPS = 64 << 20


class Rows(NamedTuple):
    """A batch cut at the steps of the map. Bytes of the disk; `inside` is the byte within the blob."""

    offsets: Ints
    lengths: Ints
    #: 0 = zeroes, else position + 1 in `blobs`
    blob: Ints
    inside: Ints
    #: (pack id, slot), in the order of packs and slots
    blobs: list[tuple[int, int]]

    def users(self) -> tuple[list[int], list[int]]:
        """Numbers of rows, sorted by their blob, and where in that list the rows of each blob begin."""
        order = np.argsort(self.blob, kind="stable")
        return order.tolist(), np.searchsorted(self.blob[order], np.arange(1, len(self.blobs) + 2)).tolist()


class Run(NamedTuple):
    """Bytes `start` to `end` of a pack, fetched by one read for these numbers of `Rows.blobs`."""

    pack: Pack
    start: int
    end: int
    numbers: list[int]


#: (number in `Rows.blobs`, pack, slot, as stored) -> content
Unpack = Callable[[int, Pack, int, memoryview], memoryview]


class DiskReader:
    """Implements `workers.point.Reader`. Safe for several threads."""

    def __init__(
        self,
        maps: Maps,
        packs: PackCache,
        disk: PointDisk,
        *,
        held: object = None,
        carried: Callable[[int], None] | None = None,
    ) -> None:
        """`held` is what keeps the files of the disk's segments as long as this reader lives. `carried` is told of
        bytes before they are fetched; it may take its time."""
        self._carried = carried
        self.size = disk.disk.capacity
        self.held = held
        self._maps = maps
        self._packs = packs
        self._disk = disk
        self._scraps = _Scraps(SCRAPS)
        #: pack and byte that the last batch's reading came to
        self._came_to = (0, 0)

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return diff.allocated(self._maps, self._disk, start, end)

    def close(self) -> None:
        self._scraps = _Scraps(SCRAPS)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        try:
            return self._pieces(batch)
        except StoreDamaged as err:
            if getattr(self.held, "lapsed", False):
                raise Transient(
                    f"this reader was away for so long that others took it for gone, and what it read may have been "
                    f"deleted: it begins anew. It met: {err}"
                ) from err
            raise

    def _pieces(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        pieces: list[Piece] = []
        for segment, ranges in _by_segment(batch, self.size):
            rows = self._rows(segment, ranges)
            data: list[memoryview | None] = [None] * len(rows.offsets)
            self._fill(rows, data)
            pieces += map(Piece, rows.offsets.tolist(), rows.lengths.tolist(), data)
        return pieces

    def peek(self, batch: Sequence[tuple[int, int]], into: NDArray[np.uint8]) -> None:
        """The ranges, in order of the disk, one after the other in `into`; beyond the disk's end zeroes. NOT CHECKED
        against digests, for of a chunk only what comes before the end of the range is decompressed.

        Only to compare with: what equals the source is what the source has, and what differs is stored anew. A chunk
        that is damaged stays so for the next who reads it, and he is told.
        """
        held = [(offset, min(length, self.size - offset)) for offset, length in batch if offset < self.size]
        end = 0
        for segment, ranges in _by_segment(held, self.size):
            rows = self._rows(segment, ranges)
            start, end = end, end + int(rows.lengths.sum())
            self._look(rows, into[start:end])
        into[end:] = 0

    def _look(self, rows: Rows, into: NDArray[np.uint8]) -> None:
        order, borders = rows.users()
        at = (np.cumsum(rows.lengths) - rows.lengths).tolist()
        inside, lengths = rows.inside.tolist(), rows.lengths.tolist()
        wanted = np.zeros(len(rows.blobs) + 1, np.int64)
        np.maximum.at(wanted, rows.blob, rows.inside + rows.lengths)

        def unpack(number: int, pack: Pack, slot: int, stored: memoryview) -> memoryview:
            if pack.flags[slot] & PACKED:
                return decode(pack, slot, stored)
            return _unchecked(pack, slot, stored, int(wanted[number + 1]))

        for i in order[: borders[0]]:
            into[at[i] : at[i] + lengths[i]] = 0
        for number, content in self._contents(rows.blobs, unpack):
            found = np.frombuffer(content, np.uint8)
            for i in order[borders[number] : borders[number + 1]]:
                into[at[i] : at[i] + lengths[i]] = found[inside[i] : inside[i] + lengths[i]]

    def undecided(self, held: Sequence[Piece]) -> list[tuple[int, int]]:
        """Implements `workers.point.Digested`. Only packs' trailers are read; what shares a blob is left undecided."""
        left: list[tuple[int, int]] = []
        for piece in held:
            begun = len(left)
            for segment, ranges in _by_segment([(piece.offset, piece.length)], self.size):
                rows = self._rows(segment, ranges)
                found = zip(
                    *(part.tolist() for part in (rows.offsets, rows.lengths, rows.blob, rows.inside)), strict=True
                )
                for offset, length, blob, inside in found:
                    start = offset - piece.offset
                    data = None if piece.data is None else memoryview(piece.data)[start : start + length]
                    if self._proven(rows.blobs[blob - 1] if blob else None, inside, length, data):
                        continue
                    if len(left) > begun and sum(left[-1]) == offset:
                        left[-1] = (left[-1][0], left[-1][1] + length)
                    else:
                        left.append((offset, length))
        return left

    def _proven(self, blob: tuple[int, int] | None, inside: int, length: int, data: memoryview | None) -> bool:
        """Is `data` (None = zeroes) known to be these bytes of the blob (None = zeroes)?"""
        if blob is None:
            return data is None or not np.frombuffer(data, np.uint8).any()
        if data is None or inside:
            return False
        pack = self._pack(blob[0])
        whole = blob[1] < len(pack) and length == int(pack.raw[blob[1]])
        return whole and pack.keys.digest(data) == pack.digest(blob[1])

    def _rows(self, segment: int, ranges: list[tuple[int, int]]) -> Rows:
        """`ranges` cut at the borders of steps, in the order asked."""
        names = self._disk.segments
        found = self._maps.load(names[segment] if segment < len(names) else "")
        base = segment * SEGMENT
        asked = np.array(ranges, np.int64)
        from_, to = asked[:, 0] - base, asked[:, 0] + asked[:, 1] - base
        first = np.searchsorted(found.starts, from_ // GRANULE, side="right") - 1
        last = np.searchsorted(found.starts, -(-to // GRANULE), side="left")
        counts = last - first
        which = np.repeat(np.arange(len(ranges)), counts)
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        begin = found.starts[step].astype(np.int64) * GRANULE
        end = np.append(found.starts, SEGMENT // GRANULE)[step + 1].astype(np.int64) * GRANULE
        low, high = np.maximum(begin, from_[which]), np.minimum(end, to[which])
        places = found.places[step] & np.uint64(layout.PLACE_PACKED - 1)
        inside = (places & np.uint64(0xFF)).astype(np.int64) * GRANULE + low - begin
        keys, blob = np.unique(places >> np.uint64(layout.PLACE_SLOT), return_inverse=True)
        zeroes = int(len(keys) > 0 and keys[0] == 0)
        used = keys[zeroes:].astype(np.int64)
        packs = found.packs[(used >> 24) - 1].tolist() if len(used) else []
        blobs = list(zip(packs, (used & 0xFFFFFF).tolist(), strict=True))
        return Rows(low + base, high - low, blob.astype(np.int64) + 1 - zeroes, inside, blobs)

    def _fill(self, rows: Rows, data: list[memoryview | None]) -> None:
        order, borders = rows.users()
        inside, lengths = rows.inside.tolist(), rows.lengths.tolist()
        for number, content in self._contents(rows.blobs, _checked):
            users = order[borders[number] : borders[number + 1]]
            wanted = sum(lengths[i] for i in users)
            if wanted * 2 < len(content):
                # Do not keep a whole blob alive for the sake of a small part of it.
                for i in users:
                    data[i] = memoryview(bytes(content[inside[i] : inside[i] + lengths[i]]))
            else:
                for i in users:
                    data[i] = content[inside[i] : inside[i] + lengths[i]]

    def _contents(self, blobs: list[tuple[int, int]], unpack: Unpack) -> Iterator[tuple[int, memoryview]]:
        """(number, content) of each blob; neighbours in a pack share a read."""
        runs: list[Run] = []
        for number, (pack_id, slot) in enumerate(blobs):
            if (kept := self._scraps.get((pack_id, slot))) is not None:
                yield number, kept
                continue
            pack = runs[-1].pack if runs and runs[-1].pack.id == pack_id else self._pack(pack_id)
            if slot >= len(pack):
                raise layout.damaged(pack.path, f"a map refers to its blob {slot}, it holds {len(pack)}")
            offset, stored = int(pack.offsets[slot]), int(pack.stored[slot])
            last = runs[-1] if runs and runs[-1].pack is pack else None
            if last is None or not 0 <= offset - last.end <= GAP or offset + stored - last.start > READ:
                runs.append(Run(pack, offset, offset + stored, [number]))
            else:
                runs[-1] = Run(pack, last.start, offset + stored, [*last.numbers, number])
        self._advise(runs)
        for run in runs:
            yield from self._read(run, blobs, unpack)

    def _advise(self, runs: list[Run]) -> None:
        """The kernel fetches while we decompress: the batch's other runs, and where reading goes on, what comes next.
        Half the time of a restore from a cold store went into waiting without it."""
        for run in runs[1:]:
            files.soon(run.pack.fd, run.start, run.end - run.start)
        if runs:
            (pack, position), first, last = self._came_to, runs[0], runs[-1]
            if pack == first.pack.id and abs(first.start - position) <= AHEAD:
                files.soon(last.pack.fd, last.end, AHEAD)
            self._came_to = (last.pack.id, last.end)

    def _pack(self, pack_id: int) -> Pack:
        return self._packs.get(pack_id)

    def _read(self, run: Run, blobs: list[tuple[int, int]], unpack: Unpack) -> Iterator[tuple[int, memoryview]]:
        pack = run.pack
        if self._carried is not None:
            self._carried(run.end - run.start)
        data = memoryview(fetch(pack, run.start, run.end - run.start))
        for number in run.numbers:
            slot = blobs[number][1]
            offset = int(pack.offsets[slot]) - run.start
            content = unpack(number, pack, slot, data[offset : offset + int(pack.stored[slot])])
            if pack.flags[slot] & PACKED:
                self._scraps.put((pack.id, slot), content)
            yield number, content


class Padded:
    """A disk as a Reader to the end of its last granule, which the map holds padded with zeroes."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self.size = reader.size = -(-reader.size // GRANULE) * GRANULE
        self.allocated = reader.allocated
        self.read = reader.read
        self.peek = reader.peek
        self.undecided = reader.undecided
        self.close = reader.close


def opened(pack: Pack, slot: int, stored: memoryview) -> memoryview:
    """A blob without its seal, where the store is encrypted."""
    try:
        return pack.opened(slot, stored)
    except crypt.Broken as err:
        raise _bad_blob(pack, slot, "is not what was sealed with this store's key") from err


def fetch(pack: Pack, start: int, length: int) -> bytes:
    """Bytes of a pack as they lie there. What its device cannot read counts as damage."""
    try:
        return files.read_all(pack.fd, length, start)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        raise layout.damaged(pack.path, f"bytes {start} to {start + length} cannot be read: {err.strerror}") from err


def decode(pack: Pack, slot: int, stored: memoryview) -> memoryview:
    """The content of a blob, checked against its digest."""
    return unpacked(pack, slot, opened(pack, slot, stored))


def _checked(_: int, pack: Pack, slot: int, stored: memoryview) -> memoryview:
    return decode(pack, slot, stored)


def _unchecked(pack: Pack, slot: int, stored: memoryview, wanted: int) -> memoryview:
    """The first `wanted` bytes of a blob's content, good until this thread's next call."""
    content = opened(pack, slot, stored)
    if pack.flags[slot] & ZSTD:
        try:
            content = beginning(content, int(pack.raw[slot]), wanted)
        except ZstdError as err:
            raise _bad_blob(pack, slot, "does not decompress") from err
    if len(content) < wanted:
        raise _bad_blob(pack, slot, "is shorter than its record says")
    return content


def unpacked(pack: Pack, slot: int, packed: memoryview) -> memoryview:
    """The content of a blob that has no seal (any more), checked against its digest."""
    raw = int(pack.raw[slot])
    content = packed
    if pack.flags[slot] & ZSTD:
        try:
            content = decompress(packed, raw)
        except ZstdError as err:
            raise _bad_blob(pack, slot, "does not decompress") from err
    if len(content) != raw or pack.keys.digest(content) != pack.digest(slot):
        raise _bad_blob(pack, slot, "does not match its digest")
    return content


def _bad_blob(pack: Pack, slot: int, what: str) -> Exception:
    return layout.damaged(
        pack.path, f"blob {slot} at byte {int(pack.offsets[slot])} ({int(pack.stored[slot])} bytes) {what}"
    )


def _by_segment(batch: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The ranges of a batch by map segment, in order; what crosses a border is cut there."""
    current = -1
    ranges: list[tuple[int, int]] = []
    for offset, length in batch:
        if offset < 0 or offset + length > size:
            raise ValueError(f"bytes {offset} to {offset + length} of a disk of {size} were asked for")
        while length:
            segment = offset // SEGMENT
            part = min(length, (segment + 1) * SEGMENT - offset)
            if segment != current and ranges:
                yield current, ranges
                ranges = []
            current = segment
            ranges.append((offset, part))
            offset, length = offset + part, length - part
    if ranges:
        yield current, ranges


class _Scraps:
    """Decoded blobs of scraps, the last used ones, within a number of bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> memoryview | None:
        if not self._kept:
            return None
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], content: memoryview) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = content
            self._held += len(content)
            while self._held > self._most:
                self._held -= len(self._kept.popitem(last=False)[1])
