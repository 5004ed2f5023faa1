"""The dedup index: immutable sorted runs of (digest's first 8 bytes, place), mapped into memory, merged when many.

Only a hint. A hit counts when the pack's own trailer shows the whole digest there; a lost or damaged run costs
duplicates, never data, and `complete` builds it again from the trailers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.errors import StoreDamaged
from workers.store import files, layout
from workers.store.layout import FORMAT, INDEX_HEAD, INDEX_HEAD_SIZE, INDEX_MAGIC, PACKED
from workers.store.packs import Pack, PackCache, pack_ids
from workers.store.place import Path

Keys = NDArray[np.uint64]

#: Entries collected in memory before a run is published: 16 MiB.
PUBLISH = 1 << 20
#: More files than this are merged. Each costs a search per lookup (some 4 us for a batch).
RUNS = 8
#: Entries handled at a time by a merge: some 64 MiB.
MERGE = 1 << 20


class Run:
    """Keys in order, and for each its pack (index into `packs`) << 32 | slot."""

    def __init__(self, packs: Keys, keys: Keys, places: Keys, path: Path | None = None) -> None:
        self.packs = packs
        self.keys = keys
        self.places = places
        self.path = path

    @classmethod
    def of(cls, tables: Sequence[tuple[int, np.ndarray]]) -> Run:
        """From packs' records; scraps are left out."""
        keys, places = [], []
        for number, (_, table) in enumerate(tables):
            slots = np.flatnonzero((table["flags"] & PACKED) == 0).astype(np.uint64)
            digests = np.frombuffer(table["digest"].tobytes(), "<u8").reshape(-1, 4)[:, 0]
            keys.append(digests[slots.astype(np.int64)].astype(np.uint64))
            places.append(slots | np.uint64(number << 32))
        packs = np.array([pack for pack, _ in tables], np.uint64)
        return cls(packs, np.concatenate(keys), np.concatenate(places)).sorted()

    @classmethod
    def open(cls, path: Path) -> Run:
        """Raises `StoreDamaged`, `StoreTooNew`, FileNotFoundError."""
        with open(files.mappable(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < INDEX_HEAD_SIZE:
                raise layout.damaged(path, f"it ends after {size} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, packs, keys = INDEX_HEAD.unpack_from(data)
        layout.check_magic(path, magic, INDEX_MAGIC, version)
        if size != INDEX_HEAD_SIZE + 8 * packs + 16 * keys:
            raise layout.damaged(path, "its length does not fit what its head says")
        at = INDEX_HEAD_SIZE
        return cls(
            np.frombuffer(data, "<u8", packs, at),
            np.frombuffer(data, "<u8", keys, at + 8 * packs),
            np.frombuffer(data, "<u8", keys, at + 8 * packs + 8 * keys),
            path,
        )

    def sorted(self) -> Run:
        order = np.argsort(self.keys, kind="stable")
        return Run(self.packs, self.keys[order], self.places[order])

    def __len__(self) -> int:
        return len(self.keys)


#: whether a pack's blob has the content that a digest stands for
Holds = Callable[[Pack, int, bytes], bool]


class Index:
    """What one writer looks things up in: the published runs as of its start, and its own sealed packs."""

    def __init__(
        self, folder: Path, packs: PackCache, *, avoid: Collection[int] = (), holds: Holds | None = None
    ) -> None:
        self._holds = holds or (lambda pack, slot, digest: pack.digest(slot) == digest)
        self._folder = folder
        self._packs = packs
        self._avoid = frozenset(avoid)
        self._published = open_runs(folder)
        self._recent: list[Run] = []

    def find(self, digests: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """For each digest the (pack, slot) that holds exactly that, as the pack's trailer says, or None."""
        found: list[tuple[int, int] | None] = [None] * len(digests)
        if not digests or not (self._published or self._recent):
            return found
        keys = np.array([int.from_bytes(d[:8], "little") for d in digests], np.uint64)
        for run in (*self._recent, *self._published):
            at = np.searchsorted(run.keys, keys)
            at[at == len(run)] = 0
            for i in np.flatnonzero(run.keys[at] == keys).tolist() if len(run) else ():
                if found[i] is None:
                    found[i] = self._verified(run, int(at[i]), keys[i], digests[i])
        return found

    def _verified(self, run: Run, at: int, key: np.uint64, digest: bytes) -> tuple[int, int] | None:
        while at < len(run) and run.keys[at] == key:
            place = int(run.places[at])
            number, slot = place >> 32, place & 0xFFFFFFFF
            pack_id = int(run.packs[number]) if number < len(run.packs) else 0
            pack = self._packs.find(pack_id) if pack_id and pack_id not in self._avoid else None
            if pack is not None and slot < len(pack) and self._holds(pack, slot, digest):
                return pack_id, slot
            at += 1
        return None

    def add(self, pack_id: int, table: np.ndarray) -> None:
        """A pack that was just sealed; published once there are enough."""
        self._recent.append(Run.of([(pack_id, table)]))
        if len(self._recent) > RUNS:
            self._recent = [joined(self._recent)]
        if sum(map(len, self._recent)) >= PUBLISH:
            self.publish()

    def publish(self) -> None:
        """Makes what was added findable for every later writer; the packs' names are durable before that."""
        if any(len(run) for run in self._recent):
            files.sync_folder(self._packs.folder)
            path = write_run(self._folder, joined(self._recent))
            if path is not None:
                with contextlib.suppress(FileNotFoundError):  # prune merged it already; what is in it is found later
                    self._published.append(Run.open(path))
        self._recent = []
        if len(self._published) > 2 * RUNS and merge(self._folder):
            self._published = open_runs(self._folder)


def open_runs(folder: Path) -> list[Run]:
    """Largest first. What cannot be read is left out: `verify` names it, `complete` replaces it."""
    runs = []
    for name in files.names(folder, ".idx"):
        with contextlib.suppress(StoreDamaged, FileNotFoundError):
            runs.append(Run.open(folder / name))
    return sorted(runs, key=len, reverse=True)


def write_run(folder: Path, run: Run) -> Path | None:
    """None when prune took the file for left over before it had its name: `complete` makes up for it."""
    path = folder / f"{layout.fresh_id():016x}.idx"
    head = INDEX_HEAD.pack(INDEX_MAGIC, FORMAT, len(run.packs), len(run)).ljust(INDEX_HEAD_SIZE, b"\0")
    body = (run.packs.astype("<u8"), run.keys.astype("<u8"), run.places.astype("<u8"))
    try:
        with files.draft(path, secrets.token_hex(4)) as fresh:
            files.write_new(fresh, head + b"".join(part.tobytes() for part in body))
    except FileNotFoundError:
        return None
    return path


def complete(folder: Path, packs: PackCache) -> int:
    """Indexes every sealed pack that no run knows; returns how many there were. After a loss this rebuilds all."""
    known = {int(pack) for run in open_runs(folder) for pack in run.packs.tolist()}
    done, tables, held = 0, [], 0
    for pack_id in pack_ids(packs.folder):
        if pack_id in known or (pack := packs.find(pack_id)) is None:
            continue
        table = np.zeros(len(pack), layout.BLOB)
        table["digest"] = np.frombuffer(pack.digests, "V32")
        table["flags"] = pack.flags
        tables.append((pack_id, table))
        held, done = held + len(table), done + 1
        if held >= PUBLISH:
            write_run(folder, Run.of(tables))
            tables, held = [], 0
    if tables:
        write_run(folder, Run.of(tables))
    return done


def joined(runs: Sequence[Run]) -> Run:
    """One run of a few small ones, in memory."""
    packs = np.unique(np.concatenate([run.packs for run in runs]))
    parts = list(_merged(runs, packs))
    return Run(packs, np.concatenate([keys for keys, _ in parts]), np.concatenate([places for _, places in parts]))


def merge(folder: Path, alive: Collection[int] | None = None) -> bool:
    """Makes one run of the smaller ones when there are more than RUNS; of `alive`, if given, others are dropped."""
    runs = open_runs(folder)[::-1]
    if len(runs) <= RUNS:
        return False
    with files.alone(folder / "merge.lock") as mine:  # saves double work, nothing depends on it
        if not mine:
            return False
        chosen = _smaller(runs)
        path = folder / f"{layout.fresh_id():016x}.idx"
        try:
            _write_merged(path, chosen, alive)
        except FileNotFoundError:
            return False
        for run in chosen:
            assert run.path is not None
            files.remove(run.path)
    return True


def _smaller(runs: Sequence[Run]) -> list[Run]:
    """The smallest so many that few are left, and more as long as the next is no larger than all chosen together:
    so an entry is copied some log2(all / first run) times in its life."""
    total, count = 0, 0
    for run in runs:
        if count > len(runs) - RUNS // 2 and len(run) > total:
            break
        total, count = total + len(run), count + 1
    return list(runs[:count])


def _write_merged(path: Path, runs: Sequence[Run], alive: Collection[int] | None) -> None:
    """Keys are digests, so equal parts of their range hold about equally many: merged part by part, each in memory."""
    packs = np.unique(np.concatenate([run.packs for run in runs]))
    if alive is not None:
        packs = packs[np.isin(packs, np.array(sorted(alive), np.uint64))]
    with files.draft(path, secrets.token_hex(4)) as fresh:
        places_file = fresh.with_name(f"{fresh.name}.places")
        try:
            with open(fresh, "xb") as out, open(places_file, "x+b") as late:
                out.write(bytes(INDEX_HEAD_SIZE) + packs.astype("<u8").tobytes())
                count = 0
                for keys, places in _merged(runs, packs):
                    out.write(keys.astype("<u8").tobytes())
                    late.write(places.astype("<u8").tobytes())
                    count += len(keys)
                late.seek(0)
                while block := late.read(8 << 20):
                    out.write(block)
                out.flush()
                files.write_all(out.fileno(), INDEX_HEAD.pack(INDEX_MAGIC, FORMAT, len(packs), count), 0)
                os.fsync(out.fileno())
        finally:
            files.remove(places_file)
    files.sync_folder(path.parent)


def _merged(runs: Sequence[Run], packs: Keys) -> Iterable[tuple[Keys, Keys]]:
    parts = max(1, -(-sum(map(len, runs)) // MERGE))
    numbers = [_renumber(run.packs, packs) for run in runs]
    for part in range(parts):
        low, high = part * (1 << 64) // parts, (part + 1) * (1 << 64) // parts - 1
        keys, places = [], []
        for run, number in zip(runs, numbers, strict=True):
            a = int(np.searchsorted(run.keys, np.uint64(low), side="left"))
            b = int(np.searchsorted(run.keys, np.uint64(high), side="right"))
            pack = number[(run.places[a:b] >> np.uint64(32)).astype(np.int64)]
            kept = pack >= 0
            keys.append(run.keys[a:b][kept])
            slots = run.places[a:b][kept] & np.uint64(0xFFFFFFFF)
            places.append((pack[kept].astype(np.uint64) << np.uint64(32)) | slots)
        yield _ordered(np.concatenate(keys), np.concatenate(places))


def _ordered(keys: Keys, places: Keys) -> tuple[Keys, Keys]:
    """Sorted, each pair once: two merges of the same runs may have published both."""
    order = np.lexsort((places, keys))
    keys, places = keys[order], places[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (places[1:] != places[:-1])
    return keys[new], places[new]


def _renumber(packs: Keys, new: Keys) -> NDArray[np.int64]:
    """For each of `packs` its number in `new`, -1 when it is not there."""
    if not len(new):
        return np.full(len(packs), -1, np.int64)
    at = np.searchsorted(new, packs)
    at[at == len(new)] = 0
    return np.where(new[at] == packs, at, -1).astype(np.int64)
