"""Changed block tracking: which areas of a disk changed since a change id; in doubt an error that means compare."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from workers import faults
from workers.errors import ChangeTrackingUnusable, SnapshotLost
from workers.extents import Extents, Gathering
from workers.models import Disk, VmState
from workers.vsphere import snapshots
from workers.vsphere.inventory import vm_state
from workers.vsphere.refusals import as_error, refused_to, words
from workers.vsphere.session import WAIT, Session

#: The change id of "since the beginning": all that was ever allocated.
EVERYTHING = "*"

_THROW_AWAY = "understudy: enable change tracking"


def changed_areas(
    s: Session, vm_moref: str, snapshot_moref: str, disk: Disk, change_id: str | None = EVERYTHING
) -> Extents:
    """What changed between `change_id` and the snapshot; `disk` is the disk as the snapshot has it.

    For EVERYTHING the answer is a hint of what is allocated, and the whole disk where vCenter has none: only a reader
    that knows better from the storage should go by it. Otherwise: a superset of what changed, or
    `ChangeTrackingUnusable` with the reason. `SnapshotLost` when the snapshot is gone.
    """
    if change_id == EVERYTHING:
        try:
            return _all_pages(s, vm_moref, snapshot_moref, disk, EVERYTHING)
        except ChangeTrackingUnusable:
            return Extents.whole(disk.capacity)
    if not change_id:
        raise ChangeTrackingUnusable(f"{disk.label}: there is no change id to start from")
    if not disk.change_id:
        raise ChangeTrackingUnusable(f"{disk.label}: change tracking was not in effect when the snapshot was taken")
    if _generation(change_id) != _generation(disk.change_id):
        raise ChangeTrackingUnusable(f"{disk.label}: change tracking was reset since the change id {change_id}")
    return _all_pages(s, vm_moref, snapshot_moref, disk, change_id)


def _generation(change_id: str) -> str:
    """'52 de c0 .../4' counts within a UUID; another UUID means that tracking began anew."""
    return change_id.rpartition("/")[0]


def _all_pages(s: Session, vm_moref: str, snapshot_moref: str, disk: Disk, change_id: str) -> Extents:
    vm, snapshot = s.vm(vm_moref), s.object(vim.vm.Snapshot, snapshot_moref)
    found = Gathering()
    offset = 0
    # Asking at the very end is an InvalidArgument: the loop ends when the answers reach the capacity.
    while offset < disk.capacity:
        try:
            page = vm.QueryChangedDiskAreas(snapshot, disk.key, offset, change_id)
        except vmodl.fault.ManagedObjectNotFound as err:
            raise SnapshotLost(f"the snapshot {snapshot_moref} of the VM {vm_moref} is gone ({s})") from err
        except (vim.fault.NoPermission, vmodl.fault.HostCommunication) as err:
            raise as_error(err, f"say what changed on {disk.label} ({s})") from err
        except vmodl.MethodFault as err:
            raise ChangeTrackingUnusable(f"{disk.label}: vCenter does not say what changed: {words(err)}") from err
        offset = _take(page, offset, disk, found)
    return found.extents()


def _take(page: Any, asked: int, disk: Disk, found: Gathering) -> int:
    """Add a page's areas; where the next page begins. An answer that contradicts itself cannot be trusted at all."""

    def unusable(what: str) -> ChangeTrackingUnusable:
        return ChangeTrackingUnusable(f"{disk.label}: the answer about what changed contradicts itself: {what}")

    end = page.startOffset + page.length
    if page.startOffset != asked:
        raise unusable(f"asked from {asked}, answered from {page.startOffset}")
    if page.length <= 0:
        raise unusable(f"it does not advance beyond {asked}")
    if end > disk.capacity:
        raise unusable(f"it reaches to {end}, beyond the capacity of {disk.capacity}")
    floor = asked
    for area in page.changedArea or ():
        if area.length <= 0 or area.start < floor or area.start + area.length > end:
            raise unusable(f"an area {area.start}+{area.length} is out of order or out of range")
        floor = area.start + area.length
        found.add(area.start, area.length)
    return int(end)


def enable(s: Session, state: VmState, *, wait: float = WAIT) -> bool:
    """Switch change tracking on; True when it was off. Takes effect with the snapshot cycle that is made here.

    `ChangeTrackingUnusable` says why it cannot be: templates, snapshots (vSphere supports it only without).
    """
    moref, name = state.identity.moref, state.identity.name
    tidy(s, moref, wait=wait)
    state = vm_state(s, moref)
    if state.change_tracking:
        return False
    if state.config.template:
        raise ChangeTrackingUnusable(f"{name} is a template: its disks do not change")
    if state.snapshots:
        raise ChangeTrackingUnusable(
            f"{name} has snapshots ({', '.join(node.name for node in state.snapshots)}): change tracking can be "
            "switched on when they are removed"
        )
    spec = vim.vm.ConfigSpec(changeVersion=state.change_version, changeTrackingEnabled=True)
    with refused_to(f"switch on change tracking of {name} ({s})"):
        s.wait(s.vm(moref).ReconfigVM_Task(spec), wait)
    faults.at("cbt-enabled")
    taken, _, _ = snapshots.create(s, moref, _THROW_AWAY, "removed at once", quiesce=False, wait=wait)
    snapshots.remove(s, moref, taken, wait=wait)
    return True


def tidy(s: Session, moref: str, *, wait: float = WAIT) -> None:
    """Remove the throw-away snapshot of a worker that died between the two halves of `enable`'s cycle."""
    with refused_to(f"read the VM {moref} ({s})"):
        s.settle(s.vm(moref), wait)  # it may be still on the way
        found = snapshots.tree(s, moref)
    for node in found:
        if node.name == _THROW_AWAY:
            snapshots.remove(s, moref, node.moref, wait=wait)
