"""What stands in for VMware's library: built by gcc, loaded by nbdkit's real plugin. And whether it can be had here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.services import missing
from workers.disks import libnbd
from workers.disks.nbdkit import Library
from workers.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "vddk" / "vixdisklib.c"
#: fetched by deploy/setup.sh where the system has no package of it
FETCHED = ROOT / ".build" / "nbdkit-vddk-plugin.so"


def plugin() -> str:
    return str(FETCHED) if FETCHED.exists() else "vddk"


@cache
def lacking() -> str:
    """Why the carrier nbd can not be tried here; "" when it can."""
    try:
        libnbd.library()
    except ConfigError as err:
        return str(err)
    for command in ("nbdkit", "gcc"):
        if shutil.which(command) is None:
            return f"{command} is not installed"
    asked = subprocess.run(["nbdkit", plugin(), "--dump-plugin"], capture_output=True, text=True, check=False)
    return "" if asked.returncode == 0 else f"nbdkit has no plugin vddk: {asked.stderr.strip()}"


def needed() -> None:
    if why := lacking():
        missing(why)


@contextmanager
def alone() -> Iterator[Path]:
    """Sockets, registers and locks of this test alone. Its path is short: a socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="us-", dir="/tmp") as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


class Standin:
    """A folder with the library: to be given as `libdir`."""

    def __init__(self, folder: Path, datastores: dict[str, Path], **login: str) -> None:
        needed()
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        (self.faults / "log").touch()
        built = ROOT / ".build" / "libvixDiskLib.so.8"
        if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
            built.parent.mkdir(exist_ok=True)
            beside = built.with_suffix(f".{os.getpid()}")
            command = ["gcc", "-Wall", "-O2", "-fPIC", "-shared", "-o", str(beside), str(SOURCE), "-lpthread", "-ldl"]
            subprocess.run(command, check=True)
            beside.replace(built)
        shutil.copy(built, folder / built.name)  # a copy: it looks beside itself for what it is told
        lines = [f"datastore {name} {path}" for name, path in datastores.items()]
        (folder / "standin").write_text("\n".join([*lines, *(f"{k} {v}" for k, v in login.items())]) + "\n")

    @property
    def library(self) -> Library:
        return Library(self.folder, plugin())

    def fault(self, name: str, value: int = 0) -> None:
        (self.faults / name).write_text(f"{value}\n")

    def cure(self) -> None:
        for file in self.faults.iterdir():
            if file.name != "log":
                file.unlink()

    @property
    def log(self) -> list[str]:
        return (self.faults / "log").read_text().splitlines()
