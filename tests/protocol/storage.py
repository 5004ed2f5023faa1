"""A storage that keeps what was fdatasynced, and may lose the rest when its host goes down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from workers.disks.file import FileWriter
from workers.extents import GRANULE
from workers.point import Piece


class Unsynced:
    """What a granule held on stable storage, of each that was written since."""

    def __init__(self) -> None:
        self._old: dict[Path, dict[int, bytes]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        write, flush = FileWriter.write, FileWriter.flush

        def noted(disk: FileWriter, pieces: Sequence[Piece]) -> None:
            old = self._old.setdefault(disk.path, {})
            for piece in pieces:
                for offset in range(piece.offset, piece.offset + piece.length, GRANULE):
                    old.setdefault(offset, os.pread(disk._fd, GRANULE, offset))
            write(disk, pieces)

        def synced(disk: FileWriter) -> None:
            flush(disk)
            self._old.pop(disk.path, None)

        patch.setattr(FileWriter, "write", noted)
        patch.setattr(FileWriter, "flush", synced)

    def settle(self) -> None:
        """What somebody else has seen of the disks is on stable storage."""
        self._old.clear()

    def lose(self, every: int) -> None:
        """Of each disk that still is there every such granule that was not synced is as it was."""
        for path, old in self._old.items():
            if not path.exists():
                continue
            with open(path, "r+b") as file:
                for offset in sorted(old)[::every]:
                    file.seek(offset)
                    file.write(old[offset])
        self._old.clear()
