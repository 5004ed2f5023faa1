"""The bytes of a compaction: blobs in use, checked and copied into new packs, beside each its file of moves."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.extents import GRANULE
from workers.store import files, layout, moves
from workers.store.crypt import Keys
from workers.store.layout import ALIGN, ZSTD
from workers.store.packs import Blob, Pack, PackWriter
from workers.store.place import Path
from workers.store.read import opened, unpacked
from workers.store.usage import Used

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor

#: Stored bytes read and written at once.
BATCH = 8 << 20
#: Blobs written at once; below the reserve that a pack keeps under its limit.
BLOBS = 4096
#: Dead bytes between two blobs that are read along rather than skipped.
GAP = 64 << 10


class Pace:
    """At most so many bytes a second; 0 = as fast as it goes."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def spend(self, count: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now - 1) + count / self._rate
            if self._due > now:
                time.sleep(self._due - now)


class _Waiting(NamedTuple):
    blob: Blob
    pack: int
    slot: int
    live: NDArray[np.bool_]


class Mover:
    """Writes new packs. What `seal` returned is durable, together with its moves."""

    def __init__(self, packs: Path, folder: Path, run: str, pace: Pace, keys: Keys) -> None:
        self._packs = packs
        self._keys = keys
        self._folder = folder
        self._run = run
        self._pace = pace
        self._compress = ZstdCompressor(level=1)
        self._out = files.buffer(BATCH + layout.SCRAP + ALIGN)
        self._filled = 0
        self._waiting: list[_Waiting] = []
        self._pack: PackWriter | None = None
        self._records: list[tuple[int, int, int, bytes]] = []
        self._sealed: list[int] = []
        self.moved = 0

    def move(self, pack: Pack, used: Used) -> None:
        """All that is in use of a pack. Raises `StoreDamaged` when it cannot be read: then it must stay where it is."""
        counts = used.live()
        sizes = np.diff(used.begins)
        for slots, data in self._read(pack, np.flatnonzero(counts > 0)):
            for slot, stored in zip(slots, data, strict=True):
                packed = opened(pack, slot, stored)
                content = unpacked(pack, slot, packed)  # checked, or damage would get a new name and a new digest
                live = used.granules[used.begins[slot] : used.begins[slot + 1]]
                raw, flags = int(pack.raw[slot]), int(pack.flags[slot])
                if counts[slot] == sizes[slot] or raw % GRANULE:
                    whole = np.ones(int(sizes[slot]), np.bool_)
                    self._put(pack.digest(slot), packed, raw, flags, pack.id, slot, whole)
                else:
                    kept = np.frombuffer(content, np.uint8).reshape(-1, GRANULE)[live].reshape(-1)
                    self._put_part(kept, flags & ~ZSTD, pack.id, slot, live)

    def _read(self, pack: Pack, slots: NDArray[np.int64]) -> Iterator[tuple[list[int], list[memoryview]]]:
        """In the order of the pack; what lies together is read together."""
        group: list[int] = []
        for slot in slots[np.argsort(pack.offsets[slots], kind="stable")].tolist():
            if group:
                end = int(pack.offsets[group[-1]] + pack.stored[group[-1]])
                length = int(pack.offsets[slot] + pack.stored[slot] - pack.offsets[group[0]])
                if length > BATCH or int(pack.offsets[slot]) - end > GAP:
                    yield group, self._fetch(pack, group)
                    group = []
            group.append(slot)
        if group:
            yield group, self._fetch(pack, group)

    def _fetch(self, pack: Pack, group: list[int]) -> list[memoryview]:
        start = int(pack.offsets[group[0]])
        length = int(pack.offsets[group[-1]] + pack.stored[group[-1]]) - start
        self._pace.spend(length)
        data = memoryview(files.read_all(pack.fd, length, start))
        at = [int(pack.offsets[slot]) - start for slot in group]
        return [data[a : a + int(pack.stored[slot])] for a, slot in zip(at, group, strict=True)]

    def _put_part(self, kept: NDArray[np.uint8], flags: int, pack: int, slot: int, live: NDArray[np.bool_]) -> None:
        raw = kept.data
        stored: bytes | memoryview = self._compress.compress(raw, ZstdCompressor.FLUSH_FRAME)
        if len(stored) < len(raw):
            flags |= ZSTD
        else:
            stored = raw
        self._put(self._keys.digest(kept), stored, len(raw), flags, pack, slot, live)

    def _put(
        self,
        digest: bytes,
        packed: bytes | memoryview,
        raw: int,
        flags: int,
        pack: int,
        slot: int,
        live: NDArray[np.bool_],
    ) -> None:
        size = len(packed) + self._keys.room
        if self._filled + size > len(self._out) - ALIGN or len(self._waiting) >= BLOBS:
            self._write()
        self._out[self._filled : self._filled + len(packed)] = packed
        self._filled += size
        self._waiting.append(_Waiting(Blob(digest, size, raw, flags), pack, slot, live))

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._pack is None:
            self._pack = PackWriter(self._packs, self._run, self._keys)
        end = -(-self._filled // ALIGN) * ALIGN
        self._out[self._filled : end] = bytes(end - self._filled)
        blobs = [each.blob for each in self._waiting]
        first, offset = self._pack.reserve(blobs)
        self._pace.spend(end)
        self._pack.write(self._out[:end], offset, first, blobs)
        self._records += [
            moves.record(each.pack, each.slot, first + number, each.live) for number, each in enumerate(self._waiting)
        ]
        self.moved += self._filled
        self._filled, self._waiting = 0, []
        if self._pack.full:
            self._close()

    def _close(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            pack.seal()
            files.sync_folder(self._packs)
            moves.write(self._folder, pack.id, self._run, self._records, self._keys)
            self._records = []
            self._sealed.append(pack.id)

    def seal(self) -> list[int]:
        """The new packs so far."""
        self._write()
        self._close()
        return list(self._sealed)

    def discard(self) -> None:
        if self._pack is not None:
            self._pack.discard()
            self._pack = None
