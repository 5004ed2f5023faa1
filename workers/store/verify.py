"""Verify: every manifest, map and trailer is checked; deep: every blob that a restore point needs as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from workers.errors import StoreDamaged, StoreTooNew
from workers.models import RestorePoint
from workers.store import files, index
from workers.store.layout import damaged
from workers.store.maps import Maps, pack_numbers
from workers.store.packs import PackCache
from workers.store.points import Points
from workers.store.read import decode

_PROBLEMS = (StoreDamaged, StoreTooNew, OSError)


def verify(root: Path, *, maps: Maps, packs: PackCache, points: Points, deep: bool, vm: str | None) -> list[str]:
    """The problems, as sentences; none = everything that a restore point refers to is there and as it was written."""
    problems: dict[str, None] = {}
    slots: dict[int, set[int]] = {}
    for where, point in _points(points, problems, vm):
        for name in sorted({name for disk in point.disks for name in disk.segments if name}):
            try:
                _collect(maps, name, slots)
            except _PROBLEMS as err:
                problems[f"{where}: {err}"] = None
    for pack_id, used in sorted(slots.items()):
        problems.update(dict.fromkeys(_pack(packs, pack_id, used, deep)))
    for name in files.names(root / "index", ".idx"):
        try:
            index.Run.open(root / "index" / name)
        except _PROBLEMS as err:
            problems[f"{err} (only the dedup index; it may be deleted, prune builds it again)"] = None
    return list(problems)


def _points(points: Points, problems: dict[str, None], only: str | None) -> Iterator[tuple[str, RestorePoint]]:
    for vm in files.names(points.root) if only is None else [only]:
        for seq in points.sequences(vm):
            try:
                point = points.read(vm, seq)
            except _PROBLEMS as err:
                problems[str(err)] = None
            else:
                if point is not None:
                    yield f"restore point {point.id} of {point.vm.name}", point


def _collect(maps: Maps, name: str, slots: dict[int, set[int]]) -> None:
    segment = maps.load(name)
    numbers = pack_numbers(segment.places)
    for number, pack in enumerate(segment.packs.tolist()):
        mine = segment.places[numbers == number + 1] >> np.uint64(8) & np.uint64(0xFFFFFF)
        slots.setdefault(int(pack), set()).update(np.unique(mine).tolist())


def _pack(packs: PackCache, pack_id: int, used: set[int], deep: bool) -> Iterator[str]:
    try:
        pack = packs.get(pack_id)
    except _PROBLEMS as err:
        yield str(err)
        return
    for slot in sorted(used):
        try:
            if slot >= len(pack):
                raise damaged(pack.path, f"a map refers to its blob {slot}, it holds {len(pack)}")
            if deep:
                decode(pack, slot, memoryview(files.read_all(pack.fd, int(pack.stored[slot]), int(pack.offsets[slot]))))
        except _PROBLEMS as err:
            yield str(err)
