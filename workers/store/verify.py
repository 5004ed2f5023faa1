"""Verify: every manifest, map and trailer is checked; deep: every blob of every pack. Damage has a name.

Also blobs that no point needs are read: the dedup index would give one to the next backup that has its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from workers.errors import StoreDamaged, StoreTooNew
from workers.models import RestorePoint
from workers.store import files, index, usage
from workers.store.layout import damaged
from workers.store.maps import Maps, MapsFile, maps_path, pack_numbers
from workers.store.needed import segments
from workers.store.packs import Pack, PackCache, pack_ids, pack_path
from workers.store.place import Path
from workers.store.points import Points
from workers.store.read import READ, decode
from workers.store.suspects import Suspects

_PROBLEMS = (StoreDamaged, StoreTooNew, OSError)
#: restore points of a VM that a sentence names
MOST_NAMED = 5


def _for_nothing(count: int) -> None: ...


class Verifier:
    """Over one store's files. Each method gives the problems as sentences; none = all is as it was written."""

    def __init__(self, root: Path, *, maps: Maps, packs: PackCache, points: Points, suspects: Suspects) -> None:
        self._root = root
        self._maps, self._packs, self._points, self._suspects = maps, packs, points, suspects

    def whole(self, *, deep: bool, vm: str | None) -> list[str]:
        problems: dict[str, None] = {}
        slots: dict[int, int] = {}
        for each in self._points.folders() if vm is None else [vm]:
            problems.update(dict.fromkeys(self.of_vm(each, slots)))
        for pack_id in sorted(slots):
            problems.update(dict.fromkeys(self.of_pack(pack_id, (slots[pack_id],), deep=deep)))
        if vm is None:
            if deep:
                for pack_id in pack_ids(self._packs.folder):
                    if pack_id not in slots:
                        problems.update(dict.fromkeys(self.of_pack(pack_id, (), deep=True)))
                for pack_id in self._suspects.all() - set(slots):
                    if not pack_path(self._packs.folder, pack_id).exists():
                        self._suspects.clear(pack_id)
            problems.update(dict.fromkeys(self.of_the_rest()))
        return list(problems)

    def of_vm(self, vm: str, slots: dict[int, int] | None = None) -> Iterator[str]:
        """Its manifests, and the maps that they name. `slots`: gets the highest of each pack's blobs that are needed:
        all of them would be 25 GB for 100 TiB, and a pack that ends too early lacks the last."""
        seen: set[str] = set()
        holding: set[int] = set()
        try:
            sequences = self._points.sequences(vm)
        except _PROBLEMS as err:
            yield str(err)
            return
        for seq in sequences:
            try:
                point = self._points.read(vm, seq)
            except _PROBLEMS as err:
                yield (
                    f"{err}. It is a restore point of the VM {vm}, whose others do not need it: once it is moved out "
                    "of the store they can be used again, and the next backup goes on from the newest of them"
                )
                continue
            for name in sorted(segments(point) - seen) if point is not None else ():
                try:
                    for pack, mine in _blobs(self._maps, name):
                        if slots is not None:
                            slots[pack] = max(slots.get(pack, 0), int(mine[-1]))
                except _PROBLEMS as err:
                    yield f"{err}. {self._whose(partial(_names, name))}"
                else:
                    holding.add(self._maps.parse(name).file)
            seen |= segments(point) if point is not None else set()
        for file in sorted(holding):
            path = maps_path(self._maps.folder, file)
            try:
                MapsFile(path, file, self._maps.keys).segments()
            except _PROBLEMS as err:
                yield f"{err}. Its maps can be read all the same: no restore point is lost by that"

    def of_pack(
        self, pack_id: int, used: Iterable[int], *, deep: bool = True, carried: Callable[[int], None] = _for_nothing
    ) -> list[str]:
        """A pack and its blobs. `used`: those that are known to be needed, where nothing else is looked at. `carried`
        is told of bytes before they are fetched.

        A pack that is damaged is marked: no later backup refers to it.
        """
        wrong: dict[int | None, str] = {}
        try:
            pack = self._packs.get(pack_id)
        except _PROBLEMS as err:
            if not used and _unfinished(pack_path(self._packs.folder, pack_id), err):
                return []
            wrong[None] = str(err)
        else:
            for slot in sorted(used):
                if slot >= len(pack):
                    wrong[slot] = str(damaged(pack.path, f"a map refers to its blob {slot}, it holds {len(pack)}"))
            for slot, stored in _stored(pack, carried) if deep else ():
                try:
                    decode(pack, slot, stored())
                except _PROBLEMS as err:
                    wrong[slot] = str(err)
        if wrong:
            self._suspects.mark(pack_id, next(iter(wrong.values())))
        elif deep:
            self._suspects.clear(pack_id)
        return [f"{sentence}. {self._needing(pack_id, slot)}" for slot, sentence in wrong.items()]

    def of_the_rest(self) -> Iterator[str]:
        """What no restore point refers to: the dedup index, tombstones."""
        for name in files.names(self._root / "index", ".idx"):
            try:
                index.Run.open(self._root / "index" / name)
            except _PROBLEMS as err:
                yield f"{err} (only the dedup index; it may be deleted, prune builds it again)"

    def _needing(self, pack_id: int, slot: int | None) -> str:
        """Which restore points need this blob, or anything of the pack."""

        def needs(point: RestorePoint) -> bool:
            for name in segments(point):
                try:
                    if pack_id not in self._maps.packs(name):
                        continue
                    found = dict(_blobs(self._maps, name))
                    if slot is None or slot in found.get(pack_id, ()):
                        return True
                except _PROBLEMS:
                    continue  # that one is named for itself
            return False

        return self._whose(needs)

    def _sequences(self, vm: str) -> list[int]:
        try:
            return self._points.sequences(vm)
        except _PROBLEMS:
            return []  # that is named for itself

    def _whose(self, needs: Callable[[RestorePoint], bool]) -> str:
        hit: dict[str, list[str]] = {}
        for vm in self._points.folders():
            for seq in self._sequences(vm):
                try:
                    point = self._points.read(vm, seq)
                except _PROBLEMS:
                    continue
                if point is not None and needs(point):
                    hit.setdefault(point.vm.name, []).append(point.id)
        if not hit:
            return "No restore point needs it, and no later one will"
        some = "; ".join(f"{vm}: {_some(ids)}" for vm, ids in sorted(hit.items())[:MOST_NAMED])
        more = f"; and {len(hit) - MOST_NAMED} more VMs" if len(hit) > MOST_NAMED else ""
        return (
            f"These restore points cannot be read whole: {some}{more}. The next backup of each of these VMs "
            "reads all of it and stores anew what is lost here; what the older points had there stays lost, unless the "
            "file is put back"
        )


def _stored(pack: Pack, carried: Callable[[int], None]) -> Iterator[tuple[int, Callable[[], memoryview]]]:
    """All blobs as they lie there, by reads of some megabytes: in a bucket each is a request. What a device cannot give
    as one piece is read blob by blob, so that the one it cannot read has a name."""
    ends = (pack.offsets + pack.stored).tolist()
    starts, slot = pack.offsets.tolist(), 0
    while slot < len(pack):
        first, last = slot, slot
        while last + 1 < len(pack) and starts[last + 1] >= ends[last] and ends[last + 1] - starts[first] <= READ:
            last += 1
        carried(ends[last] - starts[first])
        try:
            data: memoryview | None = memoryview(files.read_all(pack.fd, ends[last] - starts[first], starts[first]))
        except OSError:
            data = None
        for slot in range(first, last + 1):
            at, length = starts[slot], ends[slot] - starts[slot]
            if data is not None:
                yield slot, partial(_part, data, at - starts[first], length)
            else:
                yield slot, partial(_alone, pack, at, length)
        slot = last + 1


def _part(data: memoryview, start: int, length: int) -> memoryview:
    return data[start : start + length]


def _alone(pack: Pack, start: int, length: int) -> memoryview:
    return memoryview(files.read_all(pack.fd, length, start))


def _names(segment: str, point: RestorePoint) -> bool:
    return segment in segments(point)


def _some(ids: Sequence[str]) -> str:
    named = ", ".join(ids[-MOST_NAMED:])
    return named if len(ids) <= MOST_NAMED else f"{len(ids)} points, the newest of them {named}"


def _unfinished(path: Path, err: Exception) -> bool:
    """A pack that is being written, or that a crash left: it has no end yet, or is gone by now."""
    return not path.exists() or "it has no trailer" in str(err) or "it ends after" in str(err)


def suspect(point: RestorePoint, maps: Maps, packs: set[int], disk: str) -> bool:
    """Whether a disk of the point refers to one of these packs, or can not be known not to."""
    for part in point.disks:
        for name in part.segments if part.disk.id == disk else ():
            try:
                if name and packs & set(maps.packs(name)):
                    return True
            except _PROBLEMS:
                return True
    return False


def _blobs(maps: Maps, name: str) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each pack that a segment refers to, and which of its blobs, in order."""
    segment = maps.load(name)
    numbers = pack_numbers(segment.places)
    for number, pack in enumerate(segment.packs.tolist()):
        mine, _ = usage.slots_of(segment.places[numbers == number + 1])
        yield int(pack), np.unique(mine)
