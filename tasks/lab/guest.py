"""A guest's disk without a guest: real ext4 file systems in flat files, changed in place, without root.

For the demo and the tests. Files and layout follow from the arguments; the times inside are those of the call.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from tasks.lab.datastores import PATH
from tasks.lab.processes import LabError

BLOCK = 4096

#: What debugfs says when there is nothing to replace, or the folder is there already: both are what was wanted.
_FINE = re.compile(r"rm: File not found by ext2_lookup|\w*mkdir: Ext2 (file|directory) already exists")

#: What it says where only root may give files to others, which does not matter to what is in them.
_OWNERS = re.compile(r"\w+: Operation not permitted while changing ownership")


def real_files(folder: Path, size: int) -> None:
    """Fill `folder` with about `size` bytes of real files: this Python's own, the same ones each time."""
    copied = 0
    for root in (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platlib"))):
        for parent, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            target = folder / root.name / Path(parent).relative_to(root)
            for source in (Path(parent) / name for name in sorted(names)):
                if copied >= size:
                    return
                if source.is_file() and not source.is_symlink():
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target / source.name)
                    copied += source.stat().st_size


def format_disk(disk: Path, source: Path, *, seed: int = 1) -> None:
    """Make all of the file `disk` one ext4 file system that holds the files of the folder `source`.

    The file must have its size already; it stays the same file, and what it held is gone.
    """
    size = disk.stat().st_size
    os.truncate(disk, 0)  # mkfs leaves alone what it does not need itself
    os.truncate(disk, size)
    name = str(uuid.uuid5(uuid.NAMESPACE_OID, f"understudy guest disk {seed}"))
    options = f"hash_seed={name},lazy_itable_init=0,lazy_journal_init=0"
    _run(
        "mkfs.ext4", "-F", "-q", "-b", str(BLOCK), "-U", name, "-E", options, "-d", str(source), str(disk)
    )  # fmt: skip


def formatted(disk: Path) -> bool:
    """Whether an ext4 file system begins there: its mark is at byte 1080."""
    with disk.open("rb") as file:
        file.seek(1080)
        return file.read(2) == b"\x53\xef"


def write_files(disk: Path, files: Mapping[str, bytes]) -> None:
    """Write files, replacing those that exist; missing folders are made. Paths start at the disk's root."""
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, (name, data) in enumerate(files.items()):
            source = Path(folder) / str(number)
            source.write_bytes(data)
            parents = list(Path(_absolute(name)).parents)[-2::-1]  # from the top, without the root itself
            commands += [f"mkdir {_quoted(str(parent))}" for parent in parents]
            commands += [f"rm {_quoted(name)}", f"write {_quoted(str(source))} {_quoted(name)}"]
        _debugfs(disk, commands, fine=_FINE)


def check(disk: Path) -> None:
    """Raises `LabError` with what e2fsck finds when the file system is not clean."""
    _run("e2fsck", "-f", "-n", str(disk))


def digests(disk: Path) -> dict[str, str]:
    """SHA-256 of each file in the file system, by its path."""
    with tempfile.TemporaryDirectory() as folder:
        _run("debugfs", "-R", f"rdump / {_quoted(folder)}", str(disk), fine=_OWNERS)
        return {
            "/" + str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file() and not file.is_symlink()
        }


def _debugfs(disk: Path, commands: list[str], *, fine: re.Pattern[str] | None = None) -> None:
    if not commands:
        return
    with tempfile.NamedTemporaryFile("w") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        _run("debugfs", "-w", "-f", script.name, str(disk), fine=fine)


def _run(*argv: str, fine: re.Pattern[str] | None = None) -> str:
    env = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=env)
    except FileNotFoundError as err:
        raise LabError(f"{argv[0]} is not installed; Debian's package e2fsprogs has it (`make setup`)") from err
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    if argv[0] == "debugfs":
        # debugfs always ends with 0; its first line is its version, anything else a complaint.
        complaints = [
            line for line in complaints if not line.startswith("debugfs 1.") and not (fine and fine.match(line))
        ]
    elif done.returncode == 0:
        return done.stdout
    if done.returncode != 0 or complaints:
        said = "\n".join([*complaints, *(done.stdout.splitlines()[-20:] if argv[0] == "e2fsck" else [])])
        raise LabError(f"{shlex.join(argv)} failed: {said}")
    return done.stdout


def _absolute(name: str) -> str:
    return "/" + name.lstrip("/")


def _quoted(name: str) -> str:
    if re.search(r'["\n]', name):
        raise LabError(f"debugfs cannot name {name!r}: no double quotes or line breaks, please")
    return f'"{name}"'
