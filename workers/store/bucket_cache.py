"""Copies on this machine of what never changes in a bucket: maps, the dedup index, the ends of packs. Bounded.

Nothing depends on it: what is missing is fetched, and what is read from it is checked as if it came from the bucket.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from workers.errors import ConfigError, NoSpace
from workers.store import layout

#: bytes that may be added before the folder's size is looked at again
LOOK = 64 << 20
#: seconds after which a draft is nobody's any more: it was written to for the last time so long ago
LEFT = 3600.0

Fetch = Callable[[pathlib.Path], None]


class Cache:
    def __init__(self, root: pathlib.Path | None, name: str, most: int) -> None:
        self._root = root
        self._name = layout.digest(name.encode())[:8].hex()
        self._most = most
        self._added = LOOK
        self._lock = threading.Lock()

    def open(self, key: str, fetch: Fetch) -> int:
        """A descriptor of the copy."""
        while True:
            path = self.path(key, fetch)
            with contextlib.suppress(FileNotFoundError):  # it fell out of the cache just then
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def path(self, key: str, fetch: Fetch, *, anew: bool = False) -> pathlib.Path:
        path = self._folder() / key.replace("/", "-")
        with contextlib.suppress(FileNotFoundError):
            if not anew:
                os.utime(path)  # the least recently used go first
                return path
        with self.draft() as fresh:
            fetch(fresh)
            self._make_room(fresh.stat().st_size)
            os.rename(fresh, path)
        return path

    def unnamed(self, fetch: Fetch) -> int:
        """A copy for one reader."""
        with self.draft() as fresh:
            fetch(fresh)
            return os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def draft(self) -> Iterator[pathlib.Path]:
        """A name to write to; what is there at the end is removed."""
        fresh = self._folder() / f".{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield fresh
        except OSError as err:
            if isinstance(err, FileNotFoundError):
                raise
            raise NoSpace(
                f"the folder for copies of a store, {fresh.parent}, cannot be written to ({err.strerror}): free space "
                f"there, or set `cache` of the store to a folder with more of it"
            ) from err
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()

    def _folder(self) -> pathlib.Path:
        """Ours alone: what lies in it says what the disks of VMs hold."""
        base = self._root or pathlib.Path(tempfile.gettempdir()) / f"understudy-{os.getuid()}"
        folder = base / self._name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = base.lstat()
        except OSError as err:
            raise ConfigError(
                f"{base}, for copies of a store, cannot be made: {err.strerror}; set its `cache`"
            ) from err
        if not stat.S_ISDIR(found.st_mode) or (self._root is None and found.st_uid != os.getuid()):
            raise ConfigError(f"{base}, for copies of a store, is somebody else's: set `cache` of the store")
        return folder

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._added += size
            if self._added < min(LOOK, self._most // 4):
                return
            self._added = 0
        with os.scandir(self._folder()) as entries:
            found = []
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    about = entry.stat()
                    if not entry.name.startswith("."):
                        found.append((about.st_mtime, about.st_size, entry.path))
                    elif time.time() - about.st_mtime > LEFT:  # by a worker that was killed
                        os.unlink(entry.path)
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self._most:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= size


#: how long the object is, before the copies of its head and of its tail
LENGTH = struct.Struct("<Q")


#: names of one answer that lists a folder
PAGE = 1000


class Listed:
    """The names of a folder, listed when they are first asked for, and what this process changed since.

    Where the list takes many answers (135 of them name the packs of 100 TiB) as many names are asked for one by one
    before it: an increment refers to few packs.
    """

    def __init__(self, before: Listed | None = None) -> None:
        self._names: set[str] | None = None
        self._changed: dict[str, bool] = {}
        self._pages: int = before._pages if before is not None else 0
        self._left = self._pages

    def has(self, name: str, there: Callable[[], bool], names: Callable[[], list[str]]) -> bool:
        if name in self._changed:
            return self._changed[name]
        if self._names is None and self._left > 0:
            self._left -= 1
            return self._changed.setdefault(name, there())
        if self._names is None:
            self._names = set(names())
            self._pages = len(self._names) // PAGE
        return name in self._names

    def changed(self, name: str, there: bool) -> None:
        self._changed[name] = there
