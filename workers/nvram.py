"""A VM's NVRAM, which holds its firmware's variables (UEFI boot entries): read into a point, written to a VM."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from workers.disks.file import datastore_file
from workers.errors import ConfigError, UnderstudyError
from workers.vsphere import inventory
from workers.vsphere.session import Session


def read(session: Session, moref: str, mounts: Mapping[str, Path], note: Callable[[str], None]) -> str | None:
    """Base64; None with a note where it can not be read."""
    file: str | None = None
    try:
        file = inventory.nvram_path(session, moref)
        if file is None:
            return None
        return base64.b64encode(datastore_file(mounts, file).read_bytes()).decode()
    except (UnderstudyError, OSError) as err:
        why = f"{err.filename or file}: {err.strerror}" if isinstance(err, OSError) else err
        note(f"the NVRAM was not read ({why}); a VM built from this point starts with empty firmware settings")
        return None


def write(
    text: str | None, session: Session, moref: str, mounts: Mapping[str, Path], note: Callable[[str], None]
) -> None:
    """What `read` gave, to a VM that is off; a VM without its NVRAM starts all the same, so trouble is a note."""
    if text is None:
        return
    file = inventory.nvram_path(session, moref)
    if file is None:
        return note("the NVRAM was not written: vCenter names no file for it yet")
    wanted = base64.b64decode(text)
    try:
        path = datastore_file(mounts, file)
    except ConfigError:
        return note(f"the NVRAM (firmware settings) was not written: its datastore is not mounted here ({file})")
    try:
        if not path.exists() or path.read_bytes() != wanted:
            with open(path, "wb") as opened:
                opened.write(wanted)
                opened.flush()
                os.fsync(opened.fileno())
    except OSError as err:
        note(f"the NVRAM (firmware settings) was not written to {path}: {err.strerror}; check its rights")
