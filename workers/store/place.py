"""Where the bytes of a store stand: a folder (pathlib.Path), or the same names in a bucket (`Remote`).

`files.py` has the verbs, each for both: for a folder they are done there, for anything else by the methods below.
What is open (`Fd`) is a descriptor of the operating system, or an object that is read or written by ranges.
"""

from __future__ import annotations

import os
import pathlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager


class Opened(ABC):
    """Something remote that is read, or written, by ranges. Thread-safe."""

    size: int

    @abstractmethod
    def read(self, length: int, offset: int) -> bytes:
        """Fewer bytes only at the end."""

    @abstractmethod
    def write(self, data: bytes | memoryview, offset: int) -> None:
        """In any order, each byte once; `data` may be used again afterwards."""

    @abstractmethod
    def finish(self) -> None:
        """What was written is durable, whole and under its name when this returns; never before."""

    @abstractmethod
    def close(self) -> None:
        """What was written and not finished is given up."""


class Remote(ABC):
    """The name of something in a place that is no file system: what the store needs of pathlib.Path, and its verbs.

    A name comes into being, goes, and gets other content in one step each; whoever lists or reads after that sees it.
    """

    # --- as pathlib.Path ------------------------------------------------------------------------------------

    @abstractmethod
    def __truediv__(self, name: str) -> Remote: ...

    @abstractmethod
    def __str__(self) -> str:
        """For people."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def parent(self) -> Remote: ...

    @abstractmethod
    def with_name(self, name: str) -> Remote: ...

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError."""

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]

    @property
    def suffix(self) -> str:
        _, dot, rest = self.name.partition(".")
        return dot + rest

    # --- the verbs of files.py ------------------------------------------------------------------------------

    @abstractmethod
    def create(self, data: bytes) -> None:
        """Raises FileExistsError."""

    @abstractmethod
    def put(self, data: bytes) -> None:
        """Whatever is there."""

    @abstractmethod
    def swap(self, was: bytes, data: bytes) -> None:
        """Other content for what is there, in one step: `Conflict` when that is not `was`, or was removed."""

    @abstractmethod
    def remove(self) -> bool:
        """Whether it was there."""

    @abstractmethod
    def names(self, suffix: str) -> list[str]:
        """Of what lies in this folder: sorted, without hidden ones. Folders that hold anything count."""

    @abstractmethod
    def folders(self) -> list[str]:
        """In this folder: sorted, without hidden ones."""

    @abstractmethod
    def sizes(self, suffix: str) -> dict[str, int]: ...

    @abstractmethod
    def listed(self) -> bool:
        """As `exists`, but it may be answered from what was listed after the last `look_anew` of the folder."""

    @abstractmethod
    def look_anew(self) -> None:
        """Of what lies in this folder."""

    @abstractmethod
    def ages(self) -> dict[str, float]:
        """Of what lies in this folder: seconds since it was written, by the place's own clock."""

    @abstractmethod
    def length(self) -> int:
        """Raises FileNotFoundError."""

    @abstractmethod
    def begin(self) -> Opened:
        """A new file that is written by ranges."""

    @abstractmethod
    def open(self) -> Fd:
        """Raises FileNotFoundError."""

    @abstractmethod
    def local(self) -> pathlib.Path:
        """A copy on this machine, for what is mapped into memory. Raises FileNotFoundError."""

    @abstractmethod
    def draft(self) -> AbstractContextManager[pathlib.Path]:
        """A local file to write; it becomes this one at the end."""

    @abstractmethod
    def sweep(self) -> None:
        """Removes what killed writers left half done."""

    @abstractmethod
    def prove(self) -> None:
        """`Refused` where names do not come into being, and change, in one step. Asked once by a process."""

    @abstractmethod
    def free(self) -> int | None:
        """None = nobody knows of a limit."""

    @abstractmethod
    def fresh(self) -> Remote:
        """The same, past every copy that is kept on this machine."""


#: Modules of this package take it for pathlib.Path; what only one of the two can do goes through `files.py`.
Path = pathlib.Path | Remote
Fd = int | Opened


def size_of(fd: Fd) -> int:
    return os.fstat(fd).st_size if isinstance(fd, int) else fd.size


def read_at(fd: Fd, length: int, offset: int) -> bytes:
    """Up to `length` bytes."""
    return os.pread(fd, length, offset) if isinstance(fd, int) else fd.read(length, offset)


def close(fd: Fd) -> None:
    if isinstance(fd, int):
        os.close(fd)
    else:
        fd.close()
