"""Durable files: create, link, rename and remove with the folder synced; full storage becomes a sentence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from workers.errors import NoSpace
from workers.store.layout import ALIGN, damaged

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room(store: Path) -> Iterator[None]:
    """Turns a full (or limited) file system into `NoSpace`."""
    try:
        yield
    except OSError as err:
        if err.errno not in _FULL:
            raise
        raise NoSpace(
            f"the store {store} is full ({err.strerror}): free space there, or lower what `keep` of "
            f"its groups keeps and run `understudy prune`. Nothing that was in the store is lost, and "
            f"the run can go on afterwards"
        ) from err


def sync_folder(folder: Path) -> None:
    """Names made, moved or removed in `folder` survive a power loss after this."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes) -> None:
    """A new file, synced; its name is not. Raises FileExistsError. What fails half way is removed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def overwrite(path: Path, data: bytes) -> None:
    """The content of a file that is there (FileNotFoundError), synced. Not in one step: for files nobody reads yet."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes, nonce: str) -> None:
    """The content of `path`, exchanged in one step and synced."""
    fresh = path.with_name(f".{path.name}.{nonce}")
    write_new(fresh, data)
    try:
        os.rename(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> bool:
    """Whether it was there. The folder is not synced."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def read_all(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes: fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length and (more := os.pread(fd, length - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def open_read(path: Path) -> int:
    """A descriptor. A file that should be there and is not counts as damage."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise damaged(path, "it is missing") from err


def open_pack(path: Path) -> int:
    """A new file to append to, past the page cache where the file system can do that."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        # The file exists by now on some kernels: O_CREAT came first, the refusal after.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return os.open(path, flags, 0o644)


def write_aligned(fd: int, view: memoryview, offset: int) -> None:
    """`view` and `offset` are aligned; falls back to the page cache when O_DIRECT is refused only now."""
    try:
        write_all(fd, view, offset)
    except OSError as err:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if err.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        write_all(fd, view, offset)


def buffer(size: int) -> memoryview:
    """Memory at a page's border, as O_DIRECT wants it."""
    return memoryview(mmap.mmap(-1, max(ALIGN, size)))


def locked(fd: int) -> bool:
    """Whether nobody else had the file's lock; now this descriptor has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names(folder: Path, suffix: str = "") -> list[str]:
    """Sorted, without hidden ones. Any failure half way is raised: a short list would look like few files."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith("."))


def sizes(folder: Path, suffix: str = "") -> dict[str, int]:
    """Bytes of each file; of one that goes meanwhile, nothing."""
    found = {}
    for name in names(folder, suffix):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (folder / name).stat().st_size
    return found


def sweep(folder: Path) -> None:
    """Removes what a killed writer left under a hidden name. A live one notices that its rename finds nothing."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(".") and entry.is_file()]
    for path in left:
        remove(Path(path))


def to_json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
