"""Packs that were found damaged: suspects/<pack>. Nothing new refers to them: a full stores their content anew.

A mark is a hint that survives: it goes when the pack is read as it was written, or when there is no such pack any more.
"""

from __future__ import annotations

import contextlib

from workers.store import files, layout
from workers.store.layout import FORMAT
from workers.store.place import Path


class Suspects:
    def __init__(self, root: Path) -> None:
        self._root = root

    def all(self) -> set[int]:
        try:
            return set(layout.ids(files.names(self._root)))
        except FileNotFoundError:  # of a store that was made before there were marks
            return set()

    def mark(self, pack: int, why: str) -> None:
        """Where the store can not be written to there is no mark, and no backup either."""
        with contextlib.suppress(*files.REFUSALS):
            files.make_folder(self._root)
            with contextlib.suppress(FileExistsError):
                files.write_new(self._root / f"{pack:016x}", files.to_json({"format": FORMAT, "why": why}))
            files.sync_folder(self._root)

    def clear(self, pack: int) -> None:
        with contextlib.suppress(*files.REFUSALS):
            files.remove(self._root / f"{pack:016x}")
