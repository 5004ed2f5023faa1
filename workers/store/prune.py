"""Prune: what no restore point needs is marked, and deleted once every writer that may still refer to it has ended.

1. List packs, then runs, then points, in this order: a run that is missing in the list has published what it ever will.
2. Unreferenced files of no registered run get a tombstone, which is synced before the runs are listed again: a run that
   is missing in *that* list reads the tombstone when it starts and leaves the files alone. The others are waited for.
   So are the readers that are there then: whoever comes later reads manifests that do not name these files.
3. When none of those is there any more, the points are read once more. What is still not referenced is deleted.
Nothing is deleted when anything that must be read cannot be.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager

from workers import faults
from workers.errors import StoreDamaged
from workers.models import Model
from workers.store import files, index, layout
from workers.store.crypt import Keys
from workers.store.layout import FORMAT, HEAD_SIZE, MAPS_MAGIC, PACK_MAGIC
from workers.store.maps import Maps, maps_ids, maps_path
from workers.store.needed import Needed, needed
from workers.store.packs import PackCache, pack_ids, pack_path
from workers.store.place import Path
from workers.store.points import Points
from workers.store.readers import Readers
from workers.store.writers import Writers


class PruneReport(Model):
    #: files deleted and the bytes they took
    packs: int = 0
    maps: int = 0
    freed: int = 0
    #: files marked that wait for these runs and readers to end
    waiting: int = 0
    runs: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    #: another prune or a compaction is at work, this one did nothing
    busy: bool = False


class Tomb(Model):
    """A tombstone. `waits` is None until runs and readers were listed after it was synced."""

    format: int = FORMAT
    packs: tuple[int, ...]
    maps: tuple[int, ...]
    marks: tuple[tuple[str, int], ...] = ()
    waits: tuple[str, ...] | None = None
    readers: tuple[str, ...] = ()

    def encode(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class Pruner:
    def __init__(
        self,
        root: Path,
        *,
        maps: Maps,
        packs: PackCache,
        points: Points,
        writers: Writers,
        readers: Readers,
        index: Path,
    ) -> None:
        self._root = root
        self._tombs = root / "tombs"
        self._maps = maps
        self._packs = packs
        self._points = points
        self._writers = writers
        self._readers = readers
        self._index = index

    def run(self, own: str | None) -> PruneReport:
        """`own` is the caller's name among the readers: nobody waits for himself."""
        with self.alone() as mine:
            if not mine:
                return PruneReport(busy=True)
            self._writers.sweep()
            for folder in (self._tombs, self._index, self._packs.folder, self._maps.folder):
                files.sweep(folder)
            self._mark()
            report = self._delete(own)
            index.complete(self._index, self._packs)
            index.merge(self._index, set(pack_ids(self._packs.folder)))
            return report

    def buried(self) -> set[int]:
        """The packs that are under a tombstone: nobody who starts now may refer to them."""
        return {pack for _, tomb in self._all() for pack in tomb.packs}

    # --- marking --------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        packs, maps = set(pack_ids(self._packs.folder)), set(maps_ids(self._maps.folder))
        runs, keys = set(self._writers.live()), self._packs.keys
        refs = needed(self._points, self._maps, runs)
        for run in refs.runs:
            # It was killed between its commit and its farewell; a run commits once.
            self._writers.end(run)
        runs -= refs.runs
        self.unbury(refs.packs, refs.maps)
        old = [tomb for _, tomb in self._all()]
        packs -= refs.packs | {pack for tomb in old for pack in tomb.packs}
        maps -= refs.maps | {file for tomb in old for file in tomb.maps}
        marks = refs.marks - {mark for tomb in old for mark in tomb.marks}
        tomb = Tomb(
            packs=tuple(sorted(p for p in packs if owner(pack_path(self._packs.folder, p), keys) not in runs)),
            maps=tuple(sorted(m for m in maps if owner(maps_path(self._maps.folder, m), keys) not in runs)),
            marks=tuple(sorted(marks)),
        )
        if tomb.packs or tomb.maps or tomb.marks:
            faults.at("store.burying")
            self._write(self._tombs / f"{layout.fresh_id():016x}.json", tomb)
            faults.at("store.tombstone")

    # --- deleting -------------------------------------------------------------------------------------------

    def _delete(self, own: str | None) -> PruneReport:
        readers = self._readers.live() - {own}
        for path, tomb in self._all():
            if tomb.waits is None:
                waits = tuple(sorted(self._writers.waited_for()))
                self._write(path, tomb.model_copy(update={"waits": waits, "readers": tuple(sorted(readers))}), tomb)
        runs, readers = self._writers.waited_for(), self._readers.live() - {own}
        packs = maps = freed = waiting = 0
        held, reading, due = set[str](), set[str](), list[tuple[Path, Tomb]]()
        for path, tomb in self._all():
            held |= runs & set(tomb.waits or ())
            reading |= readers & set(tomb.readers)
            if tomb.waits is None or runs & set(tomb.waits) or readers & set(tomb.readers):
                waiting += len(tomb.packs) + len(tomb.maps)
            else:
                due.append((path, tomb))
        # Reading all points of a large store takes minutes: only where something is to be deleted.
        refs = needed(self._points, self._maps) if due else Needed()
        for path, tomb in due:
            dead = [pack_path(self._packs.folder, p) for p in tomb.packs if p not in refs.packs]
            dead_maps = [maps_path(self._maps.folder, m) for m in tomb.maps if m not in refs.maps]
            faults.at("store.deleting")
            freed += sum(_unlink(file) for file in (*dead, *dead_maps))
            packs, maps = packs + len(dead), maps + len(dead_maps)
            for vm, seq in tomb.marks:
                self._forget(vm, seq)
            faults.at("store.deleted")
            for folder in (self._packs.folder, self._maps.folder):
                files.sync_folder(folder)
            files.remove(path)
        files.sync_folder(self._tombs)
        return PruneReport(
            packs=packs,
            maps=maps,
            freed=freed,
            waiting=waiting,
            runs=tuple(sorted(held)),
            readers=tuple(sorted(reading)),
        )

    def _forget(self, vm: str, seq: int) -> None:
        if self._points.retired(vm, seq):
            self._points.forget(vm, seq)

    def unbury(self, packs: AbstractSet[int], maps: AbstractSet[int]) -> None:
        """Takes files off the tombstones: a run that was waited for has committed a point that needs them.

        Once nobody needs them any more they are marked anew: whoever read that point must be waited for, and he may
        have come after those whom the old tombstone lists. Compaction calls this before it makes files unneeded.
        """
        for path, tomb in self._all():
            if packs & set(tomb.packs) or maps & set(tomb.maps):
                kept = {"packs": tuple(p for p in tomb.packs if p not in packs)}
                kept |= {"maps": tuple(m for m in tomb.maps if m not in maps)}
                self._write(path, tomb.model_copy(update=kept), tomb)

    # --- tombstones -----------------------------------------------------------------------------------------

    def _all(self) -> list[tuple[Path, Tomb]]:
        found = []
        for name in files.names(self._tombs, ".json"):
            with contextlib.suppress(FileNotFoundError):  # a prune has just deleted what it lists
                found.append((self._tombs / name, self._read(self._tombs / name)))
        return found

    def _read(self, path: Path) -> Tomb:
        try:
            data = json.loads(path.read_bytes())
            if data.get("format", 0) > FORMAT:
                raise layout.too_new(path, data["format"])
            return Tomb.model_validate(data)
        except ValueError as err:
            raise layout.damaged(path, "it is no tombstone; removing it is safe while no run is writing") from err

    def _write(self, path: Path, tomb: Tomb, was: Tomb | None = None) -> None:
        files.replace(path, tomb.encode(), f"{layout.fresh_id():016x}", was.encode() if was is not None else None)

    def alone(self) -> AbstractContextManager[bool]:
        return files.alone(self._root / "prune.lock")


def owner(path: Path, keys: Keys) -> str:
    """The run that wrote a file; "" when its head cannot be read, e.g. because it is being written."""
    magic = PACK_MAGIC if path.suffix == ".pack" else MAPS_MAGIC
    try:
        return layout.read_head(path, files.beginning(path, HEAD_SIZE), magic, int(path.stem, 16), keys)[0]
    except (StoreDamaged, FileNotFoundError):
        return ""


def _unlink(path: Path) -> int:
    try:
        size = files.length(path)
        return size if files.remove(path) else 0
    except FileNotFoundError:
        return 0
