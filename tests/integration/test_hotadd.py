"""Disks that are attached to the worker's own VM while a backup or a sync has them. Judged byte for byte.

The attaching is the simulator's; that a device appears is the test's doing: a link, named as udev names a disk, to the
disk's flat file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.disks.standin import alone
from tests.integration.world import MIB, World, flat
from workers import carried, faults, replicate
from workers.disks import hotadd as disks
from workers.errors import ConfigError
from workers.models import Disk, RunState
from workers.vsphere import hotadd


@pytest.fixture
def world(make_world: Callable[..., World], tmp_path: Path) -> Iterator[World]:
    (tmp_path / "by-id").mkdir()
    with alone():
        yield make_world()


def by_hotadd(world: World, site: str, worker: str) -> World:
    """From now on the site's disks go by the VM that the worker is said to be."""
    settings = world.settings.sites[site]
    own = settings.hotadd.model_copy(update={"vm": worker, "devices": world.folder / "by-id"})
    changed = settings.model_copy(update={"carriers": ("hotadd",), "hotadd": own})
    world.settings = world.settings.model_copy(update={"sites": {**world.settings.sites, site: changed}})
    world.here = replace(world.here, settings=world.settings)
    return world


def plug(world: World, disk: Disk, file: Path) -> None:
    """The device that would appear when this disk is attached."""
    link = world.folder / "by-id" / f"wwn-0x{disk.id.replace('-', '').lower()}"
    link.symlink_to(file)


def modes(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is attached to the worker from now on: mode and file."""
    seen = []
    before = hotadd.OwnVm._reconfigure

    def told(self: hotadd.OwnVm, doing: str, change: vim.vm.device.VirtualDeviceSpec) -> None:
        assert change.fileOperation is None, "it would make or delete the customer's disk"
        seen.append(f"{doing} {change.device.backing.diskMode}")
        before(self, doing, change)

    monkeypatch.setattr(hotadd.OwnVm, "_reconfigure", told)  # listened to; vCenter is asked as ever
    return seen


def test_a_backup_attaches_the_frozen_disks_and_takes_them_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_vm("worker-prod", MIB)
    world.make_vm("hot-01", 8 * MIB, 4 * MIB)
    world.scribble("hot-01", 1)
    by_hotadd(world, "prod", world.state("worker-prod").identity.bios_uuid)
    for disk in world.disks("hot-01"):
        plug(world, disk, flat(world.prod, disk.file))
    seen = modes(world, monkeypatch)
    report = world.backup("hot-01")
    assert report.point is not None
    world.assert_point_is_readable("hot-01", report.point)
    assert "Hard disk 1, Hard disk 2 go by hotadd, which its site prefers" in world.catalogue.run(report.run).reasons
    assert set(seen) == {"attach independent_nonpersistent", "detach independent_nonpersistent"}
    assert len(seen) == 2 * seen.count("attach independent_nonpersistent")
    assert len(world.disks("worker-prod")) == 1 and not world.state("hot-01").snapshots
    assert all(flat(world.prod, disk.file).exists() for disk in world.disks("hot-01"))


def test_a_sync_writes_the_replicas_disk_as_a_device(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_vm("hot-02", 8 * MIB)
    world.scribble("hot-02", 1)
    world.backup("hot-02")
    world.sync("hot-02")
    made = world.state(world.pair("hot-02").replica_name, "dr").config.disks
    for disk in made:
        plug(world, disk, flat(world.dr, disk.parent or disk.file))
    by_hotadd(world, "dr", worker_at_dr(world))
    seen = modes(world, monkeypatch)
    world.scribble("hot-02", 2)
    point = world.backup("hot-02").point
    assert point is not None
    report = replicate.run(world.here, world.request_sync("hot-02").id)
    assert report.outcome == "succeeded"
    world.assert_replica_is("hot-02", point)
    assert "attach independent_persistent" in seen and "attach independent_nonpersistent" not in seen
    assert len(world.state("worker-dr", "dr").config.disks) == 1


def test_hole_11_one_workers_vm_writes_a_disk_and_the_host_keeps_the_others_out(world: World) -> None:
    """Locks of files and devices end at their machine; the attachment does not."""
    world.make_vm("hot-05", 8 * MIB)
    world.scribble("hot-05", 1)
    first = world.backup("hot-05").point
    world.sync("hot-05")
    assert first is not None
    (disk,) = world.state(world.pair("hot-05").replica_name, "dr").config.disks
    file = disk.parent or disk.file
    plug(world, disk, flat(world.dr, file))
    session = world.target
    elsewhere = hotadd.OwnVm(session, hotadd.own_vm(session, worker_at_dr(world, "worker-far")), file)
    by_hotadd(world, "dr", worker_at_dr(world, "worker-near"))
    world.scribble("hot-05", 2)
    point = world.backup("hot-05").point
    run = world.request_sync("hot-05")
    elsewhere_has_it = False

    def stopped_within_a_write(label: str) -> None:
        """A worker on another machine has the disk from when the replica's seal is gone."""
        nonlocal elsewhere_has_it
        if label == "slice.locking" and not elsewhere_has_it:
            elsewhere.attach(write=True)
            elsewhere_has_it = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "at", stopped_within_a_write)
        report = replicate.run(world.here, run.id)
    assert elsewhere_has_it and report.outcome == "waiting"
    assert "in use by a host or another worker's VM" in str(world.catalogue.run(run.id).error)
    assert point is not None and flat(world.dr, file).read_bytes() == next(iter(world.held[first].values()))
    elsewhere.detach()
    world.expire_lease(run)
    assert replicate.run(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is("hot-05", point)


def worker_at_dr(world: World, name: str = "worker-dr") -> str:
    s = world.target
    pools = s.read_all({vim.Datacenter: ("vmFolder",), vim.ResourcePool: ("name",)})
    folder = next(each.values["vmFolder"] for each in pools if isinstance(each.ref, vim.Datacenter))
    pool = next(each.ref for each in pools if isinstance(each.ref, vim.ResourcePool))
    scsi = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    spec = vim.vm.ConfigSpec(
        name=name,
        guestId="debian10_64Guest",
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=[
            vim.vm.device.VirtualDeviceSpec(operation="add", device=scsi),
            World._new_disk(-1, 0, MIB, -10),
        ],
    )
    s.wait(s.wait(folder.CreateVM_Task(spec, pool)).PowerOnVM_Task())
    return world.state(name, "dr").identity.bios_uuid


def test_what_a_dead_process_left_attached_is_taken_off(world: World) -> None:
    world.make_vm("worker-left", MIB)
    world.make_vm("hot-03", 4 * MIB)
    by_hotadd(world, "prod", world.state("worker-left").identity.bios_uuid)
    (disk,) = world.disks("hot-03")
    session = world.source
    moref = carried.own_vm(session)
    hotadd.OwnVm(session, moref, disk.file).attach(write=False)
    lock = disks._lock("prod", disk.file, 0)
    assert lock is not None and carried.detach_left_behind(session) == [], "its process lives"
    os.close(lock)  # as the kernel does when the process ends
    (said,) = carried.detach_left_behind(session)
    assert disk.file in said and len(world.disks("worker-left")) == 1
    assert carried.detach_left_behind(session) == []


def test_a_worker_that_is_no_vm_of_the_vcenter_says_so(world: World) -> None:
    world.make_vm("hot-04", 4 * MIB)
    by_hotadd(world, "prod", "00000000-1111-2222-3333-444444444444")
    with pytest.raises(ConfigError, match="no VM with the BIOS UUID"):
        world.backup("hot-04")
    by_hotadd(world, "prod", "not-a-uuid")
    with pytest.raises(ConfigError, match="is no UUID"):
        world.backup("hot-04")
    run = world.catalogue.runs(limit=1)[0]
    assert run.state is RunState.FAILED
