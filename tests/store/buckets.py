"""A bucket of a real server, with what tests of a folder do with its files."""

from __future__ import annotations

import fnmatch
import os

from workers.store.bucket import BucketPath


class TriedPath(BucketPath):
    """As `ObjectPath`, by requests."""

    def _at(self, key: str) -> TriedPath:
        return TriedPath(self.bucket, key, direct=self.direct)

    def fresh(self) -> TriedPath:
        return TriedPath(self.bucket, self.key, direct=True)

    def iterdir(self) -> list[BucketPath]:
        return [self / name for name in self.names("")]

    def write_bytes(self, data: bytes) -> None:
        self.put(data)

    def unlink(self) -> None:
        assert self.remove()

    def touch(self) -> None:
        self.put(b"")

    def rglob(self, pattern: str) -> list[BucketPath]:
        found = [each["name"] for page, _, _ in self.bucket.listing(self.key, deep=True) for each in page]
        paths = [self / name for name in found]
        return [path for path in paths if fnmatch.fnmatch(path.name, pattern)]

    def stat(self) -> os.stat_result:
        return os.stat_result((0o100600, 0, 0, 1, 0, 0, self.length(), 0, 0, 0))
