"""store.json: which store this is, and its data key, sealed with each of the operator's keys that open it.

Two keys open it while the operator goes from one to the other; nothing else of the store changes then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from blake3 import blake3

from workers.errors import BadInput, Conflict, NotFound, WrongKey
from workers.store import crypt, files, layout, publishing
from workers.store.crypt import PLAIN, Keys
from workers.store.place import Path, Remote


class Found(NamedTuple):
    """What store.json says."""

    id: str
    #: the id of each key that opens the store -> the data key, sealed with it; None = the store is not encrypted
    sealed: dict[str, str] | None
    whole: dict[str, Any]
    #: store.json, byte for byte
    data: bytes


def key_id(key: bytes) -> str:
    """What a key is called where it must not be shown."""
    return blake3(key, derive_key_context="Understudy, a wrapping key's id, 1").hexdigest()[:16]


def fresh(store_id: str, key: bytes | None, *, created: str) -> bytes:
    """The content of a new store's file."""
    about: dict[str, Any] = {"format": layout.FORMAT, "id": store_id, "check": _check(store_id), "created": created}
    if key is not None:
        about["format"] = layout.SEALED
        about["encryption"] = _section(store_id, {key_id(key): _wrapped(store_id, os.urandom(crypt.KEY), key)})
    return files.to_json(about)


def read(store: Path) -> Found:
    """Raises `NotFound`, `StoreDamaged`, `StoreTooNew`."""
    file = store / "store.json"
    try:
        data = file.read_bytes()
        whole = json.loads(data)
        version, store_id = whole["format"], str(whole["id"])
        if isinstance(version, int) and version > layout.SEALED:
            raise layout.too_new(file, version, layout.SEALED)
        if whole.get("check", _check(store_id)) != _check(store_id):  # stores that are older have none
            raise ValueError("its digest does not match")
        part = whole.get("encryption")
        if version != (layout.FORMAT if part is None else layout.SEALED):
            raise ValueError("its format is not that of what it says")
        sealed = None if part is None else {str(each): str(key) for each, key in part["keys"].items()}
        if sealed is not None and part != _section(store_id, sealed):
            raise ValueError("the digest of its keys does not match")
    except (FileNotFoundError, NotADirectoryError) as err:
        raise NotFound(
            f"there is no store at {store}: check the path and that it is mounted, or make one with `understudy init`"
        ) from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise layout.damaged(file, "it does not say which store this is") from err
    return Found(store_id, sealed, whole, data)


def keys(store: Path, found: Found, key: bytes | None) -> Keys:
    """What the store's files are sealed with. Raises `WrongKey`."""
    if found.sealed is None:
        if key is not None:
            raise WrongKey(
                f"the store {store} is not encrypted, and a key is configured for it: take `key_file` or `key_env` out "
                f"of its settings. A store cannot be encrypted later: make another one with a key, and let backups "
                f"begin anew there"
            )
        return PLAIN
    return Keys(_data_key(store, found, key))


def add(store: Path, key: bytes, more: bytes) -> tuple[str, ...]:
    """From now on `more` opens the store as well as `key` does. The ids of all keys that open it."""

    def once() -> tuple[str, ...]:
        found = read(store)
        data_key = _data_key(store, found, key)
        sealed = dict(found.sealed or {})
        if key_id(more) not in sealed:
            _write(store, found, sealed | {key_id(more): _wrapped(found.id, data_key, more)})
        return _checked(store, data_key, key, more)

    return _alone(store, once)


def keep_only(store: Path, key: bytes) -> tuple[str, ...]:
    """Only `key` opens the store any more. The ids of those that did besides it."""

    def once() -> tuple[str, ...]:
        found = read(store)
        data_key = _data_key(store, found, key)
        assert found.sealed is not None
        others = tuple(sorted(found.sealed.keys() - {key_id(key)}))
        if others:
            _write(store, found, {key_id(key): found.sealed[key_id(key)]})
        _checked(store, data_key, key)
        return others

    return _alone(store, once)


def _data_key(store: Path, found: Found, key: bytes | None) -> bytes:
    if found.sealed is None:
        raise WrongKey(f"the store {store} is not encrypted: it has no key that could be exchanged")
    known = ", ".join(sorted(found.sealed))
    if key is None:
        raise WrongKey(
            f"the store {store} is encrypted, and no key is configured for it: say with `key_file` or `key_env` in its "
            f"settings where the key is (its id is {known})"
        )
    if key_id(key) not in found.sealed:
        raise WrongKey(
            f"the key that is configured for the store {store} does not open it ({store / 'store.json'}): its id is "
            f"{key_id(key)}, and the store is sealed with {known}. Without that key nothing in the store can be read"
        )
    try:
        return crypt.unwrap(key, bytes.fromhex(found.sealed[key_id(key)]), _context(found.id))
    except (crypt.Broken, ValueError) as err:
        raise layout.damaged(store / "store.json", "the store's key in it cannot be opened") from err


def _wrapped(store_id: str, data_key: bytes, key: bytes) -> str:
    return crypt.wrap(key, data_key, _context(store_id)).hex()


def _context(store_id: str) -> bytes:
    return f"data key of store {store_id}".encode()


def _section(store_id: str, sealed: dict[str, str]) -> dict[str, Any]:
    text = json.dumps([store_id, sealed], sort_keys=True).encode()
    return {"cipher": "AES-256-GCM", "keys": sealed, "check": layout.digest(text)[:8].hex()}


def _check(store_id: str) -> str:
    return layout.digest(store_id.encode())[:8].hex()


def _write(store: Path, found: Found, sealed: dict[str, str]) -> None:
    whole = found.whole | {"encryption": _section(found.id, sealed)}
    files.replace(store / "store.json", files.to_json(whole), secrets.token_hex(8), found.data)


def _checked(store: Path, data_key: bytes, *by: bytes) -> tuple[str, ...]:
    """Reads the file again: each of these keys opens it. Raises `StoreDamaged`."""
    found = read(store)
    if any(_data_key(store, found, key) != data_key for key in by):
        raise layout.damaged(store / "store.json", "the store's key in it is not the one that was written")
    return tuple(sorted(found.sealed or ()))


def _alone(store: Path, change: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Two who exchange keys at once do it one after the other: else a key of one would be lost."""
    if isinstance(store, Remote):  # there the file is exchanged only for what was read: who is late reads it again
        for _ in range(publishing.TRIES):
            with contextlib.suppress(Conflict):
                return change()
        raise Conflict(f"the keys of the store {store} are being exchanged by somebody else all the time; try it later")
    read(store)  # or a lock would be left where no store is
    try:
        fd = os.open(store / "key.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as err:
        raise BadInput(
            f"the keys of the store {store} cannot be exchanged from here ({err.strerror}): it must be done where the "
            f"store can be written to, by the workers' user"
        ) from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with files.room(store):
            return change()
    finally:
        os.close(fd)
