"""The figures of a store, by manifests, maps and trailers alone: no blob is read."""

from __future__ import annotations

from collections import Counter
from datetime import date
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from workers.extents import GRANULE
from workers.models import Model
from workers.store import files, usage
from workers.store.maps import GRANULES, Maps, SegmentMap
from workers.store.needed import Needed, each
from workers.store.packs import PackCache
from workers.store.place import Path
from workers.store.points import Points

#: Granules looked at in one pass when blobs are attributed to VMs: 5 bytes each, a pass per 64 GiB of content.
BY_VM = 1 << 24


class VmFigures(Model):
    #: instance UUID, and what its newest restore point calls it
    vm: str
    name: str
    points: int
    #: bytes that its points hold if each were a full copy
    logical: int
    #: stored bytes that only this VM's points need, and those that other VMs' points need as well
    exclusive: int | None = None
    shared: int | None = None


class Figures(Model):
    path: str
    points: int
    retired: int
    vms: tuple[VmFigures, ...]
    #: bytes of all points, zeroes left out, if each were a full copy
    logical: int
    #: bytes in blobs that points need, as content and as stored; the shares of blobs that are needed in part
    content: int
    stored: int
    packs: int
    pack_bytes: int
    maps: int
    map_bytes: int
    #: packs by how full of needed bytes they are: tenths, from 0 to 9 (9 = above 90 %)
    fill: tuple[int, ...]
    #: bytes of packs and maps that nothing needs: prune frees them once no run or reader waits
    prunable: int
    #: needless bytes within packs that are needed, and what a compaction would free of them
    dead: int
    compactable: int
    #: bytes stored by day of the restore point, of points that are still there
    grown: dict[date, int]
    #: None where nobody knows of a limit
    free: int | None

    @property
    def dedup(self) -> float | None:
        """How many times over the content is held by the points."""
        return self.logical / self.content if self.content else None

    @property
    def compression(self) -> float | None:
        return self.content / self.stored if self.stored else None


def figures(root: Path, points: Points, maps: Maps, packs: PackCache, *, below: float, by_vm: bool) -> Figures:
    refs, by_name = Needed(), dict[str, Counter[str]]()
    labels: dict[str, str] = {}
    counts, logical, grown = Counter[str](), dict[str, int](), Counter[date]()
    retired = 0
    for vm, sequences in groupby(each(points), key=lambda place: place[0]):
        names = Counter[str]()
        for _, seq in sequences:
            point = points.read(vm, seq)
            if point is None:
                retired += 1
                continue
            counts[vm] += 1
            labels[vm] = point.vm.name
            grown[point.created.date()] += sum(disk.stored for disk in point.disks)
            names.update(name for disk in point.disks for name in disk.segments if name)
        if names:
            by_name |= {vm: names} if by_vm else {}
        logical[vm] = _logical(maps, names)
        refs.of_vm(names, maps)
    content = stored = dead = compactable = 0
    fill = [0] * 10
    for group in usage.groups(packs, sorted(refs.packs)):
        usage.mark(maps, refs.segments, group)
        for used in group.values():
            live, whole = used.live_bytes(), int(used.stored.sum())
            content += int(used.live().sum()) * GRANULE
            stored += live
            dead += whole - live
            compactable += whole - live if live < below * whole else 0
            fill[min(9, 10 * live // max(whole, 1))] += 1
    own = _attributed(maps, packs, by_name, refs.packs) if by_vm else {}
    pack_sizes, map_sizes = files.id_sizes(packs.folder, ".pack"), files.id_sizes(maps.folder, ".maps")
    return Figures(
        path=str(root),
        points=sum(counts.values()),
        retired=retired,
        vms=tuple(
            VmFigures(
                vm=vm,
                name=labels[vm],
                points=counts[vm],
                logical=logical[vm],
                exclusive=own[vm][0] if by_vm else None,
                shared=own[vm][1] if by_vm else None,
            )
            for vm in sorted(counts, key=lambda vm: (labels[vm], vm))
        ),
        logical=sum(logical.values()),
        content=content,
        stored=stored,
        packs=len(pack_sizes),
        pack_bytes=sum(pack_sizes.values()),
        maps=len(map_sizes),
        map_bytes=sum(map_sizes.values()),
        fill=tuple(fill),
        prunable=sum(size for pack, size in pack_sizes.items() if pack not in refs.packs)
        + sum(size for file, size in map_sizes.items() if file not in refs.maps),
        dead=dead,
        compactable=compactable,
        grown=dict(sorted(grown.items())),
        free=files.free(root),
    )


def _logical(maps: Maps, names: Counter[str]) -> int:
    """Bytes of a VM's points: each segment is read once, however many points share it."""
    total = 0
    ordered = sorted(names, key=lambda name: maps.parse(name)[1:])
    for first in range(0, len(ordered), usage.BATCH):
        part = ordered[first : first + usage.BATCH]
        for name, segment in zip(part, maps.load_many(part), strict=True):
            total += _mapped(segment) * names[name]
    return total


def _mapped(segment: SegmentMap) -> int:
    lengths = np.diff(segment.starts.astype(np.int64), append=GRANULES)
    return int(lengths[segment.places != 0].sum()) * GRANULE


def _attributed(
    maps: Maps, packs: PackCache, names: dict[str, Counter[str]], needed: set[int]
) -> dict[str, tuple[int, int]]:
    """By VM the stored bytes that it alone needs, and those that it shares."""
    order = sorted(names)
    alone, total = np.zeros(len(order)), np.zeros(len(order))
    packs_of = {vm: {name: set(maps.packs(name)) for name in names[vm]} for vm in order}
    for group in usage.groups(packs, sorted(needed), BY_VM):
        owner: dict[int, NDArray[np.int32]] = {p: np.full(len(u.granules), -1, np.int32) for p, u in group.items()}
        for number, vm in enumerate(order):
            wanted = {name for name, mine in packs_of[vm].items() if mine & group.keys()}
            touched = {pack for name in wanted for pack in packs_of[vm][name]} & group.keys()
            mine = {pack: group[pack]._replace(granules=np.zeros_like(group[pack].granules)) for pack in touched}
            usage.mark(maps, wanted, mine)
            for pack, used in mine.items():
                total[number] += used.live_bytes()
                theirs = owner[pack]
                theirs[used.granules] = np.where(theirs[used.granules] == -1, number, -2)
        for pack, used in group.items():
            sizes = np.maximum(np.diff(used.begins), 1)
            weight = np.repeat(used.stored / sizes, np.diff(used.begins))
            single = owner[pack] >= 0
            alone += np.bincount(owner[pack][single], weight[single], minlength=len(order))
    return {vm: (int(alone[i]), max(0, int(total[i] - alone[i]))) for i, vm in enumerate(order)}
