"""What a worker that died left attached to its own VM, and the folder that says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.disks import hotadd
from workers.errors import ConfigError, DiskLocked


class Left:
    """A disk on the worker's VM; some can not be taken off."""

    taken: list[str]

    def __init__(self, file: str) -> None:
        self.file = file

    def attach(self, *, write: bool) -> str:
        raise NotImplementedError

    def detach(self) -> None:
        if "stuck" in self.file:
            raise DiskLocked(f"{self.file} stays")
        self.taken.append(self.file)


def leave(site: str, file: str) -> None:
    lock = hotadd._lock(site, file, 0)
    assert lock is not None
    os.close(lock)  # as the kernel does when its process ends


def test_one_that_can_not_be_taken_off_does_not_keep_the_others(apart: Path) -> None:
    Left.taken = []
    files = [f"[ds1] vm/{name}.vmdk" for name in ("a", "stuck-1", "b", "c", "stuck-2")]
    for file in files:
        leave("prod", file)
    leave("elsewhere", "[ds1] vm/other.vmdk")
    for _ in range(2):
        with pytest.raises(DiskLocked, match="stuck"):
            hotadd.detach_left_behind("prod", Left)
        assert sorted(Left.taken) == [file for file in files if "stuck" not in file], "once"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_not_used(apart: Path) -> None:
    hotadd.locks().mkdir(mode=0o777)
    os.chown(hotadd.locks(), 1, 1)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        hotadd._lock("prod", "[ds1] vm/a.vmdk", 0)
