"""A disk that whoever opens it has alone; its host gives it another content id at the first write of each opening."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from workers.disks.carrier import Held
from workers.disks.described import Described, Text
from workers.disks.saving import ReadWriter
from workers.errors import DiskBusy, UnderstudyError


class Closing(Protocol):
    def close(self) -> None: ...


Opening = TypeVar("Opening", bound=Closing)


@contextmanager
def alone(
    descriptor: Text, take: Callable[[], Opening], writer: Callable[[Opening, bool], ReadWriter]
) -> Iterator[Held]:
    """Hold the disk that `take` opens. The content id that it had comes back at the end, for by that the run knows that
    nobody else has written."""
    held = _Alone(descriptor, take(), writer)
    try:
        yield held
    except BaseException:
        with suppress(UnderstudyError, OSError):  # the first error is the one to be told
            held.let_go(take)
        raise
    held.let_go(take)


class _Alone(Held):
    def __init__(self, descriptor: Text, opened: Opening, writer: Callable[[Opening, bool], ReadWriter]) -> None:
        self._descriptor = descriptor
        self._opened: Closing = opened
        self._writer: Callable[[bool], ReadWriter] = lambda holes: writer(opened, holes)
        self._before = ""

    def writer(self, *, holes: bool) -> ReadWriter:
        described = Described(self._descriptor)
        described.check_base()
        self._before = self._before or described.cid
        return self._writer(holes)

    def let_go(self, take: Callable[[], Closing]) -> None:
        """Close the disk, and open it once more without writing to give it the former content id: nobody can write
        between the look and that. Whoever did it before, or has the disk now, has left an id that is not ours, and
        it stays to be seen."""
        try:
            ours = Described(self._descriptor).cid if self._before else ""
        finally:
            self._opened.close()
        if ours == self._before:
            return
        with suppress(DiskBusy):
            again = take()
            try:
                described = Described(self._descriptor)
                if described.cid == ours:
                    described.renew(self._before)
            finally:
                again.close()
