"""Passwords, keys, and addresses that may hold a password: from a file or the environment, and never shown."""

from __future__ import annotations

import base64
import os
import re
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from workers.errors import ConfigError

#: bytes of a store's key
KEY = 32

REDIS = "an address such as redis://host:6379/0, or rediss:// for TLS (it is not shown: it may hold a password)"


def read(file: Path | None, variable: str | None, what: str) -> str:
    """A file's first line, or what an environment variable holds. Raises `ConfigError`."""
    if variable is not None:
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(f"the environment variable {variable} is not set; it should hold {what}")
        return value
    assert file is not None
    try:
        return file.read_text().splitlines()[0]
    except (OSError, IndexError, ValueError) as err:  # ValueError: no text, or no file name
        raise ConfigError(f"the file {file} cannot be read; write {what} into its first line") from err


def parts(file: Path | None, variable: str | None, what: str, which: str) -> list[str]:
    """Two or three: a file's lines, or what a variable holds between colons. Raises `ConfigError`, without them."""
    if variable is not None:
        found = [part.strip() for part in read(None, variable, what).split(":")]
    else:
        assert file is not None
        try:
            found = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as err:
            raise ConfigError(f"the file {file} cannot be read; write {what} into it, a line each: {which}") from err
    if len(found) not in (2, 3) or not all(found):
        whence = f"the environment variable {variable}" if variable is not None else f"the file {file}"
        joined = "with a colon between them" if variable is not None else "a line each"
        raise ConfigError(f"{whence} should hold {what}, {joined}: {which}")
    return found


def key(file: Path | None, variable: str | None, what: str) -> bytes:
    """32 bytes, as 64 hexadecimal digits or Base64. Raises `ConfigError`, which does not show what is there."""
    text = read(file, variable, f"{what}: 32 bytes as 64 hexadecimal digits or in Base64").strip()
    for decoded in (bytes.fromhex, partial(base64.b64decode, validate=True)):
        with suppress(ValueError):
            found: bytes = decoded(text)
            if len(found) == KEY:
                return found
    where = f"the environment variable {variable}" if variable is not None else f"the first line of the file {file}"
    raise ConfigError(
        f"{where} is not {what}: that is 32 bytes, as 64 hexadecimal digits or in Base64. "
        f"`understudy store key new FILE` makes one (of a new store: what is sealed with another key stays so)"
    )


def trouble(file: Path | None, variable: str | None) -> str | None:
    """Why a secret cannot be read on this machine, or who else can; None when all is well."""
    if variable is not None:
        return None if variable in os.environ else f"the environment here has no {variable}"
    if file is None:
        return None
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as err:
        return f"{file} cannot be read here: {err.strerror if isinstance(err, OSError) else err}"
    if not stat.S_ISREG(mode):
        return f"{file} is not a file"
    if not os.access(file, os.R_OK):
        return f"{file} may not be read by this user"
    return f"{file} may be read by others: chmod o-r" if mode & stat.S_IROTH else None


def redis_address(text: str) -> str:
    """Raises `ValueError`."""
    try:
        parts = urlsplit(text)
        whole = parts.scheme in ("redis", "rediss") and re.fullmatch(r"(?:/\d*)?", parts.path) and parts.port != 0
    except ValueError:  # a port that is no number
        whole = False
    if not (whole or text.startswith("redis+socket:///")) or not text.isprintable() or " " in text:
        raise ValueError(REDIS)
    return text


def catalogue_address(text: str) -> str:
    """Raises `ValueError`. The catalogue itself looks closer."""
    if not text.startswith(("sqlite:///", "postgresql:", "postgresql+psycopg:", "postgres:")) or not text.isprintable():
        raise ValueError(
            "sqlite:////path/to/catalogue.db or postgresql+psycopg://user@host/database "
            "(it is not shown: it may hold a password)"
        )
    return text
