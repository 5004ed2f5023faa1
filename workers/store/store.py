"""The store: a folder of restore points, maps and packs. The only way in for everything outside this package."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import Any

from workers import faults
from workers.errors import BadInput, NotFound
from workers.extents import Extents
from workers.models import PointDisk, RestorePoint
from workers.settings import StoreSettings, size
from workers.store import diff, files, keyring
from workers.store.compact import Compactor, CompactReport
from workers.store.crypt import PLAIN, Keys
from workers.store.intake import Intake
from workers.store.maps import Maps
from workers.store.packs import PackCache
from workers.store.pins import Pins
from workers.store.place import Path, Remote
from workers.store.points import Points
from workers.store.prune import Pruner, PruneReport
from workers.store.read import DiskReader
from workers.store.readers import Readers, Reading
from workers.store.stats import Figures, figures
from workers.store.suspects import Suspects
from workers.store.verify import Verifier, suspect
from workers.store.write import StoreWriter
from workers.store.writers import Writers

_FOLDERS = ("packs", "maps", "points", "pins", "writers", "readers", "tombs", "index", "compaction", "suspects")

#: what this process is registered as reading, in any of its stores
_readings: weakref.WeakSet[Reading] = weakref.WeakSet()


class Store:
    """One store, opened. Thread-safe; any number of processes may have it open and write to it.

    From the first restore point it hands out until it is gone, it is registered as a reader: what the points that it
    has handed out name is not deleted before that, however they are retired or compacted meanwhile.
    """

    def __init__(self, path: Path, store_id: str, keys: Keys = PLAIN) -> None:
        self.path = path
        self.id = store_id
        self._maps = Maps(path / "maps", keys)
        self._packs = PackCache(path / "packs", keys)
        self._points = Points(path / "points", keys)
        self._pins = Pins(path / "pins", self._points)
        self._writers = Writers(path / "writers")
        self._readers = Readers(path / "readers")
        self._suspects = Suspects(path / "suspects")
        self._reading: Reading | None = None
        self._lock = threading.Lock()
        self._pruner = Pruner(
            path,
            maps=self._maps,
            packs=self._packs,
            points=self._points,
            writers=self._writers,
            readers=self._readers,
            index=path / "index",
        )
        self._compactor = Compactor(
            path,
            maps=self._maps,
            packs=self._packs,
            points=self._points,
            writers=self._writers,
            readers=self._readers,
            pruner=self._pruner,
        )

    @classmethod
    def at(cls, place: StoreSettings) -> Store:
        """The store that is configured so, with its key."""
        return cls.open(configured(place), place.key())

    @classmethod
    def make(cls, place: StoreSettings) -> Store:
        """As `create`, where it is configured, and with its key."""
        return cls.create(configured(place), place.key())

    @classmethod
    def create(cls, path: Path, key: bytes | None = None) -> Store:
        """A new store, encrypted when there is a `key`, or the one that is there. `BadInput` when there is something
        else."""
        path = files.absolute(path)
        files.prove(path)
        with files.room(path):
            if not isinstance(path, Remote):
                # What is in it are the disks of VMs: for the workers' user alone, until somebody opens it to a group.
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (path / "store.json").exists():
                _create(path, key)
        return cls.open(path, key)

    @classmethod
    def open(cls, path: Path, key: bytes | None = None) -> Store:
        """`key` is the wrapping key of an encrypted store. Raises `NotFound`, `WrongKey`, `StoreDamaged`,
        `StoreTooNew`."""
        path = files.absolute(path)
        files.prove(path)
        found = keyring.read(path)
        return cls(path, found.id, keyring.keys(path, found, key))

    @property
    def encrypted(self) -> bool:
        return self._packs.keys.sealing

    # --- reading --------------------------------------------------------------------------------------------

    def vms(self) -> list[str]:
        return self._points.vms()

    def points(self, vm: str) -> list[RestorePoint]:
        """Oldest first. A damaged one is an error, never left out."""
        self._enter()
        return self._points.all(vm)

    def point(self, vm: str, point_id: str) -> RestorePoint:
        self._enter()
        return self._points.get(vm, point_id)

    def newest(self, vm: str) -> RestorePoint | None:
        self._enter()
        return self._points.newest(vm)

    def _enter(self) -> None:
        with self._lock:
            if self._reading is None or self._reading.ended:
                self._reading = self._readers.enter()
                if self._reading is not None:
                    _readings.add(self._reading)

    def free(self) -> int | None:
        """Bytes that it may still take; None where nobody knows of a limit."""
        return files.free(self.path)

    def close(self) -> None:
        """Nothing that was handed out is read any more. Reading on afterwards is fine: it counts from then."""
        with self._lock:
            if self._reading is not None:
                self._reading.close()
                self._reading = None

    @staticmethod
    def close_all() -> None:
        """As `close`, for all that any store handed out in this process: at the end of a task. An error that somebody
        keeps holds the frames of its callers, and these their stores: after an outage of PostgreSQL, or of Redis, an
        idle worker was a reader for 180 s and more, for which every prune waited.
        """
        for reading in list(_readings):
            reading.close()

    def _own(self) -> str | None:
        return self._reading.path.name if self._reading is not None else None

    def reader(self, point: RestorePoint, disk_id: str, carried: Callable[[int], None] | None = None) -> DiskReader:
        """`carried` is told of bytes before they are fetched."""
        for disk in point.disks:
            if disk.disk.id == disk_id:
                return DiskReader(self._maps, self._packs, disk, held=self._reading, carried=carried)
        known = ", ".join(f"{disk.disk.id} ({disk.disk.label})" for disk in point.disks) or "none"
        raise NotFound(f"restore point {point.id} of {point.vm.name} has no disk {disk_id!r}; its disks: {known}")

    def diff(self, a: PointDisk | None, b: PointDisk) -> Extents:
        """A superset, in granules, of where b's content differs from a's; `a` None is a disk of zeroes."""
        return diff.diff(self._maps, a, b)

    def allocated(self, b: PointDisk, start: int = 0, end: int | None = None) -> Extents:
        return diff.allocated(self._maps, b, start, end)

    # --- writing --------------------------------------------------------------------------------------------

    def writer(self, run: str, carried: Callable[[int], None] | None = None) -> StoreWriter:
        """Registers the run first; from then on prune spares what it may refer to. `carried` is told of bytes before
        they are fetched from the parent, or written."""
        with files.room(self.path):
            return StoreWriter(self.path, run, crossing=carried, **self._for_writer(run))

    def intake(self, run: str, source: Store, carried: Callable[[int], None]) -> Intake:
        """A writer that takes over what points of `source` hold. `carried` is told of bytes before they are fetched."""
        with files.room(self.path):
            given = self._for_writer(run)
            return Intake(self.path, run, maps_there=source._maps, packs_there=source._packs, carried=carried, **given)

    def _for_writer(self, run: str) -> dict[str, Any]:
        note = self._writers.register(run)
        files.look_anew(self._packs.folder)
        faults.at("store.registered")
        return {
            "maps": self._maps,
            "packs": self._packs,
            "points": self._points,
            "writers": self._writers,
            "avoid": self._pruner.buried() | self._compactor.emptied() | self._suspects.all(),
            "note": note,
        }

    def abandon(self, run: str) -> None:
        """The run will never commit: what it wrote is given up, and a stopped process of it can publish nothing."""
        with files.room(self.path):
            self._writers.end(run)

    def runs(self) -> list[str]:
        """Runs that neither committed nor were abandoned: prune waits for them."""
        return sorted(self._writers.waited_for())

    # --- keeping --------------------------------------------------------------------------------------------

    def pin(self, vm: str, point_id: str, holder: str) -> None:
        """Nothing of the point goes until `unpin`. `NotFound` when it is already gone or going."""
        with files.room(self.path):
            self._pins.pin(vm, point_id, holder)

    def unpin(self, vm: str, point_id: str, holder: str) -> None:
        self._pins.unpin(vm, point_id, holder)

    def pins(self, vm: str) -> dict[str, set[str]]:
        return self._pins.of(vm)

    def retire(self, vm: str, point_id: str) -> None:
        """The point is gone; its bytes follow with `prune`. `Refused` when it is pinned or the newest."""
        with files.room(self.path):
            self._pins.retire(vm, point_id)

    def prune(self) -> PruneReport:
        """Deletes what nothing needs, safe beside writers; what must wait for a run is done by a later prune."""
        with files.room(self.path):
            self._pins.sweep()
            return self._pruner.run(self._own())

    def compact(
        self, *, below: float = 0.5, worth: int = 0, rate: int = 0, seconds: float | None = None
    ) -> CompactReport:
        """Moves what is in use out of packs and files of maps of which less than this share is; `prune` frees those.

        It begins only when it frees `worth` bytes. At most `rate` bytes a second are read or written (0 = no limit).
        After `seconds` it stops at a checkpoint, and the next call goes on. Safe beside everything.
        """
        with files.room(self.path):
            return self._compactor.run(self._own(), below=below, worth=worth, rate=rate, seconds=seconds)

    def verify(self, deep: bool = False, vm: str | None = None) -> list[str]:
        """What is damaged, in sentences: of all restore points, or of one VM's."""
        return self.verifier().whole(deep=deep, vm=vm)

    def verifier(self) -> Verifier:
        """For a verification in parts. It marks what packs are damaged."""
        self._enter()
        root = files.fresh(self.path)
        maps, packs = self._maps, self._packs
        if root is not self.path:
            keys = self._packs.keys
            maps, packs = Maps(root / "maps", keys), PackCache(root / "packs", keys)
        return Verifier(root, maps=maps, packs=packs, points=self._points, suspects=self._suspects)

    def pack_sizes(self) -> dict[int, int]:
        """Bytes of each pack that there is."""
        return files.id_sizes(self._packs.folder, ".pack")

    def manifest_sizes(self) -> dict[str, int]:
        """Bytes of the manifests of each VM."""
        root, vms = self._points.root, self._points.vms()
        found = files.together(root, lambda vm: sum(files.sizes(root / vm, ".json").values()), vms)
        return dict(zip(vms, found, strict=True))

    def suspect(self, point: RestorePoint, disk: str) -> bool:
        """Whether a verification found a pack damaged to which this disk of the point refers."""
        packs = self._suspects.all()
        return bool(packs) and suspect(point, self._maps, packs, disk)

    def stats(self, *, below: float = 0.5, by_vm: bool = False) -> Figures:
        """Its figures, without reading any blob; `below` is from where on packs are compacted."""
        self._enter()
        return figures(self.path, self._points, self._maps, self._packs, below=below, by_vm=by_vm)


def configured(place: StoreSettings) -> Path:
    if place.s3 is None:
        assert place.path is not None
        return place.path
    from workers.store import bucket  # its library takes a third of a second to load

    return bucket.at(place.s3, place.cache, size(place.cache_size))


def _create(path: Path, key: bytes | None) -> None:
    strangers = [name for name in _entries(path) if name not in _FOLDERS and not name.startswith(".store.json.")]
    used = [name for name in _FOLDERS if name not in strangers and files.there(path / name) and _entries(path / name)]
    if strangers or used:
        raise BadInput(
            f"{path} is not empty and holds no store.json (it holds {', '.join(sorted(strangers + used)[:3])}): "
            f"choose an empty folder for a new store, or restore store.json if this was one"
        )
    for name in _FOLDERS:
        files.make_folder(path / name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    store_id = secrets.token_hex(16)
    data = keyring.fresh(store_id, key, created=now)
    # Two may create at once: the second finds the first one's store.
    with contextlib.suppress(FileExistsError):
        files.write_whole(path / "store.json", data, secrets.token_hex(8))
    files.sync_folder(path.parent)


def _entries(folder: Path) -> list[str]:
    return folder.names("") if isinstance(folder, Remote) else os.listdir(folder)
