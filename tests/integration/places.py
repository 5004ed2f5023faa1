"""A world with other recovery targets, groups and overrides than the one it is made with, and judges of any pair."""

from __future__ import annotations

import random
from typing import Any

from pyVmomi import vim

from tests.integration.world import MIB, World, first_difference, flat
from workers import dispatch, replicate
from workers.models import Disk, Pair, RunReport, SyncPlan, Trigger, VmState
from workers.run import Here
from workers.settings import Group, RecoveryTarget
from workers.vsphere import building, inventory
from workers.vsphere.session import Session, connect


def realm(world: World, targets: dict[str, Any] | None = None, **group: Any) -> Here:
    """The realm with these recovery targets besides `recovery`, and these keys of its one group."""
    made = {name: RecoveryTarget.model_validate(given) for name, given in (targets or {}).items()}
    given = {**world.settings.groups["all"].model_dump(by_alias=True), **group}
    changes = {
        "targets": {**world.settings.targets, **made},
        "groups": {"all": Group.model_validate(given)},
    }
    return Here(world.settings.model_validate({**world.settings.model_dump(by_alias=True), **changes}), world.catalogue)


def pairs(here: Here, name: str) -> dict[str, Pair]:
    """Recovery target -> pair."""
    found = [dispatch.pair_of(here, member) for member in dispatch.find(here, name)]
    return {pair.recovery_target: pair for pair in found if pair is not None}


def pair(here: Here, name: str) -> Pair:
    (found,) = pairs(here, name).values()
    return found


def sync(here: Here, of: Pair, *, discard: bool = False) -> RunReport:
    return replicate.run(here, dispatch.request_sync(here, of, Trigger.AD_HOC, discard=discard)[0].id)


def plan(here: Here, name: str) -> SyncPlan:
    return replicate.preview(here, pair(here, name))


def reasons(here: Here, report: RunReport) -> str:
    return "\n".join(here.catalogue.run(report.run).reasons)


def session(here: Here, site: str) -> Session:
    return connect(site, here.settings.sites[site])


def replica_of(here: Here, of: Pair) -> VmState:
    known = here.catalogue.pair(of.id)
    s = session(here, known.site)
    found = inventory.find_uuid(s, known.replica or "")
    assert found is not None, f"{known.replica_name} is not there"
    return inventory.vm_state(s, found.identity.moref)


def disks_of(here: Here, of: Pair) -> dict[str, Disk]:
    """Source disk id -> the replica's disk."""
    return building.disk_map(replica_of(here, of))


def assert_holds(world: World, here: Here, of: Pair, point: str | None) -> None:
    """Byte for byte what the log says the source held at this point, on every disk that is replicated."""
    vcenter = {"prod": world.prod, "dr": world.dr}[of.site]
    assert point is not None
    for key, disk in disks_of(here, of).items():
        found, wanted = flat(vcenter, disk.file).read_bytes(), world.held[point][key]
        assert len(found) == len(wanted), disk.label
        assert first_difference(found, wanted) is None, (disk.label, first_difference(found, wanted))


# --- what is there already ------------------------------------------------------------------------------------------


def make_there(world: World, name: str, *sizes: int, content: list[bytes] | None = None) -> VmState:
    """A VM at the recovery site that has nothing to do with us, off, with random bytes or `content` on its disks."""
    s = world.target
    centers = s.read_all({vim.Datacenter: ("vmFolder",), vim.ResourcePool: ("name",)})
    folder = next(f.values["vmFolder"] for f in centers if isinstance(f.ref, vim.Datacenter))
    pool = next(f.ref for f in centers if isinstance(f.ref, vim.ResourcePool))
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    spec = vim.vm.ConfigSpec(
        name=name,
        guestId="otherGuest64",
        numCPUs=1,
        memoryMB=64,
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=[
            vim.vm.device.VirtualDeviceSpec(operation="add", device=controller),
            *(World._new_disk(-1, number, size, -10 - number) for number, size in enumerate(sizes)),
        ],
    )
    s.wait(folder.CreateVM_Task(spec, pool))
    state = world.state(name, "dr")
    for number, disk in enumerate(sorted(state.config.disks, key=lambda d: d.key)):
        data = content[number] if content is not None else random.Random(number).randbytes(disk.capacity)
        flat(world.dr, disk.file).write_bytes(data)
    return world.state(name, "dr")


def seed(world: World, folder: str, **disks: bytes) -> None:
    """Disks that somebody copied to ds1 of the recovery site: name -> content."""
    path = world.dr.datastores / "ds1" / folder
    path.mkdir(parents=True)
    for number, (name, data) in enumerate(disks.items()):
        (path / f"{name}-flat.vmdk").write_bytes(data)
        (path / f"{name}.vmdk").write_text(
            '# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID=1234abcd\nparentCID=ffffffff\n'
            f'createType="vmfs"\n\n# Extent description\nRW {len(data) // 512} VMFS "{name}-flat.vmdk"\n\n'
            '# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\nddb.thinProvisioned = "1"\n'
            f'ddb.uuid = "60 00 C2 9{number} 11 22 33 44-55 66 77 88 99 aa bb cc"\n'
        )


def held(world: World, name: str, point: str | None) -> list[bytes]:
    """What the source's disks held at a point, in their order."""
    assert point is not None
    return [world.held[point][disk.id] for disk in world.disks(name)]


def changed(data: bytes, *offsets: int) -> bytes:
    """The same with another granule at each offset."""
    found = bytearray(data)
    for offset in offsets:
        found[offset : offset + 4096] = bytes(b ^ 0xFF for b in found[offset : offset + 4096])
    return bytes(found)


SMALL = 8 * MIB
