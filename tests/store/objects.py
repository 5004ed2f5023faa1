"""A place like a bucket, in memory: names change in one step each, no more is promised. Its clock is the test's.

What the store's own protocol does there is judged here, thousands of times a second; that real requests do the same is
judged against a real server (tests/store/test_bucket.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator

from workers.errors import Conflict
from workers.store.layout import damaged
from workers.store.place import Fd, Opened, Remote


class Objects:
    def __init__(self, copies: pathlib.Path) -> None:
        self.held: dict[str, tuple[bytes, float]] = {}
        self.lock = threading.RLock()
        self.now = 0.0
        self.copies = copies
        #: called before each change with what will happen; for tests that let something else happen first, or die
        self.before: Callable[[str, str], None] = lambda verb, key: None

    def change(self, verb: str, key: str) -> None:
        self.before(verb, key)


class ObjectPath(Remote):
    def __init__(self, objects: Objects, key: str = "") -> None:
        self.objects = objects
        self.key = key

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.objects, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"objects:{self.key}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.objects, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def exists(self) -> bool:
        return self.key in self.objects.held

    def read_bytes(self) -> bytes:
        found = self.objects.held.get(self.key)
        if found is None:
            raise FileNotFoundError(str(self))
        return found[0]

    def create(self, data: bytes) -> None:
        self.objects.change("create", self.key)
        with self.objects.lock:
            if self.exists():
                raise FileExistsError(str(self))
            self._set(data)

    def put(self, data: bytes) -> None:
        self.objects.change("put", self.key)
        self._set(data)

    def _set(self, data: bytes) -> None:
        self.objects.held[self.key] = (bytes(data), self.objects.now)

    def swap(self, was: bytes, data: bytes) -> None:
        self.objects.change("swap", self.key)
        with self.objects.lock:
            found = self.objects.held.get(self.key)
            if found is None or found[0] != was:
                raise Conflict(f"{self} is not what it was")
            self._set(data)

    def remove(self) -> bool:
        self.objects.change("remove", self.key)
        return self.objects.held.pop(self.key, None) is not None

    def _inside(self) -> Iterator[tuple[str, str]]:
        start = f"{self.key}/" if self.key else ""
        for key in list(self.objects.held):
            if key.startswith(start):
                yield key, key[len(start) :]

    def names(self, suffix: str) -> list[str]:
        found = {rest.partition("/")[0] for _, rest in self._inside()}
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def sizes(self, suffix: str) -> dict[str, int]:
        return {
            rest: len(self.objects.held[key][0])
            for key, rest in self._inside()
            if "/" not in rest and rest.endswith(suffix)
        }

    def folders(self) -> list[str]:
        found = {rest.partition("/")[0] for _, rest in self._inside() if "/" in rest}
        return sorted(name for name in found if not name.startswith("."))

    def listed(self) -> bool:
        return self.exists()

    def look_anew(self) -> None:
        pass

    def ages(self) -> dict[str, float]:
        return {rest: self.objects.now - self.objects.held[key][1] for key, rest in self._inside() if "/" not in rest}

    def length(self) -> int:
        return len(self.read_bytes())

    def begin(self) -> Opened:
        return _Buffer(self)

    def open(self) -> Fd:
        return _Live(self, self.length())

    def local(self) -> pathlib.Path:
        copy = self.objects.copies / self.key.replace("/", "-")
        copy.write_bytes(self.read_bytes())
        return copy

    @contextlib.contextmanager
    def draft(self) -> Iterator[pathlib.Path]:
        with tempfile.TemporaryDirectory(dir=self.objects.copies) as folder:
            yield (fresh := pathlib.Path(folder) / self.name)
            self.put(fresh.read_bytes())

    def sweep(self) -> None:
        pass

    def prove(self) -> None:
        pass

    def free(self) -> int | None:
        return None

    def fresh(self) -> ObjectPath:
        return self

    # --- what tests of a folder do with its files ------------------------------------------------------------

    def iterdir(self) -> list[ObjectPath]:
        return [self / name for name in self.names("")]

    def write_bytes(self, data: bytes) -> None:
        self._set(data)

    def unlink(self) -> None:
        self.objects.held.pop(self.key)

    def touch(self) -> None:
        self._set(b"")

    def rglob(self, pattern: str) -> list[ObjectPath]:
        found = [ObjectPath(self.objects, key) for key, _ in self._inside()]
        return [path for path in found if fnmatch.fnmatch(path.name, pattern)]

    def stat(self) -> os.stat_result:
        return os.stat_result((0o100600, 0, 0, 1, 0, 0, self.length(), 0, 0, 0))


class _Live(Opened):
    """What is there when it is read: nothing keeps what was removed."""

    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path = path
        self.size = size

    def read(self, length: int, offset: int) -> bytes:
        try:
            return self._path.read_bytes()[offset : offset + length]
        except FileNotFoundError as err:
            raise damaged(self._path, "it is missing") from err

    def write(self, data: bytes | memoryview, offset: int) -> None:
        raise AssertionError("it was opened to be read")

    finish = close = lambda self: None


class _Buffer(Opened):
    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._data = bytearray()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self._data)

    def read(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def write(self, data: bytes | memoryview, offset: int) -> None:
        with self._lock:
            self._data.extend(bytes(max(0, offset + len(data) - len(self._data))))
            self._data[offset : offset + len(data)] = data

    def finish(self) -> None:
        self._path.put(bytes(self._data))

    def close(self) -> None:
        pass
