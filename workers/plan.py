"""What a sync or a backup will do, and why: pure decisions. `sync --plan` and the run call the same."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from workers.errors import Foreign, Refused, Touched
from workers.extents import EMPTY, Extents
from workers.models import (
    Cursor,
    Disk,
    DiskPlan,
    HardwareChange,
    PointDisk,
    RestorePoint,
    SnapshotNode,
    SyncPlan,
    VmState,
)

#: what vSphere's change tracking reports in; a sample is taken in the same grain
CBT_GRAIN = 64 << 10
#: bounds of the sample that each incremental backup compares outside change tracking's answer, per disk
SAMPLE_LEAST, SAMPLE_MOST = 16, 1024

#: half-done syncs that a cursor names: each costs 20 of its 4,096 bytes, and a diff
MOST_TARGETS = 24


class Decision(NamedTuple):
    """Which way to bring a replica to `point`."""

    mode: Literal["nothing", "build", "delta", "compare"]
    reason: str
    #: states the replica's blocks may hold; None = zeroes. A delta must cover the difference to each of them.
    since: tuple[str | None, ...] = ()


def seal_name(realm: str, pair: str, point: str) -> str:
    """The integrity snapshot's name. It says whose it is and what the disks hold, without any other record."""
    return f"understudy/{realm[:8]}/{pair[:8]}/{point}"


# --- is the replica ours, off, unchanged? ---------------------------------------------------------------------------


def check_ours(cursor: Cursor, state: VmState, *, realm: str, pair: str, source: str) -> None:
    """Raise `Foreign` unless the cursor was written by this realm, for this pair, on this very VM (not on a clone)."""
    name = state.identity.name
    if cursor.realm != realm:
        raise Foreign(
            f"the replica {name} belongs to another realm ({cursor.realm[:8]}, this is {realm[:8]}); "
            "nothing was written. If the other installation is gone, `understudy adopt` makes it this one's; else "
            "choose another replica name, and the next sync builds a new one"
        )
    if (cursor.vm, cursor.vcenter) != (state.identity.instance_uuid, state.identity.vcenter):
        raise Foreign(
            f"{name} carries the cursor of another VM ({cursor.vm}): it is a clone or was restored; "
            "nothing was written. Rename or remove it, or choose another replica name"
        )
    if cursor.pair != pair and cursor.source == source:
        raise Foreign(
            f"{name} is the replica of the same VM for another recovery target, or of an older catalogue; nothing was "
            "written. If the older catalogue is gone, `understudy adopt` makes it this pair's; else give one of the "
            "two another replica name (prefix or suffix of the target, overrides.NAME.name)"
        )
    if cursor.pair != pair or cursor.source != source:
        raise Foreign(
            f"{name} is the replica of another VM (instance UUID {cursor.source}); nothing was written. "
            "If the source was created again under the same name, rename or remove the old replica, "
            "or choose another name for the new one"
        )


def taking(seed: str, disks: Iterable[Disk]) -> str:
    """For the cursor, while the disks of a replica get new content ids: a seed for the new ones, and the old ones.

    8 characters a disk, 4 for each digest: with the 256 disks that a VM may have that is half of the cursor's 4 KiB.
    """
    return seed + "".join(sorted(_short(disk.id) + _short(disk.content_id) for disk in disks))


def new_cid(taken: str, disk: str) -> str:
    """The content id that the disk gets: whoever comes after a crash knows it too. Never one of VMDK's two marks."""
    return f"{int.from_bytes(_digest(f'{taken[:8]} {disk}')[:4]) % 0xFFFFFFFD + 1:08x}"


def changed_while_taken(taken: str, disks: Iterable[Disk], cids: Mapping[str, str]) -> list[str]:
    """Labels of the disks that have neither the content id which `taken` remembers nor the one it gives out.

    `cids`: as the descriptors say. A disk that `taken` does not know was added by the run that wrote it.
    """
    entries = {taken[i : i + 8] for i in range(8, len(taken), 8)}
    known = {entry[:4] for entry in entries}
    return [
        disk.label
        for disk in disks
        if _short(disk.id) in known
        and _short(disk.id) + _short(disk.content_id) not in entries
        and cids.get(disk.id) != new_cid(taken, disk.id)
    ]


def added_and_open(taken: str, disks: Mapping[str, Disk], cids: Mapping[str, str], fresh: Sequence[str]) -> set[str]:
    """Of `disks` (by source id) those that a run added before it stopped, and of which nothing shows that nobody has
    written to them since: `taken` does not know their first content id, and they have not got the one from us.
    """
    known = {taken[i : i + 4] for i in range(8, len(taken), 8)}
    return {
        source
        for source, disk in disks.items()
        if taken and source in fresh and _short(disk.id) not in known and cids.get(disk.id) != new_cid(taken, disk.id)
    }


def _short(text: str) -> str:
    return base64.b64encode(_digest(text)[:3]).decode()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def left_by_library(cursor: Cursor, state: VmState, evidence: str) -> str | None:
    """Why all of a half-applied replica must be compared that VMware's library was writing; None where nothing says so.

    The library gives a disk a content id of its own at the first write, and its carrier puts ours back at the end. A
    worker that is killed in between leaves what also somebody else could have left.
    """
    if not cursor.library or cursor.state != "applying" or state.power != "poweredOff" or evidence == cursor.content:
        return None
    return (
        f"the disks of {state.identity.name} have content ids that are not ours: a worker that wrote by VMware's "
        "library was killed, or somebody else opened the half-applied replica"
    )


def check_untouched(
    cursor: Cursor, state: VmState, evidence: str, cids: Mapping[str, str], *, discard: bool
) -> str | None:
    """None when nobody but us changed the replica; else, with `discard`, the reason to compare all of it.

    `evidence` is the digest of the disks' contentIds now, `cids` their descriptors' content ids (needed where a run
    died while it renewed them). Raises `Touched` (a person must decide) or `Refused`
    (a snapshot of somebody else stands on the disks).
    """
    name = state.identity.name
    if state.power != "poweredOff":
        raise Touched(
            f"the replica {name} is {'running' if state.power == 'poweredOn' else 'suspended'}; nothing was written. "
            "If production runs on it, keep it; if not, power it off and run `understudy sync --discard-changes`"
        )
    ours = seal_name(cursor.realm, cursor.pair, cursor.base or "")
    foreign = [s.name for s in state.snapshots if not s.name.startswith(f"understudy/{cursor.realm[:8]}/")]
    if foreign:
        raise Refused(
            f"somebody's snapshot {foreign[0]!r} stands on the replica {name}; nothing was written. "
            "Remove that snapshot (its data stays), then sync again"
        )
    finding = None
    if evidence == "":
        finding = "vCenter gives no content ids for its disks, so that nothing proves that they are as we left them"
    elif state.snapshots and (len(state.snapshots) > 1 or state.snapshots[0].name != ours):
        finding = f"its snapshots ({', '.join(s.name for s in state.snapshots)}) do not belong to its cursor ({ours})"
    elif cursor.taking:
        if changed := changed_while_taken(cursor.taking, state.config.disks, cids):
            finding = f"{', '.join(changed)} has another content id than a run that stopped could have left"
    elif cursor.content == "" and cursor.state == "applying":
        return "the last run stopped before it had taken over the replica that it built"
    elif (left := left_by_library(cursor, state, evidence)) is not None:
        return left
    elif evidence != cursor.content:
        finding = "its disks' content ids are not those that the last sync left"
    if finding is None:
        return None
    if not discard:
        raise Touched(
            f"the replica {name} was changed by somebody else: {finding}. Nothing was written, for production may have "
            "run on it. To drop those changes and compare every block, run `understudy sync --discard-changes`"
        )
    return f"the replica was changed by somebody else ({finding}) and those changes were given up on request"


# --- replication ------------------------------------------------------------------------------------------------


def decide(
    cursor: Cursor | None,
    points: Sequence[RestorePoint],
    *,
    store: str,
    compare: str | None = None,
    back_to: str | None = None,
    several: bool = False,
) -> Decision:
    """How to go to the newest of `points` (ordered by seq), or to the one of them that a person named (`back_to`).

    `several`: the points are in several stores, and a point is the same in each: its id says so.
    `compare`: a reason not to trust the cursor. A difference has no direction, so the way back is the way forward.
    """
    if not points:
        return Decision("nothing", "there is no restore point yet; the first backup makes one")
    newest = next(p for p in points if p.id == back_to) if back_to is not None else points[-1]
    if cursor is None:
        return Decision("build", "there is no replica yet", (None,))
    if compare or cursor.compare:
        return Decision("compare", compare or cursor.compare)
    known = {p.id: p for p in points}
    if len(cursor.targets) >= MOST_TARGETS and newest.id not in cursor.targets:
        return Decision("compare", f"{len(cursor.targets)} syncs to other restore points stopped half way")
    if cursor.store != store and not several:
        return Decision("compare", "the restore points come from another store than at the last sync")
    if cursor.state == "committed" and cursor.base == newest.id:
        which = "newest restore point" if back_to is None else "restore point"
        return Decision("nothing", f"the replica already holds the {which} {newest.id}")
    states = (cursor.base, *cursor.targets)
    missing = [s for s in states if s is not None and s not in known]
    if missing:
        return Decision(
            "compare", f"the restore point {missing[0]} that the replica holds is not in the store any more"
        )
    ahead = [s for s in states if s is not None and known[s].seq > newest.seq]
    if ahead and back_to is None:
        raise Refused(f"the replica holds {ahead[0]}, which is newer than the store's newest point {newest.id}")
    if cursor.state == "committed":
        return Decision("delta", f"the replica holds {cursor.base}", (cursor.base,))
    return Decision(
        "delta", f"a run stopped between {cursor.base or 'an empty replica'} and {', '.join(cursor.targets)}", states
    )


def hardware(
    point: RestorePoint, replica: Mapping[str, int], excluded: Sequence[str], anew: Collection[str] = ()
) -> tuple[HardwareChange, ...]:
    """What must change so that the replica has the point's disks. `replica`: source disk id -> capacity of the copy.

    A disk can not shrink: going back before a growth, it is removed and added. So is one of `anew`.
    """
    wanted = {d.disk.id: d.disk for d in protected(point, excluded)}
    changes = []
    for disk, capacity in replica.items():
        if disk not in wanted or capacity > wanted[disk].capacity or disk in anew:
            changes.append(HardwareChange(kind="remove disk", disk=disk, label="", capacity=capacity))
    for disk, source in wanted.items():
        held = replica.get(disk)
        if held is None or held > source.capacity or disk in anew:
            kind: Literal["add disk", "grow disk"] = "add disk"
        elif held < source.capacity:
            kind = "grow disk"
        else:
            continue
        changes.append(HardwareChange(kind=kind, disk=disk, label=source.label, capacity=source.capacity))
    return tuple(changes)


def protected(point: RestorePoint, excluded: Sequence[str]) -> list[PointDisk]:
    """The point's disks that go to the replica: `excluded` names labels or ids."""
    return [d for d in point.disks if d.disk.label not in excluded and d.disk.id not in excluded]


def sync_plan(
    vm: str,
    decision: Decision,
    point: RestorePoint | None,
    extents: Mapping[str, Extents],
    changes: Sequence[HardwareChange],
    cursor: Cursor | None,
    excluded: Sequence[str] = (),
) -> SyncPlan:
    """The plan in words and numbers. `extents`: what will be written (or compared) of each disk."""
    nothing = decision.mode == "nothing"
    fresh = {c.disk for c in changes if c.kind == "add disk"}
    disks = []
    for part in protected(point, excluded) if point is not None and not nothing else []:
        todo = extents[part.disk.id]
        if decision.mode == "compare" and part.disk.id not in fresh:
            mode: Literal["full", "delta", "compare", "nothing"] = "compare"
            reason = decision.reason
        elif decision.mode == "build" or part.disk.id in fresh:
            mode, reason = "full", "new disk on the replica" if decision.mode != "build" else decision.reason
        else:
            mode, reason = ("delta", decision.reason) if todo else ("nothing", "no block changed")
        disks.append(
            DiskPlan(
                disk=part.disk.id, label=part.disk.label, mode=mode, reason=reason, bytes=todo.total, ranges=len(todo)
            )
        )
    return SyncPlan(
        vm=vm,
        point=point.id if point else None,
        base=cursor.base if cursor else None,
        targets=cursor.targets if cursor else (),
        nothing_new=nothing,
        reason=decision.reason,
        build_replica=decision.mode == "build",
        disks=tuple(disks),
        hardware=tuple(changes) if not nothing else (),
    )


def in_full(made: SyncPlan, *, synced: bool) -> tuple[int, int]:
    """Bytes that are brought over in full for the first time, and again. `synced`: has this pair ever been?"""
    again = sum(disk.bytes for disk in made.disks if disk.mode == "compare" or (made.build_replica and synced))
    every = sum(disk.bytes for disk in made.disks if disk.mode in ("full", "compare"))
    return (every - again, again) if synced else (every, 0)


# --- backup -----------------------------------------------------------------------------------------------------


def tree_fingerprint(snapshots: Sequence[SnapshotNode]) -> str:
    """The source's snapshots that are not ours, as a text to compare."""
    return ",".join(sorted(s.moref for s in snapshots if not s.name.startswith("understudy/")))


def distrust(
    parent: RestorePoint, before: PointDisk, now: Disk, host_build: str, hardware: str, tree: str, restored: str = ""
) -> str | None:
    """Why change tracking's answer since `parent` can not be trusted for this disk; None when nothing is unusual."""
    if parent.restored != restored:
        return "the VM was restored from a backup since the parent point, past its change tracking"
    if not before.disk.change_id:
        return "the parent point has no change id for this disk"
    if not now.change_id:
        return "change tracking gave no change id for this snapshot"
    if before.disk.change_id.partition("/")[0] != now.change_id.partition("/")[0]:
        return "change tracking was reset since the parent point"
    if before.disk.capacity != now.capacity:
        return f"the disk's size changed from {before.disk.capacity} to {now.capacity} bytes"
    if before.disk.file != now.file:
        return f"the disk's file moved from {before.disk.file} to {now.file}"
    if parent.config.hardware_version != hardware:
        return f"the virtual hardware changed from {parent.config.hardware_version} to {hardware}"
    if parent.host_build != host_build:
        return f"the host's build changed from {parent.host_build or '(unknown)'} to {host_build or '(unknown)'}"
    if parent.tree != tree:
        return "somebody's snapshots of the VM were made, removed or reverted since the parent point"
    return None


def exact(answer: Extents, size: int) -> Extents:
    """What of a list of changes is known to the granule, so that it need not be compared: ranges below vSphere's grain.

    vSphere's own answers have none, but for what the disk's end cuts off.
    """
    fine = (answer.lengths < CBT_GRAIN) & (answer.offsets + answer.lengths < size)
    return Extents.from_arrays(answer.offsets[fine], answer.lengths[fine])


def sample(answer: Extents, size: int, share: float, seed: str) -> Extents:
    """Blocks outside change tracking's answer that are compared all the same.

    A miss that touched k of the n blocks outside is found with probability 1 - (1 - k/n)^s for s sampled blocks:
    with s = 1024, 90 % for 0.23 % wrong blocks. Another seed each run, so that a lasting miss is found in the end.
    """
    outside = answer.align(CBT_GRAIN, size).complement(size)
    blocks = -(-outside.total // CBT_GRAIN)
    count = min(blocks, SAMPLE_MOST, max(SAMPLE_LEAST, round(blocks * share)))
    if share == 0 or count == 0:
        return EMPTY
    picks = sorted(random.Random(seed).sample(range(blocks), count))
    chosen, passed, ranges = [], 0, iter(outside)
    offset, length = next(ranges)
    for pick in picks:
        while pick * CBT_GRAIN >= passed + length:
            passed += length
            offset, length = next(ranges)
        start = offset + pick * CBT_GRAIN - passed
        chosen.append((start, min(CBT_GRAIN, size - start)))
    return Extents.of(chosen)
