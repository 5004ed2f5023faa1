"""Compaction: what is in use of packs that are mostly dead moves into new packs, and their files can go.

One job at a time, in steps that a crash or the end of a task's time may interrupt anywhere; the next call goes on.

1. Choose, and publish the job: who starts to write from now on refers to none of the chosen packs by the dedup index.
   Wait for the runs that are registered then; after that what is in use of these packs only gets less.
2. Copy what is in use, at the same time for all points: one granule of an old blob becomes one granule of a new one.
3. Rewrite the map segments that refer to the old packs, as new segments; when they are durable, exchange the names in
   the manifests, each in one step. Id, number, pins and content of a point stay.
4. Whoever read a manifest before its exchange may still read by the old names, or commit a point that has them: wait
   for those runs and readers, exchange what they left, and end the job. The old files are nobody's then: prune marks
   them, waits, and deletes them as it deletes everything.

All that is written belongs to a registered run of its own, so prune spares it; a manifest is staged in that run's
folder, so a process that was stopped while its job was given up has nothing to put in place any more.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time

from workers import faults
from workers.errors import Conflict, StoreDamaged
from workers.models import Model
from workers.store import files, index, layout, moves, usage, victims
from workers.store.layout import FORMAT
from workers.store.maps import Maps, MapsWriter, maps_ids, maps_path
from workers.store.moving import Mover, Pace
from workers.store.needed import each, needed, segments
from workers.store.packs import PackCache, pack_ids, pack_path
from workers.store.place import Path
from workers.store.points import Points
from workers.store.prune import Pruner, owner
from workers.store.readers import Readers
from workers.store.rewriting import Rewriter, with_names
from workers.store.writers import COMPACTION, Writers

#: Map segments are rewritten in files of this size: a crash repeats at most so much.
MAPS = 64 << 20


class CompactReport(Model):
    #: "nothing to do", "waits", "goes on" (its time was up), "done"; "busy": a prune or another compaction is at work
    state: str
    #: packs and files of maps that this job empties, and bytes that it has moved in this call
    packs: int = 0
    maps: int = 0
    moved: int = 0
    #: restore points whose manifests were exchanged in this call
    points: int = 0
    #: whom it waits for
    runs: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    #: packs that cannot be read as they should and stay where they are
    damaged: tuple[str, ...] = ()


class Job(Model):
    """compaction/job.json."""

    format: int = FORMAT
    id: str
    #: files to be emptied
    packs: tuple[int, ...]
    maps: tuple[int, ...]
    #: runs that must have ended before anything is copied; None = not listed yet
    before: tuple[str, ...] | None = None
    #: old packs that are copied, and the new ones, in the order in which they were written
    copied: tuple[int, ...] = ()
    made: tuple[int, ...] = ()
    #: runs and readers that may have read a manifest before the last exchange; None = exchanges are not through
    after: tuple[str, ...] | None = None

    @property
    def run(self) -> str:
        return f"{COMPACTION}{self.id}"

    def encode(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class TimeUp(Exception):
    """The job is at a checkpoint; the next call goes on."""


class Compactor:
    def __init__(
        self,
        root: Path,
        *,
        maps: Maps,
        packs: PackCache,
        points: Points,
        writers: Writers,
        readers: Readers,
        pruner: Pruner,
    ) -> None:
        self._root = root
        self._folder = root / "compaction"
        self._file = self._folder / "job.json"
        self._maps = maps
        self._packs = packs
        self._points = points
        self._writers = writers
        self._readers = readers
        self._pruner = pruner

    def run(self, own: str | None, *, below: float, worth: int, rate: int, seconds: float | None) -> CompactReport:
        """Go on with the job, or choose a new one. `own` is the caller's name among the readers."""
        with self._pruner.alone() as mine:
            if not mine:
                return CompactReport(state="busy")
            job = self._tidy() or self._choose(below, worth, seconds)
            if job is None:
                return CompactReport(state="nothing to do")
            step = _Step(self, job, own, Pace(rate), time.monotonic() + seconds if seconds is not None else None)
            return step.run()

    def emptied(self) -> set[int]:
        """The packs that a writer which starts now must not refer to."""
        job = self._load()
        return set(job.packs) if job is not None else set()

    def _load(self) -> Job | None:
        try:
            data = json.loads(self._file.read_bytes())
            if data.get("format", 0) > FORMAT:
                raise layout.too_new(self._file, data["format"])
            return Job.model_validate(data)
        except FileNotFoundError:
            return None
        except ValueError as err:
            raise layout.damaged(self._file, "it is no compaction's job; removing it is safe, it starts anew") from err

    def save(self, job: Job, was: Job | None = None) -> Job:
        files.make_folder(self._folder)
        files.replace(self._file, job.encode(), secrets.token_hex(4), was.encode() if was is not None else None)
        return job

    def _tidy(self) -> Job | None:
        """The job there is. Removes what jobs left that were ended or given up."""
        job = self._load()
        for run in self._writers.live():
            if run.startswith(COMPACTION) and (job is None or run != job.run):
                self._writers.end(run)
        if files.there(self._folder):
            files.sweep(self._folder)
            for number, name in layout.ids(files.names(self._folder, ".moves"), ".moves").items():
                if job is None or number not in job.made:
                    files.remove(self._folder / name)
        return job

    def _choose(self, below: float, worth: int, seconds: float | None) -> Job | None:
        """In the order of prune: files, then runs, then points. A run's own files are spared while it may write.
        Half of the time is for looking."""
        packs, maps = set(pack_ids(self._packs.folder)), set(maps_ids(self._maps.folder))
        runs, keys = set(self._writers.live()), self._packs.keys
        refs = needed(self._points, self._maps)
        chosen = victims.choose(
            self._maps,
            self._packs,
            refs,
            spare_packs={
                p for p in refs.packs if p not in packs or owner(pack_path(self._packs.folder, p), keys) in runs
            },
            spare_maps={m for m in refs.maps if m not in maps or owner(maps_path(self._maps.folder, m), keys) in runs},
            below=below,
            worth=worth,
            seconds=seconds / 2 if seconds is not None else None,
        )
        if not chosen.packs and not chosen.maps:
            return None
        job = self.save(Job(id=secrets.token_hex(8), packs=chosen.packs, maps=chosen.maps))
        faults.at("compact.chosen")
        return job


class _Step:
    """One call's work on a job."""

    def __init__(self, home: Compactor, job: Job, own: str | None, pace: Pace, deadline: float | None) -> None:
        self._home = home
        self._job = job
        self._own = own
        self._pace = pace
        self._deadline = deadline
        self._maps, self._packs = home._maps, home._packs
        self._points, self._writers = home._points, home._writers
        self._renamed: dict[str, str] = {}
        self._moved = self._exchanged = 0
        self._damaged: list[str] = []

    def run(self) -> CompactReport:
        self._note = self._writers.register(self._job.run)
        try:
            return self._report(*self._go_on())
        except TimeUp:
            return self._report("goes on", set())
        finally:
            with contextlib.suppress(*files.REFUSALS):
                self._writers.leave(self._note)

    def _go_on(self) -> tuple[str, set[str]]:
        if self._job.before is None:
            self._save(before=tuple(sorted(self._writers.waited_for())))
        if held := self._still(self._job.before or ()):
            return "waits", held
        self._copy()
        tables = self._tables()
        while True:
            quiet = self._job.after is not None and not self._still(self._job.after)
            changed = self._exchange(tables)
            if quiet and not changed:
                self._end()
                return "done", set()
            if changed or self._job.after is None:
                self._save(after=tuple(sorted(self._present())))
            if held := self._still(self._job.after or ()):
                return "waits", held

    def _tables(self) -> dict[int, moves.Table]:
        try:
            return moves.load(self._home._folder, self._job.made, self._packs.keys)
        except StoreDamaged as err:  # then what is exchanged is exchanged, and the job ends
            self._damaged.append(f"{err}; what it moved is left to a later compaction")
            return {}

    def _report(self, state: str, held: set[str]) -> CompactReport:
        readers = held & self._home._readers.live()
        return CompactReport(
            state=state,
            packs=len(self._job.packs),
            maps=len(self._job.maps),
            moved=self._moved,
            points=self._exchanged,
            runs=tuple(sorted(held - readers)),
            readers=tuple(sorted(readers)),
            damaged=tuple(self._damaged),
        )

    def _save(self, **update: object) -> None:
        self._job = self._home.save(self._job.model_copy(update=update), self._job)

    def _present(self) -> set[str]:
        return self._writers.waited_for() | self._home._readers.live() - {self._own or ""}

    def _still(self, names: tuple[str, ...]) -> set[str]:
        return self._present() & set(names)

    def _time_up(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    # --- copying --------------------------------------------------------------------------------------------

    def _copy(self) -> None:
        """What is in use of each pack that is not copied yet; a checkpoint when all is, or when the time is up."""
        todo = [pack for pack in self._job.packs if pack not in self._job.copied]
        if not todo:
            return
        names = needed(self._points, self._maps).segments
        there = [pack for pack in todo if self._readable(pack)]
        mover = Mover(self._packs.folder, self._home._folder, self._job.run, self._pace, self._packs.keys)
        copied: list[int] = []
        try:
            for group in usage.groups(self._packs, there):
                usage.mark(self._maps, names, group)
                for pack_id, used in group.items():
                    try:
                        mover.move(self._packs.get(pack_id), used)
                    except StoreDamaged as err:
                        self._damaged.append(f"{err}; it stays where it is")
                    copied.append(pack_id)
                    if self._time_up():
                        break
                if self._time_up():
                    break
            made = mover.seal()
        finally:
            mover.discard()
        self._moved += mover.moved
        faults.at("compact.copied")
        gone = [pack for pack in todo if pack not in there]
        self._save(copied=(*self._job.copied, *copied, *gone), made=(*self._job.made, *made))
        faults.at("compact.made")
        index.complete(self._home._root / "index", self._packs)
        if self._time_up():
            raise TimeUp

    def _readable(self, pack: int) -> bool:
        """Not when it went meanwhile with the points that needed it."""
        try:
            self._packs.get(pack)
        except StoreDamaged as err:
            if pack_path(self._packs.folder, pack).exists():
                self._damaged.append(f"{err}; it stays where it is")
            return False
        return True

    # --- exchanging -----------------------------------------------------------------------------------------

    def _exchange(self, tables: dict[int, moves.Table]) -> bool:
        """Whether any manifest was exchanged. A point at a time, those of one VM together: as long as only some of
        them are through, a diff between both kinds reports what was moved."""
        before = self._exchanged
        writer, staged, vm = None, list[tuple[str, int]](), ""
        rewrite = Rewriter(self._maps, tables, set(self._job.packs) & set(tables), set(self._job.maps), self._renamed)
        try:
            for vm_now, seq in each(self._points):
                if staged and (vm_now != vm or (writer is not None and writer.size > MAPS) or self._time_up()):
                    self._publish(writer, staged)
                    writer, staged = None, []
                    if self._time_up():
                        raise TimeUp
                if vm_now != vm:
                    vm = vm_now
                    self._renamed.clear()  # no two VMs share a segment
                point = self._points.read(vm, seq)
                names = (
                    [name for name in sorted(segments(point)) if rewrite.concerns(name)] if point is not None else []
                )
                for name in names:
                    if name not in self._renamed:
                        writer = writer or MapsWriter(self._maps.folder, self._job.run, self._maps.keys)
                        rewrite.one(name, writer)
                if any(self._renamed[name] != name for name in names):
                    staged.append((vm, seq))
            self._publish(writer, staged)
            writer = None
        finally:
            if writer is not None:
                writer.discard()
        return self._exchanged > before

    def _publish(self, writer: MapsWriter | None, points: list[tuple[str, int]]) -> None:
        if writer is not None:
            if writer.empty:
                writer.discard()
            else:
                writer.seal()
                files.sync_folder(self._maps.folder)
        faults.at("compact.mapped")
        if points and self._job.after is not None:
            self._save(after=None)  # whoever comes between that list and this exchange must be waited for, too
        if points:
            old = {self._maps.parse(name).file for name, new in self._renamed.items() if new != name}
            self._home._pruner.unbury(set(self._job.packs), old)
        for vm, seq in points:
            self._swap(vm, seq)
            faults.at("compact.exchanged")
        for vm in {vm for vm, _ in points}:
            files.sync_folder(self._points.path(vm, 0).parent)

    def _swap(self, vm: str, seq: int) -> None:
        with self._points.exclusive(vm):
            point = self._points.read(vm, seq)
            if point is None:
                return  # it was retired meanwhile
            fresh = with_names(point, self._renamed)
            if fresh == point:
                return
            staged = self._writers.folder(self._job.run) / f"manifest-{secrets.token_hex(8)}"
            try:
                self._points.stage(staged, fresh, beside=self._note)
                faults.at("compact.staged")
                done = self._points.exchange(staged, point, fresh)
            except FileNotFoundError as err:
                raise Conflict(
                    f"the compaction {self._job.id} of {self._home._root} was given up by somebody else; "
                    f"the next one begins anew"
                ) from err
            self._exchanged += done

    def _end(self) -> None:
        self._writers.end(self._job.run)
        faults.at("compact.ended")
        files.remove(self._home._file)
        files.sync_folder(self._home._folder)
        for pack in self._job.made:
            files.remove(moves.moves_path(self._home._folder, pack))
