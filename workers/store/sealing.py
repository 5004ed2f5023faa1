"""A map segment sealed in two pieces: what comes before its places, which most questions need alone, and the rest.

Where the file is not sealed (its key is None) the segment stays as it is.
"""

from __future__ import annotations

import struct

from workers.store import crypt, files, layout
from workers.store.crypt import FileKey
from workers.store.place import Fd, Path

#: in front: the bytes of the first piece
LENGTH = struct.Struct("<Q")
#: What is read of a segment at first to see what lies before its places: mostly all of that.
BEGINNING = 4096


def longer(file: FileKey | None) -> int:
    """How much a segment gets longer."""
    return 0 if file is None else LENGTH.size + 2 * crypt.TAG


def seal(file: FileKey | None, body: bytes, places_at: int, offset: int) -> bytes:
    """`offset` is where it goes in its file: no other segment of that file begins there."""
    if file is None:
        return body
    origin = file.seal(body[:places_at], crypt.ORIGIN, offset)
    return LENGTH.pack(len(origin)) + origin + file.seal(body[places_at:], crypt.STEPS, offset)


def unseal(path: Path, file: FileKey | None, data: bytes | memoryview, offset: int) -> bytes | memoryview:
    """The whole segment."""
    if file is None:
        return data
    end = _first_piece(data)
    return _open(path, file, data[LENGTH.size : end], crypt.ORIGIN, offset) + _open(
        path, file, data[end:], crypt.STEPS, offset
    )


def beginning(path: Path, file: FileKey | None, fd: Fd, offset: int, length: int) -> bytes:
    """At least all that comes before the places where it is sealed; else some of it."""
    data = files.read_all(fd, min(length, BEGINNING), offset)
    if file is None:
        return data
    if len(data) < (end := _first_piece(data)) <= length:
        data = files.read_all(fd, end, offset)
    return _open(path, file, data[LENGTH.size : end], crypt.ORIGIN, offset)


def _first_piece(data: bytes | memoryview) -> int:
    return LENGTH.size + int(LENGTH.unpack_from(data)[0]) if len(data) >= LENGTH.size else 0


def _open(path: Path, file: FileKey, data: bytes | memoryview, part: int, offset: int) -> bytes:
    try:
        return file.open(data, part, offset)
    except crypt.Broken as err:
        raise layout.damaged(
            path, f"the map segment at byte {offset} is not what was sealed with this store's key"
        ) from err
