"""The bytes of every file of a store: magics, versions, records, checksums. docs/store-format.md is its prose."""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Iterable

import numpy as np

from workers.errors import BadInput, StoreDamaged, StoreTooNew
from workers.store import crypt, place
from workers.store.crypt import PLAIN, FileKey, Keys
from workers.store.place import Fd, Path

#: The version of all files of a plain store, and of those of an encrypted one that are written alike in both. A reader
#: refuses anything above what it knows and reads everything up to it.
FORMAT = 1
#: The version of what is sealed: an encrypted store's store.json, manifests, packs, files of maps and of moves.
SEALED = 2

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
#: sealed: magic, version, padding, id of the file, the file's key; then, sealed, the run's name and zeroes
SEALED_HEAD = struct.Struct(f"<8sIIQ{crypt.WRAPPED}s")
#: what the seal of a file's key is for: magic, version, padding, id
SEALED_FOR = struct.Struct("<8sIIQ")
#: magic, version, records, offset of the trailer, its BLAKE3 (as it is before it is sealed)
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

_ID = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@=+-]{0,127}")


#: BLAKE3-256 without a key: of what is not content
digest = PLAIN.digest


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


def ids(names: Iterable[str], suffix: str = "") -> dict[int, str]:
    """The ids of a folder's files, and their names. What is called otherwise is not ours: somebody put it there."""
    found = {}
    for name in names:
        if _ID.fullmatch(stem := name.removesuffix(suffix)):
            found[int(stem, 16)] = name
    return found


def is_safe(part: str) -> bool:
    """As `safe` asks it."""
    return _PART.fullmatch(part) is not None


def damaged(path: Path, what: str) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged: {what}. Nothing of it was used. Put the file back from a copy of the store. Without a "
        f"copy, `understudy store verify --deep` says which restore points are lost, and has the next backups store "
        f"anew what is needed of it"
    )


def too_new(path: Path, version: int, reads: int = FORMAT) -> StoreTooNew:
    return StoreTooNew(
        f"{path} has format {version}, this program reads up to {reads}: use the version of Understudy that wrote it, "
        f"or a newer one"
    )


def check_magic(path: Path, found: bytes, wanted: bytes, version: int, keys: Keys | None = None) -> None:
    """`keys`: those of the store, for files that an encrypted store seals."""
    if found != wanted:
        raise damaged(path, f"it begins with {found!r} where {wanted!r} belongs")
    check_version(path, version, keys)


def check_version(path: Path, version: int, keys: Keys | None = None) -> None:
    reads = FORMAT if keys is None else SEALED
    if version > reads:
        raise too_new(path, version, reads)
    if version < 1:
        raise damaged(path, f"it claims format {version}")
    if keys is not None and (version == SEALED) != keys.sealing:
        raise damaged(
            path, "the store is encrypted and it is not" if keys.sealing else "it is encrypted, not the store"
        )


def head(magic: bytes, file_id: int, run: str, keys: Keys = PLAIN) -> tuple[bytes, FileKey | None]:
    """The first 4 KiB of a pack or a file of maps, and what seals its parts. The run is for people and for prune's
    good manners."""
    name = run.encode()
    file = keys.new_file(SEALED_FOR.pack(magic, SEALED, 0, file_id))
    if file is None:
        body = (HEAD.pack(magic, FORMAT, 0, file_id, len(name)) + name).ljust(HEAD_SIZE - 32, b"\0")
        return body + digest(body), None
    opening = SEALED_HEAD.pack(magic, SEALED, 0, file_id, file.wrapped)
    hidden = (struct.pack("<I", len(name)) + name).ljust(HEAD_SIZE - len(opening) - crypt.TAG, b"\0")
    return opening + file.seal(hidden, crypt.HEAD, also=opening), file


def read_head(path: Path, data: bytes, magic: bytes, file_id: int, keys: Keys = PLAIN) -> tuple[str, FileKey | None]:
    """The run that wrote the file, and what opens its parts."""
    if len(data) < HEAD_SIZE:
        raise damaged(path, f"it ends after {len(data)} bytes, within its head")
    found, version, _, named, length = HEAD.unpack_from(data)
    check_magic(path, found, magic, version, keys)
    if keys.sealing:
        return _read_sealed_head(path, data, file_id, keys)
    if digest(data[: HEAD_SIZE - 32]) != data[HEAD_SIZE - 32 : HEAD_SIZE]:
        raise damaged(path, "the checksum of its head does not match")
    if named != file_id:
        raise renamed(path, named)
    return bytes(data[HEAD.size : HEAD.size + length]).decode(), None


def _read_sealed_head(path: Path, data: bytes, file_id: int, keys: Keys) -> tuple[str, FileKey]:
    *about, wrapped = SEALED_HEAD.unpack_from(data)
    try:
        file = keys.file(wrapped, SEALED_FOR.pack(*about))
        hidden = file.open(data[SEALED_HEAD.size : HEAD_SIZE], crypt.HEAD, also=data[: SEALED_HEAD.size])
    except crypt.Broken as err:
        raise damaged(path, "its head is not what was sealed with this store's key") from err
    if about[-1] != file_id:
        raise renamed(path, about[-1])
    (length,) = struct.unpack_from("<I", hidden)
    return hidden[4 : 4 + length].decode(), file


def renamed(path: Path, named: int) -> StoreDamaged:
    return damaged(path, f"it says to be {named:016x}: the file was renamed or copied over another")


def ending(records: int, offset: int, trailer: bytes, keys: Keys, file: FileKey | None) -> tuple[bytes, bytes]:
    """Trailer and foot, as they are written; `offset` is where the trailer begins."""
    version = FORMAT if file is None else SEALED
    foot = FOOT.pack(FOOT_MAGIC, version, records, offset, keys.digest(trailer)).ljust(FOOT_SIZE, b"\0")
    return trailer if file is None else file.seal(trailer, crypt.TRAILER, also=foot), foot


def read_trailer(path: Path, fd: Fd, record: np.dtype, keys: Keys = PLAIN, file: FileKey | None = None) -> np.ndarray:
    """The table of what a pack or a file of maps holds, checked."""
    size = place.size_of(fd)
    if size < HEAD_SIZE + FOOT_SIZE:
        raise damaged(path, f"it ends after {size} bytes")
    last = place.read_at(fd, FOOT_SIZE, size - FOOT_SIZE)
    magic, version, count, offset, wanted = FOOT.unpack_from(last)
    if magic != FOOT_MAGIC:
        raise damaged(path, "it has no trailer: it was cut off, or its writer died before closing it")
    check_magic(path, magic, FOOT_MAGIC, version, keys)
    length = count * record.itemsize + keys.room
    if not HEAD_SIZE <= offset <= size - FOOT_SIZE - length:
        raise damaged(path, "its trailer lies outside the file")
    data = place.read_at(fd, length, offset)
    if file is not None:
        try:
            data = file.open(data, crypt.TRAILER, also=last)
        except crypt.Broken as err:
            raise damaged(path, "its trailer is not what was sealed with this store's key") from err
    if len(data) != length - keys.room or keys.digest(data) != wanted:
        raise damaged(path, "the checksum of its trailer does not match")
    return np.frombuffer(data, dtype=record)
