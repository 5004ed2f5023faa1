"""The programs that the benchmarks compare with: each backs up, restores and applies in its own way, then syncs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: peer -> the Debian package it comes from (deploy/setup.sh installs them); Benji is on PyPI
PACKAGES = {
    "borg": "borgbackup", "restic": "restic", "rsync": "rsync", "qemu-img": "qemu-utils", "nbdcopy": "libnbd-bin",
}  # fmt: skip
#: what the benchmark itself needs
NEEDS = {
    "mkfs.ext4": "e2fsprogs", "debugfs": "e2fsprogs", "cmp": "diffutils", "mkfs.xfs": "xfsprogs", "nbdkit": "nbdkit",
}  # fmt: skip
#: seconds after which a program that does not end is given up
PATIENCE = 3600
#: Benji 0.17 asks for a ruamel.yaml that newer Pythons cannot build. This one does, and the rest is what it names.
BENJI = ("benji==0.17.0", "ruamel.yaml==0.17.40")
BENJI_NEEDS = (
    "PrettyTable<1", "sqlalchemy<2", "setproctitle<2", "python-dateutil<3", "alembic<2", "psycopg2-binary<3",
    "argcomplete<2", "sparsebitfield<1", "cerberus<2", "pycryptodome<4", "pyparsing<3", "semantic-version<3",
    "dateparser<2", "structlog", "colorama<1", "diskcache", "attrs<22", "setuptools", "zstandard",
)  # fmt: skip


class Failed(Exception):
    """A program ended badly; its words."""


def there(tool: str) -> bool:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


def run(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program prints. Raises `Failed` with its last words."""
    command = [str(word) for word in words]
    said = f"`{' '.join(command)}`"
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as err:
        raise Failed(f"{said} did not end within {PATIENCE} s") from err
    except OSError as err:
        raise Failed(f"{said}: {err.strerror}") from err
    if done.returncode:
        last = " ".join((done.stderr.strip() or done.stdout.strip())[-600:].split())
        raise Failed(f"{said} ended with {done.returncode}: {last}")
    return done.stdout


def with_benji(folder: Path) -> Path:
    """Its program, in a virtual environment of its own. Raises `Failed` where that cannot be made."""
    program = folder / "bin" / "benji"
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = (folder / "bin" / "python", "-m", "pip", "install", "-q")
        run(sys.executable, "-m", "venv", folder)
        run(*pip, *BENJI_NEEDS)
        run(*pip, "--no-deps", *BENJI)
        run(program, "--help")
        done.touch()
    return program


def sync_tree(path: Path) -> None:
    """All files of a repository, or one file, on stable storage."""
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class Peer:
    """One program over one repository. `versions`: what was backed up under which name."""

    name = ""
    #: what of a disk's history it is told: "a list of changes" or "nothing"
    told = "nothing"
    #: whether it keeps backups
    stores = True

    def __init__(self, folder: Path) -> None:
        self.repository = folder / self.name
        self.scratch = folder / f"{self.name}-scratch"

    def prepare(self) -> None:
        """A new repository. Not measured."""
        for path in (self.repository, self.scratch):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)

    def backup(self, disk: Path, version: str, changes: Path | None) -> None:
        raise NotImplementedError

    def restore(self, version: str, into: Path) -> Path:
        """Where the disk is now."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def _run(self, *words: str | Path, cwd: Path | None = None) -> str:
        return run(*words, env=self.environment(), cwd=cwd)

    def environment(self) -> dict[str, str]:
        return {}

    def link(self, disk: Path) -> Path:
        """The disk under one name in all versions, as a backup of a VM would have it."""
        here = disk.parent / "now" / "disk.raw"
        here.parent.mkdir(exist_ok=True)
        here.unlink(missing_ok=True)
        os.link(disk, here)
        return here


class Borg(Peer):
    name = "borg"

    def environment(self) -> dict[str, str]:
        return {"BORG_BASE_DIR": str(self.scratch), "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}  # fmt: skip

    def prepare(self) -> None:
        super().prepare()
        self._run("borg", "init", "-e", "none", self.repository)

    def backup(self, disk: Path, version: str, changes: Path | None) -> None:
        options = ("-C", "zstd,1", "--chunker-params", "fixed,4194304")
        self._run("borg", "create", *options, f"{self.repository}::{version}", self.link(disk))
        sync_tree(self.repository)

    def restore(self, version: str, into: Path) -> Path:
        self._run("borg", "extract", "--sparse", f"{self.repository}::{version}", cwd=into)
        (made,) = into.rglob("disk.raw")
        sync_tree(made)
        return made

    def version(self) -> str:
        return f"{self._run('borg', '--version').strip()} (fixed 4 MiB chunks, zstd 1)"


class Restic(Peer):
    """It always encrypts."""

    name = "restic"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._snapshots: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        return {
            "RESTIC_PASSWORD": "x",
            "RESTIC_CACHE_DIR": str(self.scratch),
            "RESTIC_REPOSITORY": str(self.repository),
        }

    def prepare(self) -> None:
        super().prepare()
        self._run("restic", "init", "-q")

    def backup(self, disk: Path, version: str, changes: Path | None) -> None:
        said = self._run("restic", "backup", "--json", "--compression", "auto", self.link(disk))
        self._snapshots[version] = json.loads(said.strip().splitlines()[-1])["snapshot_id"]
        sync_tree(self.repository)

    def restore(self, version: str, into: Path) -> Path:
        self._run("restic", "restore", "-q", "--target", into, self._snapshots[version])
        (made,) = into.rglob("disk.raw")
        sync_tree(made)
        return made

    def version(self) -> str:
        return " ".join(self._run("restic", "version").split()[:2]) + " (encrypts)"


class Benji(Peer):
    name = "benji"
    told = "a list of changes"

    def __init__(self, folder: Path, program: Path) -> None:
        super().__init__(folder)
        self._program = program
        self._config = folder / "benji.yaml"

    def prepare(self) -> None:
        super().prepare()
        self._config.write_text(
            f"configurationVersion: '1'\ndatabaseEngine: sqlite:///{self.scratch}/benji.db\ndefaultStorage: s\n"
            f"logFile: {self.scratch}/log\nblockSize: 1048576\n"
            "storages:\n  - name: s\n    storageId: 1\n    module: file\n    configuration:\n"
            f"      path: {self.repository}\n      activeTransforms: [zstd]\n"
            "transforms:\n  - name: zstd\n    module: zstd\n    configuration:\n      level: 1\n"
            "ios:\n  - name: file\n    module: file\n"
        )
        self._benji("database-init")

    def _benji(self, *words: str | Path) -> str:
        return self._run(self._program, "-c", self._config, "--log-level", "ERROR", *words)

    def backup(self, disk: Path, version: str, changes: Path | None) -> None:
        hints: tuple[str | Path, ...] = ()
        if changes is not None:
            lines = [line.split() for line in changes.read_text().splitlines()]
            told = [{"offset": int(start), "length": int(length), "exists": "true"} for start, length in lines]
            (self.scratch / "hints.json").write_text(json.dumps(told))
            hints = ("-f", "v0", "-r", self.scratch / "hints.json")
        self._benji("backup", "-b", "1048576", "-u", version, *hints, f"file:{disk}", "disk")
        sync_tree(self.repository)

    def restore(self, version: str, into: Path) -> Path:
        self._benji("restore", "-s", version, f"file:{into}/disk.raw")
        sync_tree(into / "disk.raw")
        return into / "disk.raw"

    def version(self) -> str:
        asked = "import importlib.metadata as m; print(m.version('benji'))"
        found = self._run(self._program.parent / "python", "-c", asked).strip()
        return f"benji {found} (1 MiB blocks, zstd 1, told what changed)"


class Qemu(Peer):
    """A compressed image for full backups and restores; a commit of an overlay that is there for applying."""

    name = "qemu-img"

    def backup(self, disk: Path, version: str, changes: Path | None) -> None:
        image = self.repository / f"{version}.qcow2"
        options = ("-m", "16", "-W", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd")
        self._run("qemu-img", "convert", *options, disk, image)
        sync_tree(image)

    def restore(self, version: str, into: Path) -> Path:
        made = into / "disk.raw"
        image = self.repository / f"{version}.qcow2"
        self._run("qemu-img", "convert", "-m", "16", "-W", "-f", "qcow2", "-O", "raw", image, made)
        sync_tree(made)
        return made

    def overlay(self, base: Path, disk: Path, letter: str) -> Path:
        """What of `disk` differs from `base`, as an overlay. Not measured."""
        made = self.repository / f"overlay-{letter}.qcow2"
        self._run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", made)
        self._run("qemu-img", "rebase", "-f", "qcow2", "-F", "raw", "-b", base, made)
        return made

    def aim(self, overlay: Path, target: Path) -> None:
        """Not measured."""
        self._run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", target, overlay)

    def commit(self, overlay: Path, target: Path) -> None:
        self._run("qemu-img", "commit", "-q", "-d", overlay)
        sync_tree(target)

    def version(self) -> str:
        return " ".join(self._run("qemu-img", "--version").split()[:3]) + " (zstd)"


class NbdCopy(Peer):
    """From one NBD server to another; its destination is new, which it is told."""

    name = "nbdcopy"
    stores = False

    def copy(self, source: str, target: str) -> None:
        self._run("nbdcopy", "--flush", "--destination-is-zero", source, target)

    def version(self) -> str:
        return " ".join(self._run("nbdcopy", "--version").split()[:2])


class Rsync(Peer):
    name = "rsync"
    stores = False

    def apply(self, disk: Path, target: Path) -> None:
        self._run("rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync", disk, target)

    def version(self) -> str:
        words = self._run("rsync", "--version").split()
        return f"rsync {words[2]}"
