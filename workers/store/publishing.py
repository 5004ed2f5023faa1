"""Publication where there is no link(2) and no flock: one object at a time changes, if it is still what it was.

commit     the writer's note says which number it is for; the number is claimed; the note is looked at once more; the
           claim becomes the manifest.
exchange   the same with a mark in front of the manifest that is there, in place of a claim.
end        the note is turned into one that has ended, and stays so; then the claim, or mark, that it names is broken.
           Whoever published before that has published; whoever comes later finds that his claim is no more.
retire     the manifest is marked, pins are looked for, the marked manifest becomes the mark of a retired point. A pin
           that finds such a mark takes it off, and the retirement begins anew.

No step waits for a clock: a process may stop for as long as it likes between any two of them. Each claim and mark is
unlike every other, so "still what it was" is never true by accident.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import time
from collections.abc import Callable

from workers.errors import Conflict, Transient
from workers.store.place import Remote

_CLAIM = b'{"claimed":'
_MARK = b'{"marked":'
_STAGED = b'{"staged":'
_ENDED = b'{"ended":'

#: of a run's folder: what keeps it while no writer is there
REGISTERED = "registered"
#: whoever claimed a number has two requests to make: who wants it too, and sees no end of it, takes it over
PATIENCE = 2.0
#: tries against others who change the same object; each lost one means that somebody else got on
TRIES = 50


def content(data: bytes) -> bytes | None:
    """The manifest in an object below points/, or a retired point's mark; None = the number is only claimed."""
    if data.startswith(_CLAIM):
        return None
    return data.partition(b"\n")[2] if data.startswith(_MARK) else data


# --- runs and their notes -----------------------------------------------------------------------------------


def register(folder: Remote, note: Remote, data: bytes) -> None:
    """FileNotFoundError when the run was ended meanwhile; then nothing is left of this call."""
    with contextlib.suppress(FileExistsError):
        (folder / REGISTERED).create(_line(_REGISTERED, ""))
    note.create(data)
    if not (folder / REGISTERED).exists():
        note.remove()
        raise FileNotFoundError(str(folder))


_REGISTERED = b'{"registered":'


def leave(note: Remote) -> None:
    """A writer goes. What it has begun to publish must be known to whoever ends the run: that note stays."""
    with contextlib.suppress(FileNotFoundError):
        if not note.read_bytes().startswith((_STAGED, _ENDED)):
            note.remove()


def end(folder: Remote, points: Remote) -> bool:
    """Whether there was such a run. All notes are ended, also those that come meanwhile."""
    found = False
    while there := folder.names(""):
        found = True
        for name in sorted(there, key=lambda name: name == REGISTERED):
            _kill(folder / name, points)
    return found


def _kill(note: Remote, points: Remote) -> None:
    for _ in range(TRIES):
        try:
            data = note.read_bytes()
        except FileNotFoundError:
            return
        target = _said(data) if data.startswith((_STAGED, _ENDED)) else ""
        if not data.startswith(_ENDED):
            try:
                note.swap(data, _line(_ENDED, target))
            except Conflict:
                continue
        if target:
            vm, _, name = target.partition("/")
            _break(points / vm / name, _id(note))
        note.remove()
        return
    raise _restless(note)


def _break(target: Remote, note: str) -> None:
    """Takes away what the note's writer needs to find there."""
    for _ in range(TRIES):
        try:
            there = target.read_bytes()
        except FileNotFoundError:
            return
        if not there.startswith((_CLAIM, _MARK)) or _said(there) != note:
            return
        with contextlib.suppress(Conflict):
            return target.swap(there, content(there) or _line(_CLAIM, ""))
    raise _restless(target)


def _alive(note: Remote) -> bool:
    try:
        return not note.read_bytes().startswith(_ENDED)
    except FileNotFoundError:
        return False


# --- publishing ---------------------------------------------------------------------------------------------


def stage(note: Remote, target: Remote, manifest: bytes, beside: Remote | None = None) -> None:
    """The note says what will be published where: a writer's own, or a new one `beside` that.

    FileNotFoundError when the run was ended.
    """
    data = _line(_STAGED, f"{target.parent.name}/{target.name}") + manifest
    if beside is not None:
        note.create(data)
        if not _alive(beside):  # who ended that one before this was there may not have seen this
            note.remove()
            raise FileNotFoundError(str(note))
        return
    was = note.read_bytes()
    if was.startswith(_ENDED):
        raise FileNotFoundError(str(note))
    try:
        note.swap(was, data)
    except Conflict as err:
        raise FileNotFoundError(str(note)) from err


def claim(note: Remote, target: Remote) -> None:
    """Publishes what is staged. FileExistsError: somebody else has. FileNotFoundError: the run was ended."""
    manifest = _staged(note)
    mine = _line(_CLAIM, _id(note))
    for _ in range(TRIES):
        try:
            target.create(mine)
        except FileExistsError:
            try:
                there = target.read_bytes()
            except FileNotFoundError:
                continue
            if there == manifest:  # by us: the answer was lost
                return
            if not there.startswith(_CLAIM):
                raise
            if there != mine and not _taken_over(target, there, mine):
                continue
        if not _alive(note):
            with contextlib.suppress(Conflict):
                target.swap(mine, _line(_CLAIM, ""))
            raise FileNotFoundError(str(note))
        with contextlib.suppress(Conflict):
            return target.swap(mine, manifest)
    raise _restless(target)


def _taken_over(target: Remote, there: bytes, mine: bytes) -> bool:
    """Whether the claim of somebody who is gone, or takes too long, is ours now."""
    run, _, name = _said(there).partition("/")
    if run and _alive(target.parent.parent.parent / "writers" / run / name):
        time.sleep(PATIENCE * (1 + random.random()))
        with contextlib.suppress(FileNotFoundError):
            if target.read_bytes() != there:
                return False
    try:
        target.swap(there, mine)
    except Conflict:
        return False
    return True


def exchange(note: Remote, target: Remote, same: Callable[[bytes], bool]) -> bool:
    """What is staged takes the place of the manifest that is `same`; False when there is another, or none any more.

    FileNotFoundError when the run was ended.
    """
    manifest = _staged(note)
    for _ in range(TRIES):
        try:
            there = target.read_bytes()
        except FileNotFoundError:
            return False
        if there == manifest:
            return True
        plain = content(there)
        if plain is None or not same(plain):
            return False
        marked = _line(_MARK, _id(note)) + plain
        with contextlib.suppress(Conflict):
            target.swap(there, marked)
            if not _alive(note):
                target.swap(marked, plain)
                raise FileNotFoundError(str(note))
            return target.swap(marked, manifest) is None
        _pause()
    raise _restless(target)


# --- retiring -----------------------------------------------------------------------------------------------


def mark(target: Remote) -> tuple[bytes, bytes]:
    """Marked as being retired; the content of the object and what is in it. FileNotFoundError when it is no more."""
    for _ in range(TRIES):
        there = target.read_bytes()
        plain = content(there)
        if plain is None:
            raise FileNotFoundError(str(target))
        marked = _line(_MARK, "") + plain
        with contextlib.suppress(Conflict):
            target.swap(there, marked)
            return marked, plain
        _pause()
    raise _restless(target)


def unmark(target: Remote, marked: bytes) -> None:
    with contextlib.suppress(Conflict):
        target.swap(marked, content(marked) or b"")


def spare(target: Remote) -> None:
    """For a pin that is there: no retirement that looked for pins before gets through after this."""
    for _ in range(TRIES):
        try:
            there = target.read_bytes()
        except FileNotFoundError:
            return
        if not there.startswith(_MARK) or _said(there):
            return
        with contextlib.suppress(Conflict):
            return target.swap(there, content(there) or b"")
    raise _restless(target)


# --- the first line of these objects ------------------------------------------------------------------------


def _line(kind: bytes, value: str) -> bytes:
    more = json.dumps({"format": 1, "nonce": secrets.token_hex(8)})[1:]
    return kind + json.dumps(value).encode() + b"," + more.encode() + b"\n"


def _said(data: bytes) -> str:
    """The value of the first line."""
    return str(next(iter(json.loads(data.partition(b"\n")[0]).values())))


def _id(note: Remote) -> str:
    return f"{note.parent.name}/{note.name}"


def _staged(note: Remote) -> bytes:
    data = note.read_bytes()
    if not data.startswith(_STAGED):
        raise FileNotFoundError(str(note))
    return data.partition(b"\n")[2]


def _pause() -> None:
    time.sleep(0.2 * random.random())


def _restless(path: Remote) -> Transient:
    return Transient(f"{path} is changed by others faster than it can be changed here; it is tried again later")
