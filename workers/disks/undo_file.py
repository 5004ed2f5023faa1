"""Undo files: what ranges of a disk held before they were overwritten. Each range is saved once, and found by digests.

A file begins with a page that says whose it is. Records follow, each at a multiple of 4 KiB: a sector that describes
it, a table of ranges, the bytes (zeroes are ranges without bytes). Several workers append to one file: where a record
lies is settled under a lock, what is in it is written without one. A record counts when its digests are right. So a
save that was cut off is nothing, and one that was finished is never made again, whoever finds it.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from workers import faults
from workers.disks.file import FileLock
from workers.errors import NoSpace, NotFound, StoreDamaged
from workers.extents import EMPTY, GRANULE, Extents
from workers.point import Piece

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor, ZstdDecompressor
else:
    from backports.zstd import ZstdCompressor, ZstdDecompressor

Ints = NDArray[np.int64]

#: magic, id of the file, capacity of the disk; then a digest of these
_FIRST = struct.Struct("<8s16sQ")
#: magic, id of the file, own position, bytes of the table, of what is stored, of that unpacked, whether it is packed,
#: digest of the table, of what is stored; then a digest of these
_HEAD = struct.Struct("<8s16sQQQQQ16s32s")
_FIRST_MAGIC, _HEAD_MAGIC = b"USUNDO1\n", b"USUNDOr\n"
_DIGEST = 16
SECTOR, PAGE = 512, 4096
#: where in its sector a record says that its bytes are on stable storage, so that nobody need read them to know that
_MARK_AT, _MARK = 504, b"SAVED!\r\n"


class _Record(NamedTuple):
    position: int
    table: int
    stored: int
    raw: int
    packed: bool
    digest: bytes

    @property
    def data(self) -> int:
        return self.position + SECTOR + self.table

    @property
    def end(self) -> int:
        return self.data + self.stored

    @property
    def next(self) -> int:
        return -(-self.end // PAGE) * PAGE


def create(path: Path, capacity: int) -> None:
    """An undo file without a record, on stable storage, name included; one that is there stays as it is."""
    if path.exists():
        return
    first = _FIRST.pack(_FIRST_MAGIC, secrets.token_bytes(16), capacity)
    replace(path, (first + blake3(first).digest()[:_DIGEST]).ljust(PAGE, b"\0"))


def replace(path: Path, data: bytes) -> None:
    """The whole file or what was there before, on stable storage, name included."""
    fresh = path.with_name(path.name + ".tmp")
    with _words(path):
        with open(fresh, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class UndoFile:
    """The old content of one disk, as far as it was overwritten. A `Reader` of what was saved; threads may share it.

    What other workers append after the opening is not seen. Whoever saves holds the lock on the range of the disk that
    he is about to overwrite, and opens the undo file after he got it: so whatever was saved of that range is seen.
    """

    def __init__(self, path: Path, *, wait: float = 20.0) -> None:
        """Raises `NotFound`, and `StoreDamaged` when a record that once was whole is not any more."""
        self.path = path
        self._wait = wait
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as err:
            raise NotFound(f"the undo file {path} is gone, so the old content of that disk is not known") from err
        try:
            self._id, self.size = self._first()
            self._records: list[_Record] = []
            starts, lengths, owners, insides = self._scan()
            #: what it holds
            self.covered = Extents.from_arrays(starts, np.abs(lengths))
            self._index = _first_copies(starts, lengths, owners, insides, self.covered)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    @property
    def taken(self) -> int:
        """Bytes of its datastore."""
        return os.fstat(self._fd).st_blocks * 512

    # --- finding what is there ----------------------------------------------------------------------------------

    def _first(self) -> tuple[bytes, int]:
        page = os.pread(self._fd, _FIRST.size + _DIGEST, 0)
        if blake3(page[: _FIRST.size]).digest()[:_DIGEST] != page[_FIRST.size :] or page[:8] != _FIRST_MAGIC:
            raise self._damaged(0)
        _, own, capacity = _FIRST.unpack_from(page)
        return own, capacity

    def _scan(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Ranges of all whole records, in the order in which they were saved: start, length (negative: zeroes), number
        of the record, where in its unpacked bytes."""
        tables: list[tuple[Ints, Ints, Ints, Ints]] = [_NOTHING]
        position, end, lost = PAGE, os.fstat(self._fd).st_size, False
        unsynced: list[_Record] = []
        while position < end:
            sector = os.pread(self._fd, SECTOR, position)
            if not any(sector):  # its worker, or its host, went down before it wrote more than the file's length
                position, lost = position + PAGE, True
                continue
            record = self._record(sector, position)
            if record is None and not lost:
                with self._alone():  # another worker may have been at just this sector
                    sector = os.pread(self._fd, SECTOR, position)
                record = self._record(sector, position)
            if record is None:
                if not lost:
                    raise self._damaged(position)
                position += PAGE  # somewhere in what belonged to the record that was lost
                continue
            lost = False
            marked = sector[_MARK_AT:] == _MARK
            table = self._table(sector, record, marked)
            if table is not None:
                unsynced += [] if marked else [record]
                tables.append(self._ranges(table, len(self._records)))
                self._records.append(record)
            position = record.next
        if unsynced:  # their workers may have died before they did this, and their ranges are not saved again
            self._sync()
            for record in unsynced:
                os.pwrite(self._fd, _MARK, record.position + _MARK_AT)
        return _joined(tables)

    def _record(self, sector: bytes, position: int) -> _Record | None:
        if blake3(sector[: _HEAD.size]).digest()[:_DIGEST] != sector[_HEAD.size : _HEAD.size + _DIGEST]:
            return None
        magic, own, at, table, stored, raw, packed, _, digest = _HEAD.unpack_from(sector)
        if (magic, own, at) != (_HEAD_MAGIC, self._id, position):
            return None
        return _Record(position, table, stored, raw, bool(packed), digest)

    def _table(self, sector: bytes, record: _Record, marked: bool) -> bytes | None:
        """None for a record whose save was cut off: nothing of its ranges was overwritten."""
        table = os.pread(self._fd, record.table, record.position + SECTOR)
        whole = blake3(table).digest()[:_DIGEST] == _HEAD.unpack_from(sector)[7]
        if not marked:
            stored = self._pread(record.stored, record.data)
            return table if whole and blake3(stored).digest() == record.digest else None
        if not whole:
            raise self._damaged(record.position)
        return table

    @staticmethod
    def _ranges(table: bytes, number: int) -> tuple[Ints, Ints, Ints, Ints]:
        rows = np.frombuffer(table, np.int64).reshape(-1, 2)
        lengths = rows[:, 1]
        kept = np.maximum(lengths, 0)
        return rows[:, 0], lengths, np.full(len(rows), number, np.int64), np.cumsum(kept) - kept

    def _damaged(self, position: int) -> StoreDamaged:
        return StoreDamaged(
            f"the undo file {self.path} is damaged at byte {position}: the old content of that disk can not be had"
        )

    # --- saving -------------------------------------------------------------------------------------------------

    def save(self, pieces: Sequence[Piece]) -> None:
        """What a range holds now, on stable storage when this returns. The caller has the lock on that range.

        Raises `NoSpace`; then, as with every other error, nothing was saved.
        """
        table, raw = _parted(pieces)
        packed = ZstdCompressor(level=1).compress(raw, ZstdCompressor.FLUSH_FRAME) if len(raw) else b""
        if smaller := len(packed) < len(raw) - len(raw) // 16:
            raw_length, data = len(raw), packed
        else:
            raw_length, data = len(raw), raw
        with _words(self.path):
            record = self._reserve(table, data, raw_length, smaller)
            try:
                _pwrite(self._fd, data, record.data)
                faults.at("undo.written")
                self._sync()
            except OSError:
                self._give_back(record)
                raise
            faults.at("undo.synced")
            os.pwrite(self._fd, _MARK, record.position + _MARK_AT)
        faults.at("undo.saved")

    def _reserve(self, table: bytes, data: bytes, raw: int, packed: bool) -> _Record:
        """The record's place, its sector and its table.

        The file is made longer first: whoever comes after a crash, at whichever step, appends behind this record.
        """
        with self._alone():
            position = -(-os.fstat(self._fd).st_size // PAGE) * PAGE
            digest = blake3(data).digest()
            head = _HEAD.pack(
                *(_HEAD_MAGIC, self._id, position, len(table), len(data), raw, packed),
                *(blake3(table).digest()[:_DIGEST], digest),
            )
            record = _Record(position, len(table), len(data), raw, packed, digest)
            try:
                os.ftruncate(self._fd, record.next)
                _pwrite(self._fd, (head + blake3(head).digest()[:_DIGEST]).ljust(SECTOR, b"\0") + table, position)
            except OSError:
                os.ftruncate(self._fd, position)
                raise
        faults.at("undo.reserved")
        return record

    def _give_back(self, record: _Record) -> None:
        """The place of a record that could not be written, where nobody has appended since."""
        with self._alone():
            if os.fstat(self._fd).st_size == record.next:
                os.ftruncate(self._fd, record.position)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, FileLock(self.path).lock(0, 1, wait=self._wait):
            yield

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError:
            # The kernel reports it once, and keeps as clean what it could not write: the next one must ask the disk.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            raise

    # --- reading ------------------------------------------------------------------------------------------------

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self.covered.clip(start, self.size if end is None else end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        """What these ranges held, each a part of what was saved. Raises `StoreDamaged` when a digest is wrong."""
        starts, lengths, owners, insides = self._index
        unpacked: dict[int, memoryview] = {}
        pieces = []
        for offset, length in batch:
            end = offset + length
            row = int(np.searchsorted(starts, offset, side="right")) - 1
            while offset < end:
                start, kept = int(starts[row]), abs(int(lengths[row]))
                if row < 0 or not start <= offset < start + kept:
                    raise ValueError(f"offset {offset} of {self.path} was never saved")
                part = min(end, start + kept) - offset
                data = None
                if lengths[row] > 0:
                    number = int(owners[row])
                    if number not in unpacked:
                        unpacked[number] = self._unpacked(self._records[number])
                    inside = int(insides[row]) + offset - start
                    data = unpacked[number][inside : inside + part]
                pieces.append(Piece(offset, part, data))
                offset, row = offset + part, row + 1
        return pieces

    def _unpacked(self, record: _Record) -> memoryview:
        stored = self._pread(record.stored, record.data)
        if blake3(stored).digest() != record.digest:
            raise self._damaged(record.position)
        return memoryview(ZstdDecompressor().decompress(stored) if record.packed else stored)

    def _pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break  # shorter than it should be: its digest says so
            data += more
        return data


# --- helpers ----------------------------------------------------------------------------------------------------

_NONE = np.zeros(0, np.int64)
_NOTHING = (_NONE, _NONE, _NONE, _NONE)


def _joined(tables: Sequence[tuple[Ints, Ints, Ints, Ints]]) -> tuple[Ints, Ints, Ints, Ints]:
    starts, lengths, owners, insides = (np.concatenate(column) for column in zip(*tables, strict=True))
    return starts, lengths, owners, insides


def _first_copies(
    starts: Ints, lengths: Ints, owners: Ints, insides: Ints, covered: Extents
) -> tuple[Ints, Ints, Ints, Ints]:
    """By offset and disjoint. Where two records cover a byte, the first one counts.

    That they overlap is rare: a worker's host went down with a record that was not on stable storage, another worker
    saved the range, and then the first record came to light after all. Both hold the same.
    """
    if int(np.abs(lengths).sum()) > covered.total:
        seen, rows = EMPTY, []
        for start, length, owner, inside in zip(*(a.tolist() for a in (starts, lengths, owners, insides)), strict=True):
            for offset, part in Extents.of([(start, abs(length))]) - seen:
                rows.append((offset, part if length > 0 else -part, owner, inside + (offset - start) * (length > 0)))
            seen = seen | Extents.of([(start, abs(length))])
        table = np.array(rows, np.int64).reshape(-1, 4)
        starts, lengths, owners, insides = table[:, 0], table[:, 1], table[:, 2], table[:, 3]
    order = np.argsort(starts, kind="stable")
    return starts[order], lengths[order], owners[order], insides[order]


def _parted(pieces: Sequence[Piece]) -> tuple[bytes, bytes]:
    """The table of a record, and its bytes: zeroes of whole granules are in the table alone."""
    rows: list[tuple[int, int]] = []
    kept: list[memoryview] = []
    for piece in pieces:
        if piece.data is None:
            rows.append((piece.offset, -piece.length))
            continue
        data = memoryview(piece.data)
        for start, end, zero in _runs(np.frombuffer(data, np.uint8)):
            rows.append((piece.offset + start, start - end if zero else end - start))
            if not zero:
                kept.append(data[start:end])
    return np.array(rows, np.int64).tobytes(), b"".join(kept)


def _runs(data: NDArray[np.uint8]) -> Iterator[tuple[int, int, bool]]:
    """(start, end, are they zeroes) of granules in a row that are, or are not, zeroes."""
    whole = len(data) // GRANULE * GRANULE
    zero: NDArray[np.bool_] = ~data[:whole].reshape(-1, GRANULE).max(axis=1, initial=0).astype(np.bool_)
    if whole < len(data):
        zero = np.append(zero, not data[whole:].any())
    edges = [0, *(np.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist(), len(zero)]
    for first, last in pairwise(edges):
        if last > first:
            yield first * GRANULE, min(last * GRANULE, len(data)), bool(zero[first])


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


@contextmanager
def _words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"there is no space left at {path} to keep what the replica holds before it is overwritten; nothing of "
                'that range was overwritten. Free some, or do without: `undo = "never"` of its recovery target'
            ) from err
        raise
