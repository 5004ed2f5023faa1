"""libnbd by its C interface: one connection to an NBD server, requests in flight side by side.

By ctypes and not by Debian's python3-libnbd, because that is built for one Python version only (a virtual environment
of another one can not load it) and because it copies each request's bytes once more; libnbd promises that its C
interface stays compatible. ctypes lets go of the GIL during each call.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from workers.errors import ConfigError
from workers.extents import Extents, Gathering

#: bytes of one request at most: VMware's library refuses larger ones, and advises 2 MiB at most
LARGEST = 2 << 20
#: requests, and bytes, that are under way at once: an ESXi host gives one stream 48 buffers
DEPTH, IN_FLIGHT = 32, 16 << 20
#: seconds without any answer after which a server counts as hung: VMware's library gives a host 10 minutes to write, 3
#: for the rest (disks/nbdkit.py). Who opens and reads must know it before the task's time is up, or would be killed
SILENT, SILENT_WRITING = 240.0, 660.0
#: what a block of `base:allocation` is asked for at once, and its flag for "reads as zeroes"
_MAP, _ZERO = 1 << 30, 2
_CONTEXT = b"base:allocation"


class _Completion(ctypes.Structure):
    _fields_ = [("callback", ctypes.c_void_p), ("user_data", ctypes.c_void_p), ("free", ctypes.c_void_p)]


_EXTENT = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_size_t,
    ctypes.c_void_p,
)


class _Extents(ctypes.Structure):
    _fields_ = [("callback", _EXTENT), ("user_data", ctypes.c_void_p), ("free", ctypes.c_void_p)]


_NOTHING = _Completion()
_handle, _u64, _u32, _int, _str = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int, ctypes.c_char_p
#: function -> (result, arguments)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "nbd_create": (_handle, ()),
    "nbd_close": (None, (_handle,)),
    "nbd_get_error": (_str, ()),
    "nbd_get_errno": (_int, ()),
    "nbd_aio_connect_socket": (_int, (_handle, _int)),
    "nbd_aio_is_connecting": (_int, (_handle,)),
    "nbd_aio_is_ready": (_int, (_handle,)),
    "nbd_add_meta_context": (_int, (_handle, _str)),
    "nbd_can_meta_context": (_int, (_handle, _str)),
    "nbd_get_size": (ctypes.c_int64, (_handle,)),
    "nbd_is_read_only": (_int, (_handle,)),
    "nbd_can_zero": (_int, (_handle,)),
    "nbd_can_multi_conn": (_int, (_handle,)),
    "nbd_aio_block_status": (ctypes.c_int64, (_handle, _u64, _u64, _Extents, _Completion, _u32)),
    "nbd_aio_pread": (ctypes.c_int64, (_handle, ctypes.c_void_p, ctypes.c_size_t, _u64, _Completion, _u32)),
    "nbd_aio_pwrite": (ctypes.c_int64, (_handle, ctypes.c_void_p, ctypes.c_size_t, _u64, _Completion, _u32)),
    "nbd_aio_zero": (ctypes.c_int64, (_handle, _u64, _u64, _Completion, _u32)),
    "nbd_aio_command_completed": (_int, (_handle, _u64)),
    "nbd_poll": (_int, (_handle, _int)),
    "nbd_aio_flush": (ctypes.c_int64, (_handle, _Completion, _u32)),
    "nbd_aio_disconnect": (_int, (_handle, _u32)),
}


@cache
def library() -> ctypes.CDLL:
    """Raises `ConfigError` where libnbd is not installed."""
    try:
        found = ctypes.CDLL("libnbd.so.0")
    except OSError as err:
        raise ConfigError(
            "libnbd is not installed on this worker, which the carrier nbd needs: install the package libnbd0 (Debian) "
            "or libnbd (Red Hat), or take nbd out of the site's `carriers`"
        ) from err
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def failed(what: str) -> OSError:
    """The error of this thread's last call, which says why."""
    lib = library()
    number, said = lib.nbd_get_errno(), lib.nbd_get_error() or b""
    return OSError(number or errno.EIO, f"{what}: {said.decode(errors='replace')}")


class Request(NamedTuple):
    """`memory` is read into or written from; None writes zeroes (`length` bytes)."""

    offset: int
    length: int
    memory: memoryview | None


class Connection:
    """One connection. Several threads may use it: one at a time has it, with all of its batch in flight."""

    def __init__(self, path: str) -> None:
        self._lib = library()
        self._lock = threading.Lock()
        self._handle: int | None = self._lib.nbd_create()
        if self._handle is None:
            raise failed("libnbd")
        try:
            self._lib.nbd_add_meta_context(self._handle, _CONTEXT)
            self._connect(self._handle, path)
            self.size = self._done(self._lib.nbd_get_size(self._handle), "the disk's size")
            self.read_only = self._lib.nbd_is_read_only(self._handle) == 1
            self.zeroes = self._lib.nbd_can_zero(self._handle) == 1
            self.several = self._lib.nbd_can_multi_conn(self._handle) == 1
            self._mapped = self._lib.nbd_can_meta_context(self._handle, _CONTEXT) == 1
        except BaseException:
            self.close()
            raise

    def _connect(self, handle: int, path: str) -> None:
        """Not by nbd_connect_unix: it would wait for ever for a server that hangs while it opens the disk."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(path)
            self._done(self._lib.nbd_aio_connect_socket(handle, wire.detach()), "connecting")
        while self._lib.nbd_aio_is_connecting(handle) == 1:
            self._wait(handle, "connecting")
        if self._lib.nbd_aio_is_ready(handle) != 1:
            raise failed("connecting")

    def _wait(self, handle: int, what: str) -> None:
        """Until something has happened. Raises when the connection is gone, or nothing happens for too long."""
        patience = SILENT_WRITING if what in ("write", "flush") else SILENT
        found = self._done(self._lib.nbd_poll(handle, int(patience * 1000)), what)
        if found == 0:
            raise OSError(errno.ETIMEDOUT, f"{what}: no answer for {patience:.0f} s")

    def close(self) -> None:
        """A second time does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.nbd_aio_disconnect(handle, 0)  # nbd_shutdown would wait for a server that hangs
            self._lib.nbd_close(handle)

    def _done(self, result: int, what: str) -> int:
        if result < 0:
            raise failed(what)
        return result

    def _open(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "the disk is closed")
        return self._handle

    # --- moving bytes ----------------------------------------------------------------------------------------------

    def read(self, requests: Sequence[Request]) -> None:
        if any(request.memory is None or request.memory.readonly for request in requests):
            raise ValueError("a read needs memory that may be written")
        self._move(requests, "read")

    def write(self, requests: Sequence[Request]) -> None:
        self._move(requests, "write")

    def flush(self) -> None:
        with self._lock:
            handle = self._open()
            self._finish(handle, self._lib.nbd_aio_flush(handle, _NOTHING, 0), "flush")

    def _finish(self, handle: int, cookie: int, what: str) -> None:
        """Until this one request has ended."""
        self._done(cookie, what)
        while (result := self._lib.nbd_aio_command_completed(handle, cookie)) == 0:
            try:
                self._wait(handle, what)
            except OSError:
                self._abandon()
                raise
        self._done(result, what)

    def _move(self, requests: Sequence[Request], how: Literal["read", "write"]) -> None:
        """All of them, as many at once as are allowed. The first error is raised when none is under way any more: the
        memory belongs to libnbd until then."""
        with self._lock:
            handle, waiting = self._open(), deque(_cut(requests))
            under_way: dict[int, Request] = {}
            held, first = 0, None
            while under_way or (waiting and first is None):
                while waiting and first is None and len(under_way) < DEPTH and held < IN_FLIGHT:
                    request = waiting.popleft()
                    cookie = self._start(handle, request, how)
                    if cookie < 0:
                        first = failed(f"{how} at {request.offset}")
                        break
                    under_way[cookie] = request
                    held += request.length
                if not under_way:
                    break
                try:
                    self._wait(handle, how)
                except OSError as err:
                    # The connection is given up, and all that was under way with it: nbd_close waits for nothing.
                    self._abandon()
                    raise first or err from None
                for cookie in list(under_way):
                    if (result := self._lib.nbd_aio_command_completed(handle, cookie)) != 0:
                        if result < 0:
                            first = first or failed(how)
                        held -= under_way.pop(cookie).length
            if first is not None:
                raise first

    def _start(self, handle: int, request: Request, how: Literal["read", "write"]) -> int:
        offset, length, memory = request
        if memory is None:
            return int(self._lib.nbd_aio_zero(handle, length, offset, _NOTHING, 0))
        start = self._lib.nbd_aio_pread if how == "read" else self._lib.nbd_aio_pwrite
        # by numpy: ctypes gives no address of memory that may only be read
        return int(start(handle, np.frombuffer(memory, np.uint8).ctypes.data, length, offset, _NOTHING, 0))

    def _abandon(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.nbd_close(handle)

    # --- what is there ---------------------------------------------------------------------------------------------

    def allocated(self, start: int, end: int) -> Extents | None:
        """What may hold data there, and a little after it; None where the server does not say."""
        if not self._mapped:
            return None
        found = Gathering()
        position = start

        def told(_: Any, context: bytes, offset: int, entries: Any, count: int, __: Any) -> int:
            nonlocal position
            for number in range(0, count, 2):
                length, flags = entries[number], entries[number + 1]
                if not flags & _ZERO:
                    found.add(offset, length)
                offset += length
            position = offset
            return 0

        callback = _Extents(_EXTENT(told))
        with self._lock:
            handle = self._open()
            while position < end:
                before = position
                count = min(_MAP, end - position)
                cookie = self._lib.nbd_aio_block_status(handle, count, position, callback, _NOTHING, 0)
                try:
                    self._finish(handle, cookie, "asking what is allocated")
                except OSError:
                    if self._handle is None:
                        raise
                    return None  # it can not tell
                if position <= before:
                    return None
        return found.extents()


def _cut(requests: Iterable[Request]) -> Iterator[Request]:
    for offset, length, memory in requests:
        for start in range(0, length, LARGEST):
            size = min(LARGEST, length - start)
            yield Request(offset + start, size, None if memory is None else memory[start : start + size])
