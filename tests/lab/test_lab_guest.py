"""Guest disks: real ext4 in a flat file, changed in place, always clean."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tasks.lab import LabError, guest

MiB = 1 << 20


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """64 MiB with two files of ours and some megabytes of real ones."""
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "hostname").write_text("web-01\n")
    (source / "table.db").write_bytes(os.urandom(1 * MiB))
    guest.real_files(source / "usr", 4 * MiB)
    path = tmp_path / "web-01-flat.vmdk"
    with path.open("wb") as file:
        file.truncate(64 * MiB)
    guest.format_disk(path, source, seed=7)
    return path


def test_formatting_keeps_the_file_its_size_and_its_holes(disk: Path, tmp_path: Path) -> None:
    inode = disk.stat().st_ino
    with disk.open("r+b") as file:
        file.write(os.urandom(32 * MiB))
    guest.format_disk(disk, tmp_path / "source", seed=7)
    assert (disk.stat().st_ino, disk.stat().st_size) == (inode, 64 * MiB)
    assert disk.stat().st_blocks * 512 < 20 * MiB, "what the disk held before should be holes again"
    guest.check(disk)


def test_the_disk_holds_the_source_folder(disk: Path, tmp_path: Path) -> None:
    held = guest.digests(disk)
    source = tmp_path / "source"
    assert held == {
        "/" + str(file.relative_to(source)): digest(file.read_bytes()) for file in source.rglob("*") if file.is_file()
    }
    assert len(held) > 10


def test_write_replaces_adds_and_makes_folders(disk: Path) -> None:
    before = guest.digests(disk)
    inode = disk.stat().st_ino
    new = {"/etc/hostname": b"web-02\n", "/srv/a folder/index.html": b"<p>", "top": os.urandom(3 * MiB)}
    guest.write_files(disk, new)
    guest.check(disk)
    assert guest.digests(disk) == before | {
        "/etc/hostname": digest(b"web-02\n"),
        "/srv/a folder/index.html": digest(b"<p>"),
        "/top": digest(new["top"]),
    }
    assert disk.stat().st_ino == inode


def test_a_full_file_system_and_a_damaged_one_are_noticed(disk: Path) -> None:
    with pytest.raises(LabError, match="Could not allocate block"):
        guest.write_files(disk, {"/big": os.urandom(80 * MiB)})
    with disk.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(64 * 1024))  # the group descriptors
    with pytest.raises(LabError, match="e2fsck"):
        guest.check(disk)
