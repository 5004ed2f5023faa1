"""A zstd frame in one go into memory of its size, by libzstd's C interface and a context that a thread keeps.

`ZstdDecompressor` makes a context for each frame, decodes as a stream and joins the parts: a third more time in all for
frames of 256 KiB. libzstd comes with every Debian (dpkg needs it) and keeps its C interface; without it the slow way
serves.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache

import numpy as np

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("at", _pointer), ("size", _size), ("position", _size))


@cache
def library() -> ctypes.CDLL | None:
    """None where it is not installed. ctypes lets go of the GIL during each call."""
    try:
        found = ctypes.CDLL("libzstd.so.1")
    except OSError:
        return None
    found.ZSTD_createDCtx.restype, found.ZSTD_createDCtx.argtypes = _pointer, ()
    found.ZSTD_freeDCtx.restype, found.ZSTD_freeDCtx.argtypes = _size, (_pointer,)
    found.ZSTD_isError.restype, found.ZSTD_isError.argtypes = ctypes.c_uint, (_size,)
    found.ZSTD_getErrorName.restype, found.ZSTD_getErrorName.argtypes = ctypes.c_char_p, (_size,)
    found.ZSTD_decompressDCtx.restype = _size
    found.ZSTD_decompressDCtx.argtypes = (_pointer, _pointer, _size, _pointer, _size)
    found.ZSTD_decompressStream.restype = _size
    found.ZSTD_decompressStream.argtypes = (_pointer, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer))
    found.ZSTD_DCtx_reset.restype, found.ZSTD_DCtx_reset.argtypes = _size, (_pointer, ctypes.c_int)
    return found


class _Context:
    """libzstd's memory for decoding; goes with its thread."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib
        self.handle = lib.ZSTD_createDCtx()
        if self.handle is None:
            raise MemoryError("libzstd has no memory for a context")
        self.memory = np.empty(0, np.uint8)

    def __del__(self) -> None:
        self._lib.ZSTD_freeDCtx(getattr(self, "handle", None))


_mine = threading.local()
#: ZSTD_ResetDirective
_SESSION_ONLY = 1


def decompress(packed: memoryview, raw: int) -> memoryview:
    """The content, of `raw` bytes at most. Raises `ZstdError`."""
    lib = library()
    if lib is None:
        return memoryview(ZstdDecompressor().decompress(packed, raw))
    target = np.empty(raw, np.uint8)
    return target[: _whole(lib, packed, target)].data.toreadonly()


def beginning(packed: memoryview, raw: int, wanted: int) -> memoryview:
    """At least the first `wanted` bytes of a content of `raw` bytes, where it has them, in memory that belongs to this
    thread: good until its next call. A frame is decoded block by block, of 128 KiB at most. Raises `ZstdError`.
    """
    lib = library()
    if lib is None:
        return memoryview(ZstdDecompressor().decompress(packed, wanted))
    context = _context(lib)
    if len(context.memory) < raw:
        context.memory = np.empty(raw, np.uint8)
    if wanted * 2 > raw:  # of two blocks both: straight into our memory
        return context.memory[: _whole(lib, packed, context.memory[:raw])].data.toreadonly()
    source = np.frombuffer(packed, np.uint8)
    given = _Buffer(source.ctypes.data, len(source), 0)
    taken = _Buffer(context.memory.ctypes.data, wanted, 0)
    lib.ZSTD_DCtx_reset(context.handle, _SESSION_ONLY)
    while taken.position < wanted:
        before = given.position, taken.position
        _check(lib, lib.ZSTD_decompressStream(context.handle, taken, given))
        if (given.position, taken.position) == before:
            break
    return context.memory[: taken.position].data.toreadonly()


def _whole(lib: ctypes.CDLL, packed: memoryview, target: np.ndarray) -> int:
    source, handle = np.frombuffer(packed, np.uint8), _context(lib).handle
    return _check(
        lib, lib.ZSTD_decompressDCtx(handle, target.ctypes.data, len(target), source.ctypes.data, len(source))
    )


def _context(lib: ctypes.CDLL) -> _Context:
    if not hasattr(_mine, "context"):
        _mine.context = _Context(lib)
    context: _Context = _mine.context
    return context


def _check(lib: ctypes.CDLL, size: int) -> int:
    if lib.ZSTD_isError(size):
        raise ZstdError(lib.ZSTD_getErrorName(size).decode())
    return size
