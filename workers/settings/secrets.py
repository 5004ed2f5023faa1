"""Passwords, and addresses that may hold one: from a file or the environment, and never shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from workers.errors import ConfigError

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


def redis_address(text: str) -> str:
    """Raises `ValueError`."""
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("redis", "rediss", "redis+socket") or (parts.port == 0):
            raise ValueError(REDIS)
        if not text.isprintable() or " " in text or not re.fullmatch(r"(?:/\d*)?", parts.path or "/"):
            if parts.scheme != "redis+socket":
                raise ValueError(REDIS)
    except ValueError:
        raise ValueError(REDIS) from None
    return text


def catalogue_address(text: str) -> str:
    """Raises `ValueError`. The catalogue itself looks closer."""
    if not text.startswith(("sqlite:///", "postgresql:", "postgresql+psycopg:", "postgres:")) or not text.isprintable():
        raise ValueError(
            "sqlite:////path/to/catalogue.db or postgresql+psycopg://user@host/database "
            "(it is not shown: it may hold a password)"
        )
    return text
