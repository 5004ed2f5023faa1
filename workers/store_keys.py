"""Keys of encrypted stores: a new one in a file of its own, and from one to another without a pause."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from workers.errors import BadInput, NoSpace
from workers.models import Model
from workers.settings import Settings
from workers.settings.secrets import KEY
from workers.settings.secrets import key as read_key
from workers.store import keyring
from workers.store.store import configured


class KeyReport(Model):
    """A store and the ids of the keys that open it; none = it is not encrypted."""

    store: str
    path: str
    keys: tuple[str, ...]
    #: the id of the key that is configured here; None = none is
    configured: str | None
    #: keys that no longer open it, by this call
    ended: tuple[str, ...] = ()


def new(file: Path) -> str:
    """Writes a fresh key where nothing is, for its owner alone, and returns the key's id. `BadInput` when it cannot."""
    key = secrets.token_bytes(KEY)
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as err:
        raise BadInput(
            f"{file} is there, and it may be the only copy of a key: it is not overwritten. Choose another name"
        ) from err
    except (OSError, ValueError) as err:
        raise BadInput(f"{file} cannot be made: {err.strerror if isinstance(err, OSError) else err}") from err
    try:
        with os.fdopen(fd, "w") as out:
            out.write(key.hex() + "\n")
            out.flush()
            os.fsync(out.fileno())
    except OSError as err:
        file.unlink(missing_ok=True)
        raise NoSpace(f"the key could not be written into {file}: {err.strerror}; nothing is left there") from err
    folder = os.open(file.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # a store may be made with it the next moment, and is worth nothing without it
    finally:
        os.close(folder)
    return keyring.key_id(key)


def report(settings: Settings, store: str) -> KeyReport:
    """Which keys open the store. Also where the configured one does not."""
    place = settings.store(store)
    key = place.key()
    found = keyring.read(configured(place))
    return KeyReport(
        store=store,
        path=place.where,
        keys=tuple(sorted(found.sealed or ())),
        configured=keyring.key_id(key) if key is not None else None,
    )


def add(settings: Settings, store: str, new_file: Path) -> KeyReport:
    """The key in `new_file` opens the store from now on, beside the one that is configured."""
    place = settings.store(store)
    keyring.add(configured(place), _configured(settings, store), read_key(new_file, None, "a store's key"))
    return report(settings, store)


def finish(settings: Settings, store: str) -> KeyReport:
    """Only the key that is configured opens the store any more."""
    ended = keyring.keep_only(configured(settings.store(store)), _configured(settings, store))
    return report(settings, store).model_copy(update={"ended": ended})


def _configured(settings: Settings, store: str) -> bytes:
    key = settings.store(store).key()
    if key is None:
        raise BadInput(
            f"no key is configured for the store {store!r}: stores.{store}.key_file or key_env must say where the key "
            f"is that opens it now"
        )
    return key
