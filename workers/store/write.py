"""A run's writer: makes map segments from a source, keeps packs and maps, publishes the restore point at the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np

from workers import faults
from workers.errors import Conflict, StoreDamaged, UnderstudyError
from workers.extents import EMPTY, GRANULE, Extents
from workers.models import PointDisk, RestorePoint
from workers.point import BATCH, Reader
from workers.store import files, layout
from workers.store.index import Index
from workers.store.lanes import Lane, Part, Work, parts
from workers.store.layout import BLOCK, SCRAP, SEGMENT
from workers.store.maps import Maps, MapsWriter, SegmentMap, dense, equal, fragmented, from_dense, mapped, since
from workers.store.needed import segments
from workers.store.packs import Blob, PackCache, PackWriter, pack_path
from workers.store.place import Path
from workers.store.points import Points
from workers.store.read import DiskReader, Padded
from workers.store.segment import Segment, going_on
from workers.store.writers import Writers

#: A segment that changes and lies in more blobs of scraps than this, and in more than twice as many as would do, gets
#: its scraps repacked in the disk's order. Reading it decodes at most that many MiB of scraps, which fit the cache.
SCRAP_BLOBS = 64


class StoreWriter:
    """Everything a run writes. Several threads may call `segment` at once; for `flush` and `commit` all must be done.

    Closing without a commit leaves the run registered, so that what was flushed can be committed by a later writer of
    the same run; `Store.abandon` gives it up.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        *,
        maps: Maps,
        packs: PackCache,
        points: Points,
        writers: Writers,
        avoid: set[int],
        note: Path,
        crossing: Callable[[int], None] | None = None,
    ) -> None:
        self._crossing = crossing
        self.run = run
        self._root = root
        self._maps = maps
        self._packs = packs
        self._points = points
        self._writers = writers
        self._note = note
        self._index = Index(root / "index", packs, avoid=avoid)
        self._lock = threading.Lock()
        self._pack: PackWriter | None = None
        #: packs that are not sealed, and how many threads write to each
        self._busy: dict[PackWriter, int] = {}
        self._file: MapsWriter | None = None
        self._own: dict[bytes, tuple[int, int]] = {}
        self._lanes: list[Lane] = []
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- segments -------------------------------------------------------------------------------------------

    def segment(
        self,
        index: int,
        *,
        size: int,
        source: Reader,
        candidates: Extents,
        parent: PointDisk | None,
        threads: int = 2,
        mode: Literal["full", "delta", "compare"] = "delta",
        exact: Extents = EMPTY,
        begin: int = 0,
        made: str = "",
        until: float = float("inf"),
    ) -> Segment:
        """Map segment number `index` of a disk of `size` bytes.

        After `until` (monotonic) no batch is begun but the first: then the segment is made up to its `done` only. Given
        `begin` = `done` and `made` = its name, also another writer of the run goes on with it.

        `exact` is what of `candidates` is known to differ from the parent, granule by granule: it is not compared.
        delta: outside `candidates` the parent's content holds. compare: outside `candidates` are zeroes, and all that
        the parent holds is looked at as well. full: the same, and the parent is not looked at. Without a parent, delta
        and compare are full.
        """
        with self._guard():
            if source.size != size:
                raise ValueError(f"the source has {source.size} bytes, the disk {size}")
            base = index * SEGMENT
            end = min(size, base + SEGMENT)
            if not 0 <= base < end:
                raise ValueError(f"a disk of {size} bytes has no segment {index}")
            names = parent.segments if parent is not None and mode != "full" else ()
            name = names[index] if index < len(names) else ""
            before = self._maps.load(name)
            work = self._start(before, base, size, parent if name else None, source, candidates, mode, exact, begin)
            if begin > base:
                work.places, work.packs = going_on(before, self._maps.load(made))
                work.numbers = {pack: i + 1 for i, pack in enumerate(work.packs)}
            stopped = self._run(work, self._parts(work, threads), threads, until)
            if stopped is None and name and (work.differing or made):
                self._run(work, parts(self._strewn(work, before), BATCH, source=False), threads)
            return self._finish(work, name)._replace(done=end if stopped is None else stopped)

    def _start(
        self,
        before: SegmentMap,
        base: int,
        size: int,
        parent: PointDisk | None,
        source: Reader,
        candidates: Extents,
        mode: str,
        exact: Extents = EMPTY,
        begin: int = 0,
    ) -> Work:
        end = min(size, base + SEGMENT)
        candidates = candidates.clip(base, end)
        reader = None
        if parent is not None:
            reader = Padded(DiskReader(self._maps, self._packs, parent, carried=self._crossing))
            if mode == "compare":
                candidates |= mapped(before, base).clip(base, end)
        work = Work(
            base=base,
            size=size,
            places=dense(before),
            packs=[int(p) for p in before.packs],
            before=reader,
            source=source,
            candidates=candidates.clip(begin, end).align(GRANULE, base + SEGMENT),
            scan=reader is not None and mode == "compare",
            exact=exact.clip(base, end).align(GRANULE, base + SEGMENT),
            fragmented=fragmented(before),
        )
        work.numbers = {pack: i + 1 for i, pack in enumerate(work.packs)}
        # A disk that shrank: what lies beyond its end is not carried along.
        work.places[-(-(end - base) // GRANULE) :] = 0
        return work

    def _parts(self, work: Work, threads: int) -> Iterator[Part]:
        extents = work.candidates
        if work.before is not None and work.fragmented.any():
            touched = np.zeros(len(work.fragmented), bool)
            blocks = extents.align(BLOCK, work.base + SEGMENT)
            for offset, length in blocks:
                touched[(offset - work.base) // BLOCK : (offset - work.base + length) // BLOCK] = True
            whole = np.flatnonzero(touched & work.fragmented) * BLOCK + work.base
            extents = extents | Extents.from_arrays(whole, np.full(len(whole), BLOCK, np.int64))
        share = -(-extents.total // max(1, threads) // BLOCK) * BLOCK
        return parts(extents, min(BATCH, max(BLOCK, share)))

    def _strewn(self, work: Work, before: SegmentMap) -> Extents:
        """The old scraps of a segment that changed and lies in too many blobs: they are packed anew, in order."""
        packed = work.places & np.uint64(layout.PLACE_PACKED) != 0
        blobs = len(np.unique(work.places[packed] >> np.uint64(layout.PLACE_SLOT)))
        if blobs <= SCRAP_BLOBS or blobs * SCRAP <= 2 * int(packed.sum()) * GRANULE:
            return EMPTY
        # Only what is as it was can be read from the parent; what this run stored is in order already.
        packed &= work.places == dense(before)
        strewn = np.flatnonzero(packed) * GRANULE + work.base
        return Extents.from_arrays(strewn, np.full(len(strewn), GRANULE, np.int64))

    def _run(self, work: Work, todo: Iterator[Part], threads: int, until: float = float("inf")) -> int | None:
        """Each thread takes the next batch until there is none; the first error stops all and is raised. Where the
        first block begins that time was not enough for."""
        first = next(todo, None)
        if first is None:
            return None
        second = next(todo, None)
        queue = iter([part for part in (first, second) if part is not None])
        turn, errors, stopped = threading.Lock(), list[BaseException](), list[int]()

        def take() -> Part | None:
            with turn:
                part = None if errors or stopped else next(queue, None) or next(todo, None)
                if part is None or part is first or time.monotonic() <= until:
                    return part
                stopped.append(part.ranges[0][0] // BLOCK * BLOCK)
                return None

        def loop(lane: Lane) -> None:
            try:
                while (part := take()) is not None:
                    lane.process(work, part)
                lane.finish(work)
            except BaseException as err:
                errors.append(err)
                lane.reset()

        lanes = self._borrow(1 if second is None else max(1, threads))
        helpers = [threading.Thread(target=loop, args=(lane,)) for lane in lanes[1:]]
        for helper in helpers:
            helper.start()
        loop(lanes[0])
        for helper in helpers:
            helper.join()
        with self._lock:
            self._lanes += lanes
        if errors:
            raise errors[0]
        return stopped[0] if stopped else None

    def _borrow(self, count: int) -> list[Lane]:
        with self._lock:
            lanes, self._lanes = self._lanes[:count], self._lanes[count:]
        return lanes + [Lane(self._find, self._store, self._packs.keys) for _ in range(count - len(lanes))]

    def _finish(self, work: Work, name: str) -> Segment:
        differing = EMPTY
        if work.differing:
            starts = np.concatenate([part.offsets for part in work.differing])
            lengths = np.concatenate([part.lengths for part in work.differing])
            differing = Extents.from_arrays(starts, lengths)
        made = from_dense(work.places, work.packs)
        if not (made.places != 0).any():
            name = ""
        elif not name or not equal(made, self._maps.load(name)):
            how = since(self._maps.parse(name), dense(self._maps.load(name)), work.places) if name else None
            with self._lock:
                if self._file is None:
                    self._file = MapsWriter(self._root / "maps", self.run, self._maps.keys)
                file = self._file
            with self._writing():
                where = file.append(made, how)
            name = str(where)
            work.stored += where.length
        return Segment(name, work.read, differing.total, work.stored, differing, work.rewritten)

    # --- packs ----------------------------------------------------------------------------------------------

    def _find(self, digests: Sequence[bytes]) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = [self._own.get(digest) for digest in digests]
        missing = [i for i, place in enumerate(found) if place is None]
        with self._lock:
            more = self._index.find([digests[i] for i in missing])
        for i, place in zip(missing, more, strict=True):
            found[i] = place
        return found

    def _store(self, blobs: Sequence[Blob], data: memoryview) -> tuple[int, int]:
        if self._crossing is not None:
            self._crossing(len(data))
        with self._lock:
            pack = self._pack
            if pack is None or pack.full:
                pack = self._pack = PackWriter(self._root / "packs", self.run, self._packs.keys)
                self._busy[pack] = 0
            self._busy[pack] += 1
            slot, offset = pack.reserve(blobs)
        with self._writing():
            pack.write(data, offset, slot, blobs)
        with self._lock:
            self._busy[pack] -= 1
            for number, blob in enumerate(blobs):
                if not blob.flags & layout.PACKED:
                    self._own[blob.digest] = (pack.id, slot + number)
            last = pack.full and not self._busy[pack]
            if last:
                # Nobody reserves in a full pack: it is this thread's to seal.
                self._busy[pack] = -1
        if last:
            self._seal(pack)
        return pack.id, slot

    def _seal(self, pack: PackWriter) -> None:
        with self._writing():
            table = pack.seal()
        with self._lock:
            del self._busy[pack]
            self._index.add(pack.id, table)
            for digest in table["digest"].tolist():
                if self._own.get(digest, (0, 0))[0] == pack.id:
                    del self._own[digest]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A writer that failed to write or sync once writes nothing more: after a failed fsync the next one may report
        success though the data is lost."""
        try:
            yield
        except BaseException as err:
            self._failed = err
            raise

    # --- checkpoints and the end ----------------------------------------------------------------------------

    def flush(self) -> None:
        """All segments returned so far are on stable storage: their names may be kept as checkpoints."""
        with self._guard():
            self._flush()

    def _flush(self) -> None:
        packs, self._pack = list(self._busy), None
        for pack in packs:
            self._seal(pack)
        if packs:
            files.sync_folder(self._root / "packs")
        faults.at("store.packs-synced")
        if self._file is not None:
            with self._writing():
                self._file.seal()
            self._file = None
            files.sync_folder(self._root / "maps")
        with self._lock:
            self._index.publish()

    def commit(self, point: RestorePoint) -> None:
        """Publishes the point and ends the run. Raises `Conflict` when another point took its number first."""
        with self._guard():
            self._flush()
            try:
                # The note is there since we registered. If the run was ended meanwhile it is gone, also when somebody
                # registered the run anew; and from then on it cannot be linked.
                self._points.stage(self._note, point)
                faults.at("store.staged")
                self._points.check_next(point)
                self._check(point)
                faults.at("store.checked")
                self._points.claim(self._note, point)
            except FileNotFoundError as err:
                raise Conflict(
                    f"run {self.run} was ended (abandoned, or committed by another process) in {self._root}: "
                    f"what it wrote is given up; start a new run"
                ) from err
            faults.at("store.linked")
        self._writers.end(self.run)

    def _check(self, point: RestorePoint) -> None:
        """Everything the new point refers to, beyond what its parent holds, is still there."""
        if point.run != self.run:
            raise ValueError(f"a writer of run {self.run} cannot commit a point of run {point.run}")
        parent = self._points.read(point.vm.instance_uuid, point.seq - 1) if point.parent is not None else None
        new = segments(point) - (segments(parent) if parent is not None else set())
        there = set[int]()
        for name in sorted(new):
            try:
                asked = set(self._maps.packs(name)) - there  # by name: a list of 135,000 packs takes half a second
                gone = {pack for pack in asked if not files.listed(pack_path(self._packs.folder, pack))}
                there |= asked
            except StoreDamaged as err:
                raise Conflict(
                    f"a map segment of run {self.run} cannot be used any more; start a new run: {err}"
                ) from err
            if gone:
                raise Conflict(
                    f"pack {min(gone):016x}, which run {self.run} refers to, was pruned in {self._root} meanwhile: "
                    f"start a new run"
                )

    def close(self) -> None:
        for pack in self._busy:
            pack.discard()
        self._busy, self._pack = {}, None
        if self._file is not None:
            self._file.discard()
            self._file = None
        self._lanes = []
        with contextlib.suppress(*files.REFUSALS):
            self._writers.leave(self._note)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Full storage becomes a sentence, and nothing goes on after `_writing` failed."""
        if self._failed is not None:
            raise UnderstudyError(
                f"an earlier write of run {self.run} to {self._root} failed ({self._failed}): "
                f"open a new writer and go on from the last checkpoint"
            ) from self._failed
        with files.room(self._root):
            yield
