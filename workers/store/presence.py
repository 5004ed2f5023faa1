"""Who is there, where there is no flock: an object that is renewed every minute; one that is old was left by the dead.

How old it is says the clock of the place alone: the time when it was written, and the time of the answer that lists it.

Who slept longer than `DEAD` may be taken for dead while it lives. That harms nobody: a reader then finds an object gone
and begins anew (what it reads is checked by digest, and ids are never used again); of a lock nothing depends but that
work is not done twice: whatever its holders change, they change only if it still is what they read.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from workers.errors import Conflict, UnderstudyError
from workers.store.place import Remote

#: seconds between two renewals, and after how many seconds without one somebody is dead
BEAT = 60.0
DEAD = 900.0


class Presence:
    """Renews until `close`. Also a fork's parent may go on: the child's copy has no thread, and ends nothing."""

    def __init__(self, renew: Callable[[], None], gone: Callable[[], object]) -> None:
        self._renew = renew
        self._gone = gone
        self._pid = os.getpid()
        self._end = threading.Event()
        self._seen = _now()
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="presence in the store", daemon=True)
        self._thread.start()
        _open.add(self)

    @property
    def lapsed(self) -> bool:
        """Whether others may have taken us for dead."""
        return self._lost or _now() - self._seen > DEAD

    def close(self) -> None:
        if os.getpid() != self._pid or self._end.is_set():
            return
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with contextlib.suppress(OSError, UnderstudyError):
            self._gone()

    def _run(self) -> None:
        while not self._end.wait(BEAT):
            at = _now()
            try:
                self._renew()
            except Conflict:
                self._lost = True
                return
            except (OSError, UnderstudyError):
                continue  # tried again at the next beat: DEAD has room for many
            self._seen = at


#: ended with the process, while a farewell can still be sent
_open: weakref.WeakSet[Presence] = weakref.WeakSet()


@atexit.register
def _farewell() -> None:
    for presence in list(_open):
        presence.close()


def _now() -> float:
    """Goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def attend(path: Remote, data: bytes) -> Presence:
    path.put(data)
    return Presence(lambda: path.put(data), path.remove)


def live(folder: Remote) -> set[str]:
    """Those who are there; removes what the dead left."""
    found = set()
    for name, age in folder.ages().items():
        if age <= DEAD:
            found.add(name)
        else:
            (folder / name).remove()
    return found


@contextlib.contextmanager
def alone(path: Remote) -> Iterator[bool]:
    """Whether this process has the lock `path` now."""
    held = _Held(path)
    if not held.taken():
        yield False
        return
    presence = Presence(held.renew, held.release)
    try:
        yield True
    finally:
        presence.close()


_FREE = b'{"format":1}\n'


class _Held:
    def __init__(self, path: Remote) -> None:
        self._path = path
        self._mine = self._fresh()
        #: what was written since without an answer: it may have arrived
        self._tried: list[bytes] = []

    @staticmethod
    def _fresh() -> bytes:
        return b'{"format":1,"nonce":"%s"}\n' % secrets.token_hex(8).encode()

    def taken(self) -> bool:
        try:
            self._path.create(self._mine)
            return True
        except FileExistsError:
            pass
        try:
            there = self._path.read_bytes()
            if there != _FREE and self._path.parent.ages().get(self._path.name, 0.0) <= DEAD:
                return False
            self._path.swap(there, self._mine)
        except (FileNotFoundError, Conflict):
            return False
        return True

    def renew(self) -> None:
        self._exchange(self._fresh())

    def release(self) -> None:
        """Not removed: between a look and a removal it may become somebody else's."""
        self._exchange(_FREE)

    def _exchange(self, fresh: bytes) -> None:
        """Raises `Conflict` when it is somebody else's by now."""
        known, self._tried = [self._mine, *self._tried], [*self._tried, fresh]
        for was in known:
            with contextlib.suppress(Conflict):
                self._path.swap(was, fresh)
                self._mine, self._tried = fresh, []
                return
        raise Conflict(f"{self._path} was taken by somebody else meanwhile")
