"""Who reads: readers/<pid>-<nonce> exists, locked, as long as somebody may hold names that he read from a manifest.

Compaction exchanges the names of map segments within manifests. What only the old names refer to stays until every
reader that was there before has ended. A file that is not locked was left by a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

from workers.errors import LoginFailed
from workers.store import files, presence
from workers.store.place import Path, Remote
from workers.store.writers import myself

#: a store that this process may only read is read all the same: unprotected, so a reader of it may have to begin anew
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Reading:
    """One registration; ends with `close` or with the last object that holds it."""

    def __init__(self, path: Path, fd: int, presence: presence.Presence | None = None) -> None:
        self.path = path
        self.ended = False
        self._fd = fd
        self._presence = presence
        self._pid = os.getpid()

    @property
    def lapsed(self) -> bool:
        """Whether others may have taken us for dead, and deleted what we read."""
        return self._presence is not None and self._presence.lapsed

    def close(self) -> None:
        self.ended = True
        if self._presence is not None:
            return self._presence.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if os.getpid() == self._pid:  # a forked child has a copy of this: what it ends is not ours
                with contextlib.suppress(OSError):
                    files.remove(self.path)
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Readers:
    def __init__(self, root: Path) -> None:
        self._root = root

    def enter(self) -> Reading | None:
        """To be called before the first manifest is read. None where nothing can be written."""
        while True:
            path = self._root / f"{os.getpid()}-{secrets.token_hex(8)}"
            if isinstance(path, Remote):
                return self._attend(path)
            try:
                files.make_folder(self._root)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except OSError as err:
                if err.errno in _READ_ONLY:
                    return None
                raise
            reading = Reading(path, fd)
            if files.locked(fd) and path.exists():
                files.write_all(fd, files.to_json(myself("")), 0)  # for people; whether it is locked is what counts
                return reading
            reading.close()  # prune looked between our two calls and took it for left over: once more

    @staticmethod
    def _attend(path: Remote) -> Reading | None:
        try:
            return Reading(path, -1, presence.attend(path, files.to_json(myself(""))))
        except LoginFailed:  # who may only read
            return None

    def live(self) -> set[str]:
        """The names of those who read now. Removes what the dead left."""
        if isinstance(self._root, Remote):
            return presence.live(self._root)
        found = set()
        for name in files.names(self._root) if self._root.exists() else ():
            try:
                fd = os.open(self._root / name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if files.locked(fd):
                    files.remove(self._root / name)
                else:
                    found.add(name)
            finally:
                os.close(fd)
        return found
