"""A VM's NVRAM, which holds its firmware's variables (UEFI boot entries): read into a point, written to a VM."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from workers.disks.file import datastore_file
from workers.errors import ConfigError, NotFound, UnderstudyError
from workers.vsphere import inventory
from workers.vsphere.files import DatastoreFile
from workers.vsphere.session import Session


def read(session: Session, moref: str, mounts: Mapping[str, Path], note: Callable[[str], None]) -> str | None:
    """Base64; None with a note where it can not be read."""
    file: str | None = None
    try:
        file = inventory.nvram_path(session, moref)
        if file is None:
            return None
        try:
            path = datastore_file(mounts, file)
        except ConfigError:  # not mounted here
            return base64.b64encode(DatastoreFile(session, file).get().encode("latin-1")).decode()
        return base64.b64encode(path.read_bytes()).decode()
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
        return _put(DatastoreFile(session, file), wanted, note)
    try:
        if not path.exists() or path.read_bytes() != wanted:
            with open(path, "wb") as opened:
                opened.write(wanted)
                opened.flush()
                os.fsync(opened.fileno())
    except OSError as err:
        note(f"the NVRAM (firmware settings) was not written to {path}: {err.strerror}; check its rights")


def _put(file: DatastoreFile, wanted: bytes, note: Callable[[str], None]) -> None:
    """Through vCenter, where the datastore is not mounted."""
    try:
        try:
            if file.get().encode("latin-1") == wanted:
                return
        except NotFound:
            pass  # the VM has never run
        file.put(wanted.decode("latin-1"))
    except UnderstudyError as err:
        note(f"the NVRAM (firmware settings) was not written: {err}")
