"""A replica that is not built from nothing: a VM that is there becomes it, or disks that somebody copied there do.

Looks, and writes nothing. What is found wrong here is said before the first byte of anybody's data is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from workers import plan
from workers.destination import Destination, match_disks, match_seeds
from workers.disks.file import Descriptor, check_unowned, datastore_file
from workers.errors import Foreign, NotFound, Refused
from workers.members import groups_of
from workers.membership import may_cover
from workers.models import Disk, Pair, RestorePoint, VmState
from workers.run import Here
from workers.vsphere import inventory, replica
from workers.vsphere.building import MARK
from workers.vsphere.session import Session

#: files beside a disk's descriptor that are named like one
_NO_DESCRIPTORS = ("-flat.vmdk", "-ctk.vmdk", "-delta.vmdk", "-sesparse.vmdk")
#: a descriptor is text of some hundred bytes; what is larger is data
_DESCRIPTOR_MOST = 1 << 16


class Beginning(NamedTuple):
    #: for people, and for the cursor: why every block is compared
    reason: str
    #: the VM that becomes the replica; None = one is built around `seeds`
    vm: VmState | None
    #: source disk id -> the disk of that VM
    copies: dict[str, Disk]
    #: source disk id -> "[datastore] folder/disk.vmdk"
    seeds: dict[str, str]


def find_existing(s: Session, existing: str, vm: str) -> VmState:
    """The VM that `existing` of this VM's override names, by instance UUID or name."""
    found = inventory.find_uuid(s, existing) if _is_uuid(existing) else None
    try:
        found = found or inventory.find_vm(s, existing)
    except NotFound as err:
        raise NotFound(
            f"{err}. overrides.{vm}.existing names it as the VM that becomes the replica; nothing was written. "
            "Correct the name, or remove `existing` to have a replica built"
        ) from err
    return inventory.vm_state(s, found.identity.moref)


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4


def of_existing(here: Here, pair: Pair, place: Destination, vm: VmState, goal: RestorePoint) -> Beginning:
    """Raises `Refused` or `Foreign` when this VM can not become the replica."""
    _may_become(here, pair, vm)
    wanted = [part.disk for part in plan.protected(goal, place.excluded_disks)]
    copies = match_disks(wanted, vm.config.disks, place.disks, where=vm.identity.name, key=f"overrides.{pair.vm}")
    allowed = "" if place.overwrite_existing else " (refused until overwrite_existing = true says that this is meant)"
    reason = (
        f"the VM {vm.identity.name} becomes the replica: each block is compared with {goal.id}, what it holds now is "
        f"lost{allowed}"
    )
    return Beginning(reason, vm, copies, {})


def consent(pair: Pair, place: Destination, vm: VmState) -> None:
    """Raise `Refused` unless the configuration says that the VM's content may go."""
    if not place.overwrite_existing:
        raise Refused(
            f"{vm.identity.name} would become the replica of {pair.vm} and lose what it holds now; nothing was "
            f"written. If that is meant, set overwrite_existing = true in overrides.{pair.vm}"
        )


def _policies(here: Here, site: str, uuid: str, name: str) -> list[str]:
    """The groups that a VM is in; of one that no inventory has yet, those that may cover it by its name."""
    if any(vm.identity.site == site for vm in here.catalogue.sightings(uuid)):
        return list(groups_of(here, uuid))
    return [key for key, group in here.settings.groups.items() if group.source == site and may_cover(group.rule, name)]


def _may_become(here: Here, pair: Pair, vm: VmState) -> None:
    name, who = vm.identity.name, vm.identity.instance_uuid
    pairs = here.catalogue.pairs()
    if who == pair.source:
        raise Refused(f"{name} is {pair.vm} itself, and can not become its own replica; name another VM in `existing`")
    if MARK in vm.notes or any(other.replica == who for other in pairs if other.id != pair.id):
        raise Foreign(f"{name} is the replica of another pair already; nothing was written. Name another VM")
    groups = _policies(here, pair.site, who, name)
    if groups or any(other.source == who for other in pairs):
        raise Refused(
            f"{name} is itself under a policy ({', '.join(groups) or 'it is the source of a pair'}): it counts as "
            "production, and nothing was written. Take it out of that group first, or name another VM"
        )
    if vm.config.template:
        raise Refused(f"{name} is a template; nothing was written. Convert it to a VM first, or name another VM")
    if vm.power != "poweredOff":
        running = "running" if vm.power == "poweredOn" else "suspended"
        raise Refused(f"{name} is {running}; nothing was written. Only a VM that is powered off can become a replica")
    if vm.snapshots or vm.consolidation_needed:
        what = f"has the snapshot {vm.snapshots[0].name!r}" if vm.snapshots else "needs its disks consolidated"
        raise Refused(f"{name} {what}; nothing was written. Remove its snapshots (the data stays), then sync again")
    strange = [disk.unprotected for disk in vm.config.disks if disk.unprotected is not None]
    if strange:
        raise Refused(f"{name} can not become a replica: {strange[0]}; nothing was written")
    if not replica.content_evidence(vm):
        raise Refused(
            f"vCenter gives no content ids for the disks of {name}, so that a change by somebody else could not be "
            "noticed; nothing was written. Only VMDK files on NFS or VMFS can become a replica's disks"
        )


def check_files(mounts: Mapping[str, Path], disks: Sequence[Disk]) -> None:
    """That each disk is one flat file which this worker can write and no host has open, before anything is."""
    for disk in disks:
        path = datastore_file(mounts, disk.file)
        Descriptor(path)
        check_unowned(path)


def of_seed(s: Session, mounts: Mapping[str, Path], pair: Pair, place: Destination, goal: RestorePoint) -> Beginning:
    """Raises a sentence when a seed is missing, does not fit, or is used by a VM: never a silent full copy."""
    assert place.seed is not None
    key = f"overrides.{pair.vm}"
    folder = seed_folder(mounts, place.seed, pair.vm)
    start = place.seed.rstrip("/")
    files = {f"{start}/{path.name}": _capacity(path) for path in sorted(folder.glob("*.vmdk")) if _descriptor(path)}
    wanted = [part.disk for part in plan.protected(goal, place.excluded_disks)]
    seeds = match_seeds(wanted, files, place.disks, folder=place.seed, key=key)
    users = inventory.users_of(s, seeds.values())
    if users:
        file, name = next(iter(users.items()))
        raise Refused(
            f"the seed {file} is a disk of the VM {name}; nothing was written. Detach it there (keep its files), or "
            "copy it"
        )
    reason = f"seed: the replica is built around the disks in {place.seed}, each block is compared with {goal.id}"
    return Beginning(reason, None, {}, seeds)


def seed_folder(mounts: Mapping[str, Path], seed: str, vm: str) -> Path:
    folder = datastore_file(mounts, seed)
    if not folder.is_dir():
        raise NotFound(
            f"the seed {seed} is not there ({folder} is no folder); nothing was written. Copy the disks there, mount "
            f"the datastore, or remove overrides.{vm}.seed to have every disk sent in full"
        )
    return folder


def _descriptor(path: Path) -> bool:
    return not path.name.endswith(_NO_DESCRIPTORS) and path.stat().st_size < _DESCRIPTOR_MOST


def _capacity(path: Path) -> int:
    found = Descriptor(path)
    if found.has_parent:
        raise Refused(f"the seed {path} stands on a snapshot; nothing was written. Copy the whole disk, not its delta")
    if not found.flat.exists() or found.flat.stat().st_size < found.size:
        raise Refused(
            f"the seed {path} is not complete: {found.flat.name} has not the {found.size} bytes that its descriptor "
            "names; nothing was written. Copy it again"
        )
    check_unowned(path)
    return found.size
