"""The bytes of every file of a store: magics, versions, records, checksums. docs/store-format.md is its prose."""

from __future__ import annotations

import re
import secrets
import struct

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from workers.errors import BadInput, StoreDamaged, StoreTooNew
from workers.store import place
from workers.store.place import Fd, Path

#: One version for all files. A reader refuses anything above it and reads everything up to it.
FORMAT = 1

#: A map segment describes this much of a disk. Format, not tuning: the diff relies on equal borders.
SEGMENT = 1 << 30
#: A chunk is what one aligned block of this size holds.
BLOCK = 256 << 10
#: Stored parts of a block below this are packed together with others: a blob of their own would cost a record,
#: an index entry and most of the compression.
SMALL = 64 << 10
#: Raw bytes of a blob of packed scraps, at most; `PLACE_OFFSET` below has room for exactly that many granules.
SCRAP = 1 << 20

#: A pack is closed once it is this big. Smaller wastes files and fsyncs, larger keeps more dead bytes alive.
PACK = 256 << 20
#: ... or has this many blobs, so that a trailer stays below 3.2 MiB whatever the data.
PACK_BLOBS = 1 << 16

#: O_DIRECT wants file offsets, lengths and memory at multiples of the device's block; 4 KiB suits all.
ALIGN = 4096

PACK_MAGIC = b"UStPACK\0"
MAPS_MAGIC = b"UStMAPS\0"
SEGMENT_MAGIC = b"UStSEGM\0"
INDEX_MAGIC = b"UStINDX\0"
MOVES_MAGIC = b"UStMOVE\0"
FOOT_MAGIC = b"UStFOOT\0"

#: magic, version, padding, id of the file, length of the run's name; then the name, zeroes, and the BLAKE3 of the rest
HEAD = struct.Struct("<8sIIQI")
HEAD_SIZE = ALIGN
#: magic, version, records, offset of the trailer, its BLAKE3
FOOT = struct.Struct("<8sIIQ32s")
#: 64 bytes at the very end of a file
FOOT_SIZE = 64

#: One blob of a pack.
BLOB = np.dtype([("digest", "V32"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("flags", "<u4")])
ZSTD = 1
#: several scraps in one blob: read through the cache, never found by the index
PACKED = 2
#: One segment of a file of maps.
MAPPED = np.dtype([("digest", "V16"), ("offset", "<u8"), ("length", "<u8")])

#: One blob that a compaction moved: from where, to which slot of the new pack, and which of its granules (a bit each,
#: the first in the lowest bit of the first byte): they lie one after the other in the new blob.
MOVED = np.dtype([("pack", "<u8"), ("slot", "<u4"), ("to", "<u4"), ("live", "V32")])

#: magic, version, steps, packs, changes, BLAKE3 (16 bytes) of the packs' ids and the changes, BLAKE3 (16 bytes) of the
#: places and the starts; then these four. The digest of the head alone is the segment's name: it vouches for all.
SEGMENT_HEAD = struct.Struct("<8sIIII16s16s8x")
SEGMENT_HEAD_SIZE = 64
#: before the changes, where there are any: the name of the segment that they lead from (digest, file, offset, length)
SEGMENT_FROM = struct.Struct("<16sQQQ")

#: A place: (number in the segment's list of packs + 1) << 32 | slot in the pack << 8 | granule in the blob; the top
#: bit says that the blob is packed from scraps. 0 = zeroes.
PLACE_PACK = 32
PLACE_SLOT = 8
PLACE_PACKED = 1 << 63

#: magic, version, packs, keys; then the packs' ids, the keys and their places
INDEX_HEAD = struct.Struct("<8sIIQ")
INDEX_HEAD_SIZE = 64

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@=+-]{0,127}")


def digest(data: bytes | memoryview | NDArray[np.uint8]) -> bytes:
    """BLAKE3-256."""
    return blake3(data.data if isinstance(data, np.ndarray) else data).digest()


def fresh_id() -> int:
    """A random 64-bit name, never reused. 0 is not one."""
    while not (value := secrets.randbits(64)):
        pass
    return value


def safe(part: str, what: str) -> str:
    """`part` when it can be a file's name on any file system, else `BadInput`."""
    if not _PART.fullmatch(part):
        raise BadInput(
            f"{part!r} cannot be {what} in a store: it becomes a file's name, so use up to 128 letters, digits "
            f"and . _ : @ = + - and begin with a letter or digit"
        )
    return part


def damaged(path: Path, what: str) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged: {what}. Nothing of it was used. Put the file back from a copy of the store. Without a "
        f"copy, `understudy store verify --deep` says which restore points are lost, and has the next backups store "
        f"anew what is needed of it"
    )


def too_new(path: Path, version: int) -> StoreTooNew:
    return StoreTooNew(
        f"{path} has format {version}, this program reads up to {FORMAT}: use the version of Understudy that wrote it, "
        f"or a newer one"
    )


def check_magic(path: Path, found: bytes, wanted: bytes, version: int) -> None:
    if found != wanted:
        raise damaged(path, f"it begins with {found!r} where {wanted!r} belongs")
    if version > FORMAT:
        raise too_new(path, version)
    if version < 1:
        raise damaged(path, f"it claims format {version}")


def head(magic: bytes, file_id: int, run: str) -> bytes:
    """The first 4 KiB of a pack or a file of maps. The run is for people and for prune's good manners."""
    name = run.encode()
    body = (HEAD.pack(magic, FORMAT, 0, file_id, len(name)) + name).ljust(HEAD_SIZE - 32, b"\0")
    return body + digest(body)


def read_head(path: Path, data: bytes, magic: bytes, file_id: int) -> str:
    """The run that wrote the file."""
    if len(data) < HEAD_SIZE:
        raise damaged(path, f"it ends after {len(data)} bytes, within its head")
    found, version, _, named, length = HEAD.unpack_from(data)
    check_magic(path, found, magic, version)
    if digest(data[: HEAD_SIZE - 32]) != data[HEAD_SIZE - 32 : HEAD_SIZE]:
        raise damaged(path, "the checksum of its head does not match")
    if named != file_id:
        raise damaged(path, f"it says to be {named:016x}: the file was renamed or copied over another")
    return bytes(data[HEAD.size : HEAD.size + length]).decode()


def foot(records: int, offset: int, trailer: bytes) -> bytes:
    return FOOT.pack(FOOT_MAGIC, FORMAT, records, offset, digest(trailer)).ljust(FOOT_SIZE, b"\0")


def read_trailer(path: Path, fd: Fd, record: np.dtype) -> np.ndarray:
    """The table of what a pack or a file of maps holds, checked."""
    size = place.size_of(fd)
    if size < HEAD_SIZE + FOOT_SIZE:
        raise damaged(path, f"it ends after {size} bytes")
    last = place.read_at(fd, FOOT_SIZE, size - FOOT_SIZE)
    magic, version, count, offset, wanted = FOOT.unpack_from(last)
    if magic != FOOT_MAGIC:
        raise damaged(path, "it has no trailer: it was cut off, or its writer died before closing it")
    check_magic(path, magic, FOOT_MAGIC, version)
    length = count * record.itemsize
    if not HEAD_SIZE <= offset <= size - FOOT_SIZE - length:
        raise damaged(path, "its trailer lies outside the file")
    data = place.read_at(fd, length, offset)
    if len(data) != length or digest(data) != wanted:
        raise damaged(path, "the checksum of its trailer does not match")
    return np.frombuffer(data, dtype=record)
