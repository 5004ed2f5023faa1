"""Durable files: create, link, rename and remove with the folder synced; full storage becomes a sentence.

Each verb is for a folder of a file system; a place that is none (place.py) has its own form of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from workers.errors import NoSpace, UnderstudyError
from workers.store import layout, place, presence
from workers.store.layout import ALIGN, damaged
from workers.store.place import Fd, Opened, Path, Remote

A = TypeVar("A")
B = TypeVar("B")

#: Requests to a bucket at a time, each of which mostly waits for the server: half of the connections that are kept.
TOGETHER = 16

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: what a place says when it cannot do what it is asked; for what may fail without harm
REFUSALS = (OSError, UnderstudyError)


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


def absolute(path: Path) -> Path:
    return path if isinstance(path, Remote) else path.absolute()


def sync_folder(folder: Path) -> None:
    """Names made, moved or removed in `folder` survive a power loss after this."""
    if isinstance(folder, Remote):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes) -> None:
    """A new file, synced; its name is not. Raises FileExistsError. What fails half way is removed."""
    if isinstance(path, Remote):
        return path.create(data)
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


def overwrite(path: pathlib.Path, data: bytes) -> None:
    """The content of a file that is there (FileNotFoundError), synced. Not in one step: for files nobody reads yet."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes, nonce: str, was: bytes | None = None) -> None:
    """The content of `path`, exchanged in one step and synced.

    A folder has locks: who calls this holds the one that guards the file. Where locks may be lost, the content that the
    caller knows (`was`) must still be there, else `Conflict`.
    """
    if isinstance(path, Remote):
        return path.put(data) if was is None else path.swap(was, data)
    fresh = path.with_name(f".{path.name}.{nonce}")
    write_new(fresh, data)
    try:
        os.rename(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes, nonce: str) -> None:
    """A new file that has its name only once it is whole; the name is synced. Raises FileExistsError."""
    if isinstance(path, Remote):
        return path.create(data)
    fresh = path.with_name(f".{path.name}.{nonce}")
    write_new(fresh, data)
    try:
        os.link(fresh, path)
    finally:
        remove(fresh)
        sync_folder(path.parent)


def remove(path: Path) -> bool:
    """Whether it was there. The folder is not synced."""
    if isinstance(path, Remote):
        return path.remove()
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def write_all(fd: Fd, data: bytes | memoryview, offset: int) -> None:
    if isinstance(fd, Opened):
        return fd.write(data, offset)
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def read_all(fd: Fd, length: int, offset: int) -> bytes:
    """Up to `length` bytes: fewer only at the end of the file."""
    if isinstance(fd, Opened):
        return fd.read(length, offset)
    parts = [os.pread(fd, length, offset)]
    have = len(parts[0])
    while have < length and (more := os.pread(fd, length - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def soon(fd: Fd, offset: int, length: int) -> None:
    """These bytes will be read: the kernel begins to fetch them, if it likes. A bucket is asked when it is read."""
    if isinstance(fd, Opened):
        return
    with contextlib.suppress(OSError):  # some file systems know no such hint
        # of a longer piece Linux fetches only the beginning: what its device takes at a time, 1.25 MiB or more
        for start in range(offset, offset + length, 1 << 20):
            os.posix_fadvise(fd, start, min(1 << 20, offset + length - start), os.POSIX_FADV_WILLNEED)


def open_read(path: Path) -> Fd:
    """A file that should be there and is not counts as damage."""
    try:
        if isinstance(path, Remote):
            return path.open()
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise damaged(path, "it is missing") from err


def open_new(path: Path) -> Fd:
    """A new file to write; `finish` makes it durable, `give_up` removes it."""
    if isinstance(path, Remote):
        return path.begin()
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def open_pack(path: Path) -> Fd:
    """As `open_new`, past the page cache where the file system can do that."""
    if isinstance(path, Remote):
        return path.begin()
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


def finish(fd: Fd) -> None:
    """Synced and closed. The name is durable once the folder is synced."""
    if isinstance(fd, Opened):
        return fd.finish()
    os.fsync(fd)
    os.close(fd)


def give_up(fd: Fd, path: Path) -> None:
    """A file that was begun is closed and removed, as far as that can be done."""
    place.close(fd)
    if not isinstance(path, Remote):  # there it has no name before it is finished
        with contextlib.suppress(OSError):
            os.unlink(path)


def write_aligned(fd: Fd, view: memoryview, offset: int) -> None:
    """`view` and `offset` are aligned; falls back to the page cache when O_DIRECT is refused only now."""
    if isinstance(fd, Opened):
        return fd.write(view, offset)
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
    if isinstance(folder, Remote):
        return folder.names(suffix)
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith("."))


def folders(folder: Path) -> list[str]:
    """Sorted, without hidden ones."""
    if isinstance(folder, Remote):
        return folder.folders()
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def sizes(folder: Path, suffix: str = "") -> dict[str, int]:
    """Bytes of each file; of one that goes meanwhile, nothing."""
    if isinstance(folder, Remote):
        return folder.sizes(suffix)
    found = {}
    for name in names(folder, suffix):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (folder / name).stat().st_size
    return found


def id_sizes(folder: Path, suffix: str) -> dict[int, int]:
    """Bytes of each file that has an id for a name."""
    found = sizes(folder, suffix)
    return {number: found[name] for number, name in layout.ids(found, suffix).items()}


def together(folder: Path, do: Callable[[A], B], things: Iterable[A]) -> Iterator[B]:
    """What `do` makes of each, in their order; of what lies in a bucket, several at a time. To be read to the end."""
    if not isinstance(folder, Remote):
        yield from map(do, things)
        return
    with ThreadPoolExecutor(TOGETHER) as pool:
        yield from pool.map(do, things)


def sweep(folder: Path) -> None:
    """Removes what a killed writer left under a hidden name. A live one notices that its rename finds nothing."""
    if isinstance(folder, Remote):
        return folder.sweep()
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(".") and entry.is_file()]
    for path in left:
        remove(pathlib.Path(path))


def make_folder(folder: Path) -> None:
    """There, or made; its name is not synced. In a bucket a folder is there as soon as something is in it."""
    if not isinstance(folder, Remote):
        folder.mkdir(exist_ok=True)


def prove(root: Path) -> None:
    """`Refused` where two could write the same name and neither notice. Of a file system that is known."""
    if isinstance(root, Remote):
        root.prove()


def look_anew(folder: Path) -> None:
    """What was remembered of the names in it is forgotten."""
    if isinstance(folder, Remote):
        folder.look_anew()


def there(folder: Path) -> bool:
    return isinstance(folder, Remote) or folder.exists()


def listed(path: Path) -> bool:
    """Whether it is there; in a bucket as of the last `look_anew` of its folder: a thousand cost one request."""
    return path.listed() if isinstance(path, Remote) else path.exists()


def remove_folder(folder: Path) -> None:
    """When it is empty, and as far as that can be done."""
    if not isinstance(folder, Remote):
        with contextlib.suppress(OSError):
            folder.rmdir()


def length(path: Path) -> int:
    """Raises FileNotFoundError."""
    return path.length() if isinstance(path, Remote) else path.stat().st_size


def beginning(path: Path, most: int) -> bytes:
    """Up to `most` bytes. Raises FileNotFoundError."""
    if isinstance(path, Remote):
        fd = path.open()
        try:
            return read_all(fd, most, 0)
        finally:
            place.close(fd)
    with open(path, "rb") as file:
        return file.read(most)


def mappable(path: Path) -> pathlib.Path:
    """A file of this machine with that content. Raises FileNotFoundError."""
    return path.local() if isinstance(path, Remote) else path


@contextlib.contextmanager
def draft(path: Path, nonce: str) -> Iterator[pathlib.Path]:
    """The name of a file to write; when all went well it becomes `path`. The caller syncs it, and the folder.

    FileNotFoundError when somebody took it for left over before it had its name.
    """
    if isinstance(path, Remote):
        with path.draft() as fresh:
            yield fresh
        return
    fresh = path.with_name(f".{path.name}.{nonce}")
    try:
        yield fresh
        os.rename(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether this process now has the lock `path`; nobody else has it before the end, or before our death."""
    if isinstance(path, Remote):
        with presence.alone(path) as mine:
            yield mine
        return
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def free(root: Path) -> int | None:
    """Bytes; None where nobody knows of a limit."""
    return root.free() if isinstance(root, Remote) else shutil.disk_usage(root).free


def fresh(root: Path) -> Path:
    """The same place, read past every copy of it that is kept on this machine: for those who look for damage."""
    return root.fresh() if isinstance(root, Remote) else root


def to_json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
