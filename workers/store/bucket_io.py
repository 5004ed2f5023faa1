"""Objects of a bucket by ranges: a pack that is read (its ends are kept on this machine), a file that is uploaded."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from workers.errors import StoreUnreachable, UnderstudyError
from workers.store.bucket_cache import LENGTH, Cache
from workers.store.layout import HEAD_SIZE, damaged
from workers.store.place import Opened

if TYPE_CHECKING:
    from workers.store.bucket import BucketPath

#: a pack's trailer is 48 bytes a blob: what is fetched of its end at once holds those of most packs
TAIL = 256 << 10
#: bytes of a part, and how many parts of one file are on their way: with one more that is filled, 40 MiB of memory
PART = 8 << 20
PARTS = 4


class Ends(Opened):
    """An object that is read: its head and tail from here, the rest from there."""

    def __init__(self, path: BucketPath, ends: int) -> None:
        self._path = path
        self._ends = ends
        (self.size,) = LENGTH.unpack(os.pread(ends, LENGTH.size, 0))
        self._head = min(HEAD_SIZE, self.size)
        self._tail = max(self._head, self.size - TAIL)

    @classmethod
    def open(cls, path: BucketPath, cache: Cache | None) -> Ends:
        def fetch(into: pathlib.Path) -> None:
            tail, _, size = path.get(f"-{TAIL}")
            head = tail[:HEAD_SIZE] if size <= TAIL else path.get(f"0-{HEAD_SIZE - 1}")[0]
            rest = tail[max(0, len(head) - (size - len(tail))) :]
            into.write_bytes(LENGTH.pack(size) + head + rest)

        if cache is None:
            return cls(path, path.bucket.cache.unnamed(fetch))
        return cls(path, cache.open(f"{path.key}.ends", fetch))

    def read(self, length: int, offset: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        if offset + length <= self._head:
            return os.pread(self._ends, length, LENGTH.size + offset)
        if offset >= self._tail:
            return os.pread(self._ends, length, LENGTH.size + self._head + offset - self._tail)
        try:
            return self._path.get(f"{offset}-{offset + length - 1}")[0] if length else b""
        except FileNotFoundError as err:
            raise damaged(self._path, "it is missing") from err

    def write(self, data: bytes | memoryview, offset: int) -> None:
        raise NotImplementedError("what is open for reading is not written to")

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        ends, self._ends = self._ends, -1
        if ends >= 0:
            os.close(ends)


class Upload(Opened):
    """A file on its way: parts leave as soon as they are whole. One that is small is one request.

    It has no name before all of it is there; what a crash leaves is nobody's, and is swept.
    """

    def __init__(self, path: BucketPath, named: Callable[[], None]) -> None:
        self._path = path
        self._named = named
        self.size = 0
        self._lock = threading.Lock()
        #: parts that are not whole yet: their bytes, and how many of them are there
        self._open: dict[int, tuple[bytearray, int]] = {}
        self._room = threading.BoundedSemaphore(PARTS)
        self._pool: ThreadPoolExecutor | None = None
        self._sent: dict[int, Future[str]] = {}
        self._id = ""
        self._ended = False

    def read(self, length: int, offset: int) -> bytes:
        raise NotImplementedError("what is being written is not read")

    def write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            number, inside = divmod(offset, PART)
            count = min(len(view), PART - inside)
            with self._lock:
                self.size = max(self.size, offset + count)
                part, _ = self._open.setdefault(number, (bytearray(PART), 0))
            part[inside : inside + count] = view[:count]
            with self._lock:
                filled = self._open[number][1] + count
                self._open[number] = (part, filled)
                if filled == PART:
                    del self._open[number]
            if filled == PART:
                self._send(number, part)
            view, offset = view[count:], offset + count

    def _send(self, number: int, part: bytes | bytearray | memoryview) -> None:
        with self._lock:
            if self._pool is None:
                self._id = self._path.bucket.call("create_multipart_upload", self._path.key)["UploadId"]
                self._pool = ThreadPoolExecutor(PARTS, thread_name_prefix="upload")
            for sent in self._sent.values():
                if sent.done():
                    sent.result()  # what failed fails here, not at the end only
        self._room.acquire()
        with self._lock:
            self._sent[number] = self._pool.submit(self._one, number, part)

    def _one(self, number: int, part: bytes | bytearray | memoryview) -> str:
        try:
            answer = self._path.bucket.call(
                "upload_part", self._path.key, UploadId=self._id, PartNumber=number + 1, Body=bytes(part)
            )
            return str(answer["ETag"])
        except FileNotFoundError as err:
            raise self._given_up() from err
        finally:
            self._room.release()

    def _given_up(self) -> StoreUnreachable:
        return StoreUnreachable(f"{self._path}: its upload was given up by somebody; it is begun anew")

    def _there(self) -> bool:
        try:
            return self._path.length() == self.size
        except FileNotFoundError:
            return False

    def finish(self) -> None:
        left, self._open = self._open, {}
        if not self._sent and len(left) <= 1:
            part = left[0][0] if left else b""
            self._path.bucket.call("put_object", self._path.key, Body=bytes(memoryview(part)[: self.size]))
        else:
            for number, (part, _) in sorted(left.items()):
                self._send(number, memoryview(part)[: self.size - number * PART])
            parts = [{"PartNumber": n + 1, "ETag": self._sent[n].result()} for n in sorted(self._sent)]
            try:
                self._path.bucket.call(
                    "complete_multipart_upload",
                    self._path.key,
                    UploadId=self._id,
                    MultipartUpload={"Parts": parts},
                )
            except FileNotFoundError as err:
                if not self._there():  # else it was us, and the answer was lost
                    raise self._given_up() from err
        self._ended = True
        if self._pool is not None:
            self._pool.shutdown()
        self._named()

    def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            with contextlib.suppress(OSError, UnderstudyError):
                self._path.bucket.call("abort_multipart_upload", self._path.key, UploadId=self._id)
