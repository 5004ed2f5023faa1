"""Packs: append-only files of blobs with a trailer of digests. One writer each, sealed by one fsync."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from workers.errors import StoreDamaged
from workers.store import crypt, files, layout, place
from workers.store.crypt import PLAIN, Keys
from workers.store.layout import ALIGN, BLOB, HEAD_SIZE, PACK_MAGIC
from workers.store.place import Fd, Path


class Blob(NamedTuple):
    """What a pack's record says before its place is known. `stored` includes what sealing adds."""

    digest: bytes
    stored: int
    raw: int
    flags: int


class PackWriter:
    """One open pack. `append` may be called by several threads; the bytes go to the disk outside the lock."""

    def __init__(self, folder: Path, run: str, keys: Keys = PLAIN) -> None:
        self.id = layout.fresh_id()
        self.path = pack_path(folder, self.id)
        self._run = run
        self._lock = threading.Lock()
        self._fd: Fd | None = files.open_pack(self.path)
        self._position = HEAD_SIZE
        self._records: list[tuple[bytes, int, int, int, int]] = []
        self._keys = keys
        head, self._sealing = layout.head(PACK_MAGIC, self.id, run, keys)
        self._write(head, 0)

    @property
    def full(self) -> bool:
        return self._position >= layout.PACK or len(self._records) >= layout.PACK_BLOBS - 8192

    @property
    def size(self) -> int:
        return self._position

    def reserve(self, blobs: Sequence[Blob]) -> tuple[int, int]:
        """(first slot, offset in the file) for blobs that lie one after the other."""
        length = sum(blob.stored for blob in blobs)
        with self._lock:
            slot, start = len(self._records), self._position
            offset = start
            for blob in blobs:
                self._records.append((blob.digest, offset, blob.stored, blob.raw, blob.flags))
                offset += blob.stored
            self._position = start + -(-length // ALIGN) * ALIGN
        return slot, start

    def write(self, data: memoryview, offset: int, slot: int, blobs: Sequence[Blob]) -> None:
        """What was reserved. `data` is aligned, padded and not sealed yet: behind each blob is room for its seal."""
        if self._sealing is not None:
            at = 0
            for number, blob in enumerate(blobs, slot):
                end = at + blob.stored
                data[at:end] = self._sealing.seal(data[at : end - crypt.TAG], crypt.BLOB, number)
                at = end
        assert self._fd is not None
        files.write_aligned(self._fd, data, offset)

    def seal(self) -> np.ndarray:
        """Trailer, fsync, close: the records. The name is durable once the folder is synced."""
        table = np.array(self._records, dtype=BLOB)
        trailer, foot = layout.ending(len(table), self._position, table.tobytes(), self._keys, self._sealing)
        end = -(-(len(trailer) + len(foot)) // ALIGN) * ALIGN
        self._write(trailer.ljust(end - len(foot), b"\0") + foot, self._position)
        assert self._fd is not None
        fd, self._fd = self._fd, None
        files.finish(fd)
        return table

    def discard(self) -> None:
        """Gives the pack up; nothing refers to it."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            files.give_up(fd, self.path)

    def _write(self, data: bytes, offset: int) -> None:
        view = files.buffer(len(data))
        view[: len(data)] = data
        assert self._fd is not None
        files.write_aligned(self._fd, view[: len(data)], offset)


class Pack:
    """A sealed pack, for reading: its descriptor and its records."""

    def __init__(self, path: Path, pack_id: int, keys: Keys = PLAIN) -> None:
        self.id = pack_id
        self.path = path
        self.keys = keys
        self.fd = files.open_read(path)
        _, self._sealed = layout.read_head(path, files.read_all(self.fd, HEAD_SIZE, 0), PACK_MAGIC, pack_id, keys)
        table = layout.read_trailer(path, self.fd, BLOB, keys, self._sealed)
        #: plain arrays: a record array's columns are strided, and reading them costs a cache line each
        self.digests = table["digest"].tobytes()
        self.offsets = table["offset"].astype(np.int64)
        self.stored = table["stored"].astype(np.int64)
        self.raw = table["raw"].astype(np.int64)
        self.flags = table["flags"].astype(np.int64)

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self, slot: int) -> bytes:
        return self.digests[32 * slot : 32 * slot + 32]

    def opened(self, slot: int, stored: memoryview) -> memoryview:
        """A blob as it was before it was sealed, still compressed. Raises `crypt.Broken`."""
        return stored if self._sealed is None else memoryview(self._sealed.open(stored, crypt.BLOB, slot))

    def __del__(self, close: Callable[[Fd], None] = place.close) -> None:
        # Threads may still read through a pack that fell out of the cache: the last one closes it.
        if (fd := getattr(self, "fd", None)) is not None:
            close(fd)


class PackCache:
    """The packs in use. Bounded: 64 packs are 64 descriptors and, at 256 KiB a chunk, 10 MiB of records."""

    def __init__(self, folder: Path, keys: Keys = PLAIN, *, most: int = 64) -> None:
        self.folder = folder
        self.keys = keys
        self._most = most
        self._packs: OrderedDict[int, Pack] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pack_id: int) -> Pack:
        with self._lock:
            pack = self._packs.get(pack_id)
            if pack is not None:
                self._packs.move_to_end(pack_id)
                return pack
        pack = Pack(pack_path(self.folder, pack_id), pack_id, self.keys)
        with self._lock:
            self._packs[pack_id] = pack
            while len(self._packs) > self._most:
                self._packs.popitem(last=False)
        return pack

    def find(self, pack_id: int) -> Pack | None:
        """None for a pack that is gone or damaged: dedup does without it.

        A pack that prune deleted may still be open here, and would be readable: its name decides.
        """
        try:
            pack = self.get(pack_id)
        except (StoreDamaged, OSError):
            return None
        if files.listed(pack.path):
            return pack
        with self._lock:
            self._packs.pop(pack_id, None)
        return None


def pack_path(folder: Path, pack_id: int) -> Path:
    return folder / f"{pack_id:016x}.pack"


def pack_ids(folder: Path) -> list[int]:
    return sorted(layout.ids(files.names(folder, ".pack"), ".pack"))
