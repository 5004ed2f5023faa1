"""Makes the three disks of the benchmarks, real ext4 of 4 GiB, and their change lists: in 64 KiB, a hypervisor's grain,
and in 4 KiB.

disk0   this machine's own programs, libraries and manuals, some 2.5 GiB
disk1a  disk0 with 1 % of all its 4 KiB blocks rewritten, evenly over what is in use: the worst case
disk1b  disk0 with 100 MiB of new files
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

SIZE = 4 << 30
GRAIN = 64 << 10
BLOCK = 4096
LIBRARIES = ("x86_64-linux-gnu", "python3", "python3.11", "llvm-14", "gcc", "git-core", "postgresql")
TREES = ("/usr/bin", "/usr/include", "/usr/libexec", "/usr/share/doc", "/usr/share/man")
_UUID = "11111111-2222-3333-4444-555555555555"


def make(folder: Path, size: int = SIZE) -> None:
    """What is there already is kept, unless it is of another size."""
    if (folder / "disk0.raw").exists() and (folder / "disk0.raw").stat().st_size != size:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "disk0.raw").exists():
        _base(folder, size)
    if not (folder / "disk1a.changes").exists():
        _scattered(folder, size)
        _changes(folder, "disk1a")
    if not (folder / "disk1b.changes").exists():
        _new_files(folder, size)
        _changes(folder, "disk1b")


def _base(folder: Path, size: int) -> None:
    stage, made = folder / "stage", folder / "disk0.made"
    shutil.rmtree(stage, ignore_errors=True)
    left = size * 5 // 8
    for tree in (*TREES, *(f"/usr/lib/{name}" for name in LIBRARIES)):
        if not Path(tree).is_dir():
            continue
        if size < SIZE:
            left -= _some_of(Path(tree), stage, left)
        else:
            target = stage / tree.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            # Hard links where that works, else copies.
            if subprocess.run(["cp", "-al", tree, target], stderr=subprocess.DEVNULL).returncode:
                subprocess.run(["cp", "-a", tree, target.parent], check=True)
    with open(made, "wb") as file:
        file.truncate(size)
    options = f"lazy_itable_init=0,discard,hash_seed={_UUID}"
    command = ["mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-E", options, "-U", _UUID, "-d", stage, made]
    subprocess.run(command, check=True)
    shutil.rmtree(stage)
    _sparse_copy(made, folder / "disk0.raw")
    made.unlink()


def _some_of(tree: Path, stage: Path, most: int) -> int:
    """Files of 16 KiB to 1 MiB of a tree, for a small disk; how many bytes they have. It would have no inodes for the
    thousands of small ones."""
    held = 0
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if not 16 << 10 <= (length := path.stat().st_size) <= min(1 << 20, most - held):
            continue
        target = stage / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        held += length
    return held


def _sparse_copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def _scattered(folder: Path, size: int) -> None:
    _sparse_copy(folder / "disk0.raw", folder / "disk1a.raw")
    dice = random.Random(20240607)
    fd = os.open(folder / "disk1a.raw", os.O_RDWR)
    blocks: list[int] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        blocks += range(start // BLOCK, position // BLOCK)
    for block in sorted(dice.sample(blocks, size // BLOCK // 100)):
        os.pwrite(fd, dice.randbytes(2048) + (b"row%08d," % block * 200)[:2048], block * BLOCK)
    os.fsync(fd)
    os.close(fd)


def _new_files(folder: Path, size: int) -> None:
    _sparse_copy(folder / "disk0.raw", folder / "disk1b.raw")
    parts = {"new.bin": _big_files(60 * size >> 12), "new.tar": _small_files(40 * size >> 12)}
    for name, data in parts.items():
        (folder / name).write_bytes(data)
        subprocess.run(
            ["debugfs", "-w", "-R", f"write {folder / name} {name}", folder / "disk1b.raw"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        (folder / name).unlink()


def _big_files(size: int) -> bytes:
    """A large binary that is not on disk0."""
    for pattern in ("/usr/lib/jvm/*/lib/modules", "/usr/lib/llvm-1[5-9]/lib/*.so*", "/usr/local/lib/**/*.so*"):
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            if path.stat().st_size >= size:
                with open(path, "rb") as file:
                    return file.read(size)
    return _small_files(size)


def _small_files(size: int) -> bytes:
    """Many small files in a row, as tar would."""
    found = bytearray()
    for root in ("/usr/lib/google-cloud-sdk/lib", "/usr/share", "/usr/lib"):
        for path in sorted(Path(root).rglob("*.py")):
            if path.is_file() and len(found) < size:
                found += path.read_bytes()
    if len(found) < size:
        sys.exit("this machine has too few files to make disk1b of")
    return bytes(found[:size])


def _changes(folder: Path, name: str) -> None:
    """`offset length` per line: in 64 KiB, as changed block tracking reports them, and in 4 KiB."""
    old, new = (np.memmap(folder / f"{n}.raw", np.uint64, "r").reshape(-1, BLOCK // 8) for n in ("disk0", name))
    step = 16384
    hits = [i + np.flatnonzero((old[i : i + step] != new[i : i + step]).any(axis=1)) for i in range(0, len(old), step)]
    blocks = np.concatenate(hits)
    grains = np.unique(blocks // (GRAIN // BLOCK))
    (folder / f"{name}.changes4k").write_text("".join(f"{block * BLOCK} {BLOCK}\n" for block in blocks.tolist()))
    (folder / f"{name}.changes").write_text("".join(f"{grain * GRAIN} {GRAIN}\n" for grain in grains.tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/tmp/store-bench/disks"))
    make(parser.parse_args().folder)
