"""A zstd frame in one go into memory of its size, by libzstd's C interface and a context that a thread keeps.

`ZstdDecompressor` makes a context for each frame, decodes as a stream and joins the parts: a third more time in all for
frames of 256 KiB. libzstd comes with every Debian (dpkg needs it) and keeps its C interface; without it the slow way
serves.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import threading
from functools import cache

import numpy as np

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


@cache
def library() -> ctypes.CDLL | None:
    """None where it is not installed. ctypes lets go of the GIL during each call."""
    try:
        found = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    except OSError:
        return None
    found.ZSTD_createDCtx.restype, found.ZSTD_createDCtx.argtypes = _pointer, ()
    found.ZSTD_freeDCtx.restype, found.ZSTD_freeDCtx.argtypes = _size, (_pointer,)
    found.ZSTD_isError.restype, found.ZSTD_isError.argtypes = ctypes.c_uint, (_size,)
    found.ZSTD_getErrorName.restype, found.ZSTD_getErrorName.argtypes = ctypes.c_char_p, (_size,)
    found.ZSTD_decompressDCtx.restype = _size
    found.ZSTD_decompressDCtx.argtypes = (_pointer, _pointer, _size, _pointer, _size)
    return found


class _Context:
    """libzstd's memory for decoding; goes with its thread."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib
        self.handle = lib.ZSTD_createDCtx()
        if self.handle is None:
            raise MemoryError("libzstd has no memory for a context")

    def __del__(self) -> None:
        self._lib.ZSTD_freeDCtx(getattr(self, "handle", None))


_mine = threading.local()


def decompress(packed: memoryview, raw: int) -> memoryview:
    """The content, of `raw` bytes at most. Raises `ZstdError`."""
    lib = library()
    if lib is None:
        return memoryview(ZstdDecompressor().decompress(packed, raw))
    if not hasattr(_mine, "context"):
        _mine.context = _Context(lib)
    source, target = np.frombuffer(packed, np.uint8), np.empty(raw, np.uint8)
    size = lib.ZSTD_decompressDCtx(_mine.context.handle, target.ctypes.data, raw, source.ctypes.data, len(source))
    if lib.ZSTD_isError(size):
        raise ZstdError(lib.ZSTD_getErrorName(size).decode())
    return target[:size].data.toreadonly()
