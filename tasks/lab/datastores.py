"""The lab's datastores: a file system with reflinks in one sparse file where the machine allows it, else a folder.

With reflinks a simulated vCenter freezes a disk for a snapshot by sharing its blocks, in milliseconds for any size.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tasks.lab.processes import LabError

#: apparent size of the image; only what is written takes space
IMAGE_SIZE = 64 << 30
#: mkfs.xfs refuses less than 300 MB, and its log alone takes 64 MB
SMALLEST_IMAGE = 1 << 30
#: ioctl FICLONE: share all blocks of one file with another (linux/fs.h)
FICLONE = 0x40049409
#: mkfs and mount are not in a plain user's PATH on Debian
PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"))


def attach(folder: Path, most: int = IMAGE_SIZE) -> str:
    """Have `folder`/datastores ready for use, of `most` bytes, and say in words what it is. Idempotent."""
    mount_point, image = _places(folder)
    mount_point.mkdir(exist_ok=True)
    if is_mounted(mount_point):
        return _words_of_image(image)
    _detach_loops(image)  # left by a crash between losetup and mount
    made = False
    if not image.exists():
        if shares_blocks(mount_point):
            return f"a folder on a file system with reflinks ({mount_point})"
        why_not = _why_no_image(folder) or _make_image(image, most)
        if why_not is not None:
            return _words_of_plain(why_not)
        made = True
    problem = _run("mount", "-o", "loop,noatime", str(image), str(mount_point))
    if problem is None:
        _past_the_cache(image)
        return _words_of_image(image)
    if not made:
        raise LabError(
            f"the lab's datastores are in {image}, which cannot be mounted: {problem}. "
            "Run this as root on a machine that allows loop devices, or erase the lab and start anew."
        )
    image.unlink()
    return _words_of_plain(problem)


def detach(folder: Path) -> None:
    """Unmount, and free the loop device. Raises `LabError` naming who still uses the folder. Idempotent."""
    mount_point, image = _places(folder)
    while is_mounted(mount_point):  # a mount can be stacked on another
        problem = _run("umount", str(mount_point))
        if problem is not None:
            users = ", ".join(_users(mount_point)) or "nobody that can be seen from here"
            raise LabError(f"{mount_point} cannot be unmounted: {problem}. Used by: {users}. End that and repeat this.")
    _detach_loops(image)


def is_mounted(mount_point: Path) -> bool:
    wanted = str(mount_point.resolve())
    with open("/proc/self/mountinfo") as mounts:
        return any(_unescape(line.split()[4]) == wanted for line in mounts)


def shares_blocks(folder: Path) -> bool:
    """Whether files in `folder` can share blocks: asked of the file system itself."""
    with tempfile.TemporaryFile(dir=folder) as a, tempfile.TemporaryFile(dir=folder) as b:
        a.write(b"x" * 4096)
        a.flush()
        try:
            fcntl.ioctl(b.fileno(), FICLONE, a.fileno())
        except OSError:
            return False
        return True


def _places(folder: Path) -> tuple[Path, Path]:
    return folder / "datastores", folder / "datastores.img"


def _words_of_image(image: Path) -> str:
    stat = image.stat()
    return f"XFS with reflinks in {image.name} (up to {stat.st_size >> 30} GiB, sparse)"


def _words_of_plain(why_not: str) -> str:
    return f"a plain folder, so snapshots copy instead of sharing blocks: {why_not}"


def _why_no_image(folder: Path) -> str | None:
    if os.geteuid() != 0:
        return "only root may mount"
    if shutil.which("mkfs.xfs", path=PATH) is None:
        return "mkfs.xfs is not there (Debian package xfsprogs)"
    if any((folder / "datastores").iterdir()):
        return "it has been one from the start and is in use"
    if _image_size(folder) < SMALLEST_IMAGE:
        return f"less than {SMALLEST_IMAGE >> 30} GiB is free in {folder}"
    return None


def _image_size(folder: Path) -> int:
    # Not more than there is: a guest that fills its datastore must see "no space", not an I/O error of the loop device.
    return min(IMAGE_SIZE, shutil.disk_usage(folder).free * 8 // 10 >> 20 << 20)


def _make_image(image: Path, most: int) -> str | None:
    unfinished = image.with_suffix(".new")
    with unfinished.open("wb") as file:
        file.truncate(min(most, _image_size(image.parent)))
    problem = _run("mkfs.xfs", "-q", "-m", "reflink=1", str(unfinished))
    if problem is None:
        unfinished.rename(image)
    else:
        unfinished.unlink()
    return problem


def _past_the_cache(image: Path) -> None:
    """The loop device reads and writes the image itself: else all lies in memory twice, and the copying takes a tenth
    of a backup's CPU. Where the image's file system cannot do that, it stays as it is."""
    for device in _loops_of(image):
        _run("losetup", "--direct-io=on", device)


def _loops_of(image: Path) -> list[str]:
    listing = subprocess.run(
        ["losetup", "--noheadings", "--output", "NAME", "--associated", str(image)],
        capture_output=True, text=True, env={**os.environ, "PATH": PATH},
    )  # fmt: skip
    return listing.stdout.split()


def _detach_loops(image: Path) -> None:
    if not image.exists() or os.geteuid() != 0:
        return
    for device in _loops_of(image):
        problem = _run("losetup", "--detach", device)
        if problem is not None:
            raise LabError(f"{device} is still set up for {image} and cannot be detached: {problem}")


def _run(*argv: str) -> str | None:
    """Run a system command; None when it succeeded, else its complaint."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PATH": PATH, "LC_ALL": "C"})
    except FileNotFoundError:
        return f"{argv[0]} is not installed"
    return None if done.returncode == 0 else (done.stderr.strip() or f"{argv[0]} ended with {done.returncode}")


def _users(mount_point: Path) -> list[str]:
    """Processes that have a working folder or an open file below the mount point."""
    inside = re.compile(rf"{re.escape(str(mount_point.resolve()))}(/|$)")
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(inside.match(os.readlink(link)) for link in links):
                users.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
        except OSError:
            continue  # gone, or not ours to look at
    return users


def _unescape(field: str) -> str:
    """mountinfo writes blanks and the like as octal: \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
