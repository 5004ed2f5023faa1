"""The lab's datastores: an XFS image where that is possible, a folder where not, and nothing left of either."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.lab import LabError, datastores


def loops(image: Path) -> list[str]:
    listing = subprocess.run(["/sbin/losetup", "-n", "-O", "NAME", "-j", image], capture_output=True, text=True)
    return listing.stdout.split()


def can_mount() -> bool:
    return (
        os.geteuid() == 0 and shutil.which("mkfs.xfs", path=datastores.PATH) is not None and Path("/dev/loop0").exists()
    )


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs root, mkfs.xfs and loop devices")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    datastores.detach(tmp_path)


@needs_mount
def test_an_image_is_made_once_and_mounted_again_with_what_it_held(folder: Path) -> None:
    words = datastores.attach(folder)
    if words.startswith("a folder on"):
        pytest.skip("the temporary folder has reflinks itself")
    assert words.startswith("XFS with reflinks")
    assert datastores.shares_blocks(folder / "datastores")
    (folder / "datastores" / "kept").write_text("kept")
    assert datastores.attach(folder) == words, "a second time changes nothing"
    image = folder / "datastores.img"
    assert image.stat().st_blocks * 512 < 256 << 20, "the image is sparse"
    assert len(loops(image)) == 1
    for _ in range(2):
        datastores.detach(folder)
        assert not datastores.is_mounted(folder / "datastores") and not loops(image)
    datastores.attach(folder)
    assert (folder / "datastores" / "kept").read_text() == "kept"


@needs_mount
def test_a_loop_device_left_by_a_crash_is_freed(folder: Path) -> None:
    if not datastores.attach(folder).startswith("XFS"):
        pytest.skip("the temporary folder has reflinks itself")
    datastores.detach(folder)
    image = folder / "datastores.img"
    subprocess.run(["/sbin/losetup", "-f", image], check=True)
    datastores.detach(folder)
    assert not loops(image)


@needs_mount
def test_who_uses_the_datastores_is_named(folder: Path) -> None:
    if not datastores.attach(folder).startswith("XFS"):
        pytest.skip("the temporary folder has reflinks itself")
    with (folder / "datastores" / "open").open("w"), pytest.raises(LabError, match=rf"pid {os.getpid()}\b"):
        datastores.detach(folder)
    datastores.detach(folder)


@needs_mount
def test_an_image_that_cannot_be_mounted_is_not_replaced_by_an_empty_folder(folder: Path) -> None:
    if not datastores.attach(folder).startswith("XFS"):
        pytest.skip("the temporary folder has reflinks itself")
    datastores.detach(folder)
    with (folder / "datastores.img").open("r+b") as file:
        file.write(bytes(4096))  # the superblock
    with pytest.raises(LabError, match="cannot be mounted"):
        datastores.attach(folder)


def test_without_mkfs_it_is_a_plain_folder_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tool's absence cannot be had otherwise without uninstalling it.
    monkeypatch.setattr(datastores, "PATH", str(folder))
    words = datastores.attach(folder)
    assert words.startswith(("a plain folder", "a folder on")) and (folder / "datastores").is_dir()
    assert datastores.attach(folder) == words
    assert not (folder / "datastores.img").exists()


def test_a_folder_that_is_in_use_is_not_hidden_by_a_mount(folder: Path) -> None:
    (folder / "datastores").mkdir()
    (folder / "datastores" / "disk").write_text("data")
    assert datastores.attach(folder).startswith(("a plain folder", "a folder on"))
    assert (folder / "datastores" / "disk").read_text() == "data"
