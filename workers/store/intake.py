"""A writer that takes a restore point over from another store: only blobs that are missing here, packed as they are.

What is missing is known by digests before any of it is read: of chunks by the dedup index, of scraps (which it does not
have) by notes of what this run has brought over already. So a run that was stopped, however often, goes on from there.
Where either store is encrypted equal content has another digest in each: then what another run stored here is found
after it was sent, so that it is not stored twice, and the run's own by its notes, of chunks too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers import faults
from workers.extents import GRANULE, Extents
from workers.models import PointDisk
from workers.store import files, layout
from workers.store.index import Index, Run, write_run
from workers.store.lanes import Work
from workers.store.layout import ALIGN, HEAD_SIZE, PACKED, SEGMENT
from workers.store.maps import GRANULES, Maps, dense
from workers.store.packs import Blob, Pack, PackCache
from workers.store.read import READ, DiskReader, decode, fetch, opened, unpacked
from workers.store.segment import Segment
from workers.store.write import StoreWriter

Ints = NDArray[np.int64]

#: within a segment what has arrived is made durable this often: what a killed worker sends again at most
DURABLE_EVERY = 60.0
#: Blobs of one read and write; below the reserve that a pack keeps under its limit.
BLOBS = 4096


class Brought(NamedTuple):
    """What `bring` did. Without a segment time was up: all below `done` is on stable storage, and is found again."""

    segment: Segment | None
    #: byte of the disk
    done: int
    #: bytes that crossed from the other store, bytes added to this one
    sent: int
    stored: int


class _Wanted(NamedTuple):
    """A blob of the other store that is missing here: its slot there, and (granules, granules within the blob)."""

    slot: int
    users: list[tuple[Ints, Ints]]


class _Group(NamedTuple):
    """Blobs that are fetched by one read. `low`: the first granule of the segment that needs any of them."""

    pack: Pack
    start: int
    length: int
    blobs: list[_Wanted]
    low: int


class Intake(StoreWriter):
    """`carried` is told of so many bytes before they are fetched from the other store; it may take its time."""

    def __init__(
        self, *given: Any, maps_there: Maps, packs_there: PackCache, carried: Callable[[int], None], **more: Any
    ):
        super().__init__(*given, **more)
        self._maps_there = maps_there
        self._packs_there = packs_there
        self._carried = carried
        self._known: set[int] = set()
        #: brought over for the present segment, and in no index: digest there -> place; and what is not noted yet
        self._fresh: dict[bytes, tuple[int, int]] = {}
        self._unnoted: list[tuple[bytes, int, int]] = []
        #: whether equal content has equal digests in both stores
        self._alike = not (packs_there.keys.sealing or self._packs.keys.sealing)
        self._noted = Index(self._note.parent, self._packs, holds=None if self._alike else self._holds)

    def bring(
        self, index: int, *, there: PointDisk, todo: Extents, base: PointDisk | None, threads: int, until: float
    ) -> Brought:
        """Map segment number `index` of a disk as `there` has it.

        `todo` is where that differs from `base`, a disk of this store (None: of zeroes). After `until` (monotonic) no
        more is begun; something always is.
        """
        with self._guard():
            size, first = there.disk.capacity, index * SEGMENT
            name = base.segments[index] if base is not None and index < len(base.segments) else ""
            source = DiskReader(self._maps_there, self._packs_there, there)
            work = self._start(self._maps.load(name), first, size, None, source, todo, "delta")
            work.differing.append(todo.clip(first, min(size, first + SEGMENT)))
            groups = self._missing(work, there.segments[index], index)
            while groups:
                stop = min(until, time.monotonic() + DURABLE_EVERY)
                groups = self._carry(work, groups, threads, stop)
                if groups:
                    self._keep()
                    if time.monotonic() > until:
                        low = min(group.low for group in groups)
                        return Brought(None, first + low * GRANULE, work.read, work.stored)
            self._fresh, self._unnoted = {}, []
            segment = self._finish(work, name)
            return Brought(segment, min(size, first + SEGMENT), segment.read, segment.stored)

    # --- what is missing ------------------------------------------------------------------------------------

    def _missing(self, work: Work, name: str, index: int) -> list[_Group]:
        """Places of what is here already are filled in; the rest, in the disk's order."""
        at = _granules(work.candidates, index * SEGMENT)
        if name:
            self._carried(self._maps_there.parse(name).length)
        theirs = self._maps_there.load(name)
        places = dense(theirs)[at]
        work.places[at] = 0
        at, places = at[places != 0], places[places != 0]
        inside = (places & np.uint64(0xFF)).astype(np.int64)
        keys, which = np.unique((places & np.uint64(layout.PLACE_PACKED - 1)) >> np.uint64(8), return_inverse=True)
        order = np.argsort(which, kind="stable")
        borders = np.searchsorted(which[order], np.arange(len(keys) + 1)).tolist()
        users = [order[a:b] for a, b in pairwise(borders)]
        numbers, slots = (keys >> np.uint64(24)).astype(np.int64), (keys & np.uint64(0xFFFFFF)).astype(np.int64)
        groups: list[_Group] = []
        for number in np.unique(numbers).tolist():
            pack = self._pack_there(int(theirs.packs[number - 1]))
            wanted = [
                _Wanted(int(slots[i]), [(at[users[i]], inside[users[i]])])
                for i in np.flatnonzero(numbers == number).tolist()
            ]
            groups += _grouped(pack, self._not_here(work, pack, wanted))
        return sorted(groups, key=lambda group: group.low)

    def _not_here(self, work: Work, pack: Pack, wanted: Sequence[_Wanted]) -> list[_Wanted]:
        for blob in wanted:
            if blob.slot >= len(pack):
                raise layout.damaged(pack.path, f"a map refers to its blob {blob.slot}, it holds {len(pack)}")
        missing: dict[bytes, _Wanted] = {}
        for packed in (False, True):
            some = [blob for blob in wanted if bool(pack.flags[blob.slot] & PACKED) == packed]
            digests = [pack.digest(blob.slot) for blob in some]
            for blob, digest, found in zip(some, digests, self._here(digests, packed=packed), strict=True):
                if found is not None:
                    _place(work, blob, *found, packed=packed)
                elif digest in missing:
                    missing[digest].users.extend(blob.users)
                else:
                    missing[digest] = blob
        return list(missing.values())

    def _here(self, digests: Sequence[bytes], *, packed: bool) -> list[tuple[int, int] | None]:
        if self._alike and not packed:
            return self._find(digests)
        found = [self._fresh.get(digest) for digest in digests]
        return [mine or noted for mine, noted in zip(found, self._noted.find(digests), strict=True)]

    def _pack_there(self, pack_id: int) -> Pack:
        pack = self._packs_there.get(pack_id)
        if pack_id not in self._known:
            self._known.add(pack_id)
            self._carried(HEAD_SIZE + len(pack) * layout.BLOB.itemsize + layout.FOOT_SIZE)
        return pack

    # --- bringing it over -----------------------------------------------------------------------------------

    def _carry(self, work: Work, groups: list[_Group], threads: int, stop: float) -> list[_Group]:
        """What was not begun when time was up. The first group always is: each message brings its run forward."""
        failed = False

        def one(numbered: tuple[int, _Group]) -> bool:
            nonlocal failed
            if failed or (numbered[0] and time.monotonic() > stop):
                return False
            try:
                self._one(work, numbered[1])
            except BaseException:
                failed = True
                raise
            return True

        if len(groups) == 1 or threads < 2:
            done = [one(each) for each in enumerate(groups)]
        else:
            with ThreadPoolExecutor(threads) as pool:
                done = list(pool.map(one, enumerate(groups)))
        faults.at("intake.arrived")
        return [group for group, carried in zip(groups, done, strict=True) if not carried]

    def _one(self, work: Work, group: _Group) -> None:
        self._carried(group.length)
        data, sealing = memoryview(fetch(group.pack, group.start, group.length)), self._packs.keys.room
        out = files.buffer(-(-(group.length + sealing * len(group.blobs)) // ALIGN) * ALIGN)
        filled, new, blobs = 0, list[_Wanted](), list[Blob]()
        for wanted in group.blobs:
            blob, packed = self._taken(
                group.pack, wanted.slot, data[int(group.pack.offsets[wanted.slot]) - group.start :]
            )
            if not self._alike and not blob.flags & PACKED and (found := self._find([blob.digest])[0]) is not None:
                _place(work, wanted, *found, packed=False)
                self._remember(group.pack.digest(wanted.slot), *found)
                continue
            out[filled : filled + len(packed)] = packed
            filled += blob.stored
            new.append(wanted)
            blobs.append(blob)
        with work.lock:
            work.read += group.length
            work.stored += filled
        if not blobs:
            return
        pack_id, first = self._store(blobs, out[: -(-filled // ALIGN) * ALIGN])
        for slot, (wanted, blob) in enumerate(zip(new, blobs, strict=True), first):
            _place(work, wanted, pack_id, slot, packed=bool(blob.flags & PACKED))
            if blob.flags & PACKED or not self._alike:
                self._remember(group.pack.digest(wanted.slot), pack_id, slot)

    def _taken(self, pack: Pack, slot: int, data: memoryview) -> tuple[Blob, memoryview]:
        """A blob as it will be here, and its bytes without any seal. It is checked, or damage would get a home here."""
        packed = opened(pack, slot, data[: int(pack.stored[slot])])
        content = unpacked(pack, slot, packed)
        digest = pack.digest(slot) if self._alike else self._packs.keys.digest(content)
        return Blob(digest, len(packed) + self._packs.keys.room, len(content), int(pack.flags[slot])), packed

    def _remember(self, digest: bytes, pack_id: int, slot: int) -> None:
        self._fresh[digest] = (pack_id, slot)
        self._unnoted.append((digest, pack_id, slot))

    def _holds(self, pack: Pack, slot: int, digest: bytes) -> bool:
        """Whether what the run has stored there is what has this digest in the other store: it is read to be sure."""
        stored = memoryview(fetch(pack, int(pack.offsets[slot]), int(pack.stored[slot])))
        return self._packs_there.keys.digest(decode(pack, slot, stored)) == digest

    def _keep(self) -> None:
        """What has arrived is on stable storage, and whoever goes on with the run finds it."""
        self._flush()
        faults.at("intake.durable")
        if self._unnoted:
            packs = sorted({pack for _, pack, _ in self._unnoted})
            keys = [int.from_bytes(digest[:8], "little") for digest, _, _ in self._unnoted]
            places = [packs.index(pack) << 32 | slot for _, pack, slot in self._unnoted]
            self._unnoted = []
            run = Run(np.array(packs, np.uint64), np.array(keys, np.uint64), np.array(places, np.uint64)).sorted()
            with contextlib.suppress(FileNotFoundError):  # the run was ended meanwhile: its commit will say so
                write_run(self._note.parent, run)
        faults.at("intake.noted")


def _place(work: Work, blob: _Wanted, pack_id: int, slot: int, *, packed: bool) -> None:
    first = work.number(pack_id) << layout.PLACE_PACK | slot << layout.PLACE_SLOT
    first |= layout.PLACE_PACKED if packed else 0
    for granules, inside in blob.users:
        work.places[granules] = np.uint64(first) + inside.astype(np.uint64)


def _grouped(pack: Pack, wanted: Sequence[_Wanted]) -> Iterator[_Group]:
    """In the order of the pack. What lies between two blobs is not read: over a link each byte counts."""
    group: list[_Wanted] = []
    start = end = 0
    for blob in sorted(wanted, key=lambda blob: int(pack.offsets[blob.slot])):
        offset, stored = int(pack.offsets[blob.slot]), int(pack.stored[blob.slot])
        if group and (not 0 <= offset - end < ALIGN or end - start + stored > READ or len(group) >= BLOBS):
            yield _Group(pack, start, end - start, group, _low(group))
            group = []
        if not group:
            start = offset
        group.append(blob)
        end = offset + stored
    if group:
        yield _Group(pack, start, end - start, group, _low(group))


def _low(group: Sequence[_Wanted]) -> int:
    return min(int(granules[0]) for blob in group for granules, _ in blob.users)


def _granules(extents: Extents, base: int) -> Ints:
    """The numbers of the granules within the segment."""
    inside = np.zeros(GRANULES + 1, np.int64)
    np.add.at(inside, (extents.offsets - base) // GRANULE, 1)
    np.add.at(inside, (extents.offsets + extents.lengths - base) // GRANULE, -1)
    return np.flatnonzero(np.cumsum(inside[:-1]))
