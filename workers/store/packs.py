"""Packs: append-only files of blobs with a trailer of digests. One writer each, sealed by one fsync."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from workers.errors import StoreDamaged
from workers.store import files, layout, place
from workers.store.layout import ALIGN, BLOB, HEAD_SIZE, PACK_MAGIC
from workers.store.place import Fd, Path


class Blob(NamedTuple):
    """What a pack's record says before its place is known."""

    digest: bytes
    stored: int
    raw: int
    flags: int


class PackWriter:
    """One open pack. `append` may be called by several threads; the bytes go to the disk outside the lock."""

    def __init__(self, folder: Path, run: str) -> None:
        self.id = layout.fresh_id()
        self.path = pack_path(folder, self.id)
        self._run = run
        self._lock = threading.Lock()
        self._fd: Fd | None = files.open_pack(self.path)
        self._position = HEAD_SIZE
        self._records: list[tuple[bytes, int, int, int, int]] = []
        self._write(layout.head(PACK_MAGIC, self.id, run), 0)

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

    def write(self, data: memoryview, offset: int) -> None:
        """At an offset that was reserved; `data` is aligned and padded."""
        assert self._fd is not None
        files.write_aligned(self._fd, data, offset)

    def seal(self) -> np.ndarray:
        """Trailer, fsync, close: the records. The name is durable once the folder is synced."""
        table = np.array(self._records, dtype=BLOB)
        trailer = table.tobytes()
        end = -(-(len(trailer) + layout.FOOT_SIZE) // ALIGN) * ALIGN
        self._write(
            trailer.ljust(end - layout.FOOT_SIZE, b"\0") + layout.foot(len(table), self._position, trailer),
            self._position,
        )
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

    def __init__(self, path: Path, pack_id: int) -> None:
        self.id = pack_id
        self.path = path
        self.fd = files.open_read(path)
        layout.read_head(path, files.read_all(self.fd, HEAD_SIZE, 0), PACK_MAGIC, pack_id)
        table = layout.read_trailer(path, self.fd, BLOB)
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

    def __del__(self, close: Callable[[Fd], None] = place.close) -> None:
        # Threads may still read through a pack that fell out of the cache: the last one closes it.
        if (fd := getattr(self, "fd", None)) is not None:
            close(fd)


class PackCache:
    """The packs in use. Bounded: 64 packs are 64 descriptors and, at 256 KiB a chunk, 10 MiB of records."""

    def __init__(self, folder: Path, most: int = 64) -> None:
        self.folder = folder
        self._most = most
        self._packs: OrderedDict[int, Pack] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pack_id: int) -> Pack:
        with self._lock:
            pack = self._packs.get(pack_id)
            if pack is not None:
                self._packs.move_to_end(pack_id)
                return pack
        pack = Pack(pack_path(self.folder, pack_id), pack_id)
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
        if pack.path.exists():
            return pack
        with self._lock:
            self._packs.pop(pack_id, None)
        return None


def pack_path(folder: Path, pack_id: int) -> Path:
    return folder / f"{pack_id:016x}.pack"


def pack_ids(folder: Path) -> list[int]:
    return [int(name.removesuffix(".pack"), 16) for name in files.names(folder, ".pack")]
