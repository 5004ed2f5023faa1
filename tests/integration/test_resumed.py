"""A run goes on in a later message, and what it had planned for is not there any more. Judged byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyVmomi import vim

from tests.integration.world import MIB, World, flat
from workers import backup, faults, replicate, settings
from workers.errors import Touched
from workers.models import RunState
from workers.run import Here, Live
from workers.settings import VmOverride


def boot_and_write(world: World, replica: str, offset: int, data: bytes) -> None:
    """Somebody powers the replica on by hand, the guest writes, it is powered off."""
    vm = world.vm(replica, "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.dr.control(guestWrite={"VM": replica, "Disk": 0, "Offset": offset, "Hex": data.hex()})
    world.target.wait(vm.PowerOffVM_Task())


def at(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], None]) -> None:
    """Let something happen at a step of this process, once."""
    waiting = [act]

    def passed(label: str) -> None:
        if label == step and waiting:
            waiting.pop()()

    monkeypatch.setattr(faults, "at", passed)


class Killed(BaseException):
    """Nothing in the program catches it, as nothing catches a SIGKILL."""


def lost_at(step: str, world: World, here: Here, run_id: str) -> None:
    """Do the run's work under these settings up to a step and vanish there."""

    def passed(label: str) -> None:
        if label == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "at", passed)
        with pytest.raises(Killed):
            replicate.run(here, run_id)
    world.expire_lease(world.catalogue.run(run_id))


def excluding(world: World, vm: str, *disks: str) -> Here:
    """The same realm with other disks excluded."""
    group = world.settings.groups["all"].model_copy(update={"overrides": {vm: VmOverride(excluded_disks=disks)}})
    return Here(world.settings.model_copy(update={"groups": {"all": group}}), world.catalogue)


def test_a_replica_that_is_removed_half_way_is_written_from_the_start_again(world: World) -> None:
    """The checkpoints speak of a VM that is gone."""
    world.make_vm("gone", 8 * MIB, 8 * MIB)
    world.scribble("gone", 1)
    point = world.backup("gone").point
    run = world.request_sync("gone")
    world.killed_at(run, "checkpoint.after")
    world.target.wait(world.vm(world.pair("gone").replica_name, "dr").Destroy_Task())
    replicate.run(world.here, run.id)
    world.assert_replica_is("gone", point)


def test_a_replica_that_was_removed_is_built_again(world: World) -> None:
    world.make_vm("again", 8 * MIB)
    world.scribble("again", 1)
    point = world.backup("again").point
    world.sync("again")
    world.target.wait(world.vm(world.pair("again").replica_name, "dr").Destroy_Task())
    report = world.sync("again")
    assert any("built again" in reason for reason in world.catalogue.run(report.run).reasons)
    world.assert_replica_is("again", point)
    world.scribble("again", 2)
    point = world.backup("again").point
    world.sync("again")
    world.assert_replica_is("again", point)


def test_a_store_that_was_rolled_back_half_way(world: World) -> None:
    """The point that the run goes to is gone, another one has its number: what was planned is about the first one."""
    world.make_vm("back", 16 * MIB)
    world.backup("back")
    world.sync("back")
    world.write("back", 1 * MIB, b"1" * 4096)
    lost = world.backup("back").point
    run = world.request_sync("back")
    world.killed_at(run, "slice.locked")
    uuid = world.state("back").identity.instance_uuid
    (world.store.path / "points" / uuid / f"{lost.partition('-')[0]}.json").unlink()
    world.write("back", 12 * MIB, b"2" * 4096)
    point = world.backup("back").point
    assert point != lost
    replicate.run(world.here, run.id)
    world.assert_replica_is("back", point)


def test_a_disk_that_is_included_half_way(world: World) -> None:
    world.make_vm("incl", 8 * MIB, 8 * MIB)
    world.scribble("incl", 1)
    point = world.backup("incl").point
    second = world.disks("incl")[1].id
    run = world.request_sync("incl")
    lost_at("slice.locked", world, excluding(world, "incl", second), run.id)
    replicate.run(world.here, run.id)
    world.assert_replica_is("incl", point)


def test_a_disk_that_is_excluded_half_way(world: World) -> None:
    world.make_vm("excl", 8 * MIB, 8 * MIB)
    world.scribble("excl", 1)
    point = world.backup("excl").point
    first, second = (d.id for d in world.disks("excl"))
    run = world.request_sync("excl")
    world.killed_at(run, "slice.locked")
    replicate.run(excluding(world, "excl", second), run.id)
    world.held[point].pop(second)
    world.assert_replica_is("excl", point)
    assert world.replica_bytes("excl").keys() == {first}


@pytest.mark.parametrize("step", ["pin.after", "cursor.applying", "unseal.after"])
def test_hole_7_a_replica_booted_between_the_look_and_the_first_write(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What the guest wrote is outside the plan: it must neither be committed nor be overwritten without asking."""
    name = f"h7-{step.replace('.', '-')}"
    world.make_vm(name, 16 * MIB)
    world.backup(name)
    world.sync(name)
    world.write(name, 0, b"1" * 4096)
    point = world.backup(name).point
    replica = world.pair(name).replica_name
    at(monkeypatch, step, lambda: boot_and_write(world, replica, 9 * MIB, b"guest" * 100))
    with pytest.raises(Touched):
        for _ in range(3):  # a lost compare-and-set is tried again, and then sees it
            run = world.sync(name)
            world.expire_lease(world.catalogue.run(run.run))
    assert world.cursor(name).base != point
    disk = next(iter(world.replica_disks(name).values()))
    held = flat(world.dr, disk.file).read_bytes()
    assert held[9 * MIB : 9 * MIB + 500] == b"guest" * 100
    world.sync(name, discard=True)
    world.assert_replica_is(name, point)


def test_giving_changes_up_is_not_said_of_later_ones(world: World) -> None:
    """A person gave up what had been written to the replica; then production is started on it, before the run ends."""
    world.make_vm("given", 16 * MIB)
    point = world.backup("given").point
    world.sync("given")
    replica = world.pair("given").replica_name
    boot_and_write(world, replica, 4 * MIB, b"first")
    world.write("given", 0, b"1" * 4096)
    point = world.backup("given").point
    run = world.request_sync("given", discard=True)
    world.killed_at(run, "slice.locked")
    boot_and_write(world, replica, 8 * MIB, b"production")
    with pytest.raises(Touched):
        replicate.run(world.here, run.id)
    disk = next(iter(world.replica_disks("given").values()))
    assert flat(world.dr, disk.file).read_bytes()[8 * MIB :].startswith(b"production")
    world.sync("given", discard=True)
    world.assert_replica_is("given", point)


def test_forgetting_the_slices_half_way_never_leaves_a_plan_without_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it gave its plan up: an empty plan that counts as made would commit what was never written."""
    world.make_vm("empty", 8 * MIB)
    world.backup("empty")
    world.write("empty", 0, b"1" * 4096)
    run = world.request_backup("empty")
    world.killed_at(run, "slices.planned")
    claimed = world.catalogue.claim(run.id, "me", 60)
    assert claimed is not None
    live = Live(world.here, claimed, "me")
    monkeypatch.setattr(settings, "FAULT", "slices.forgetting=fail")
    with pytest.raises(faults.InjectedFault):
        live.forget_slices()
    monkeypatch.setattr(settings, "FAULT", "")
    world.expire_lease(run)
    report = backup.run(world.here, run.id)
    world.keep("empty", report)
    world.assert_point_is_readable("empty", report.point)


def test_a_backup_whose_parent_was_lost_half_way(world: World) -> None:
    """The store was put back to an older state while a backup that builds on the newest point was under way."""
    world.make_vm("parent", 8 * MIB)
    world.backup("parent")
    world.write("parent", 1 * MIB, b"1" * 70_000)
    lost = world.backup("parent").point
    world.write("parent", 5 * MIB, b"2" * 70_000)
    run = world.request_backup("parent")
    world.killed_at(run, "slices.planned")
    uuid = world.state("parent").identity.instance_uuid
    (world.store.path / "points" / uuid / f"{lost.partition('-')[0]}.json").unlink()
    report = backup.run(world.here, run.id)
    world.keep("parent", report)
    world.assert_point_is_readable("parent", report.point)
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED


def test_a_disk_that_goes_while_it_is_looked_at_is_looked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vCenter is still at work on what a lost connection asked it for; or, as here, on what somebody else asked."""
    world.make_vm("late-hands", 2 * MIB, 2 * MIB)
    world.scribble("late-hands", 1)
    world.backup("late-hands")
    world.sync("late-hands")
    world.remove_disk("late-hands", 1)
    world.scribble("late-hands", 2)
    world.backup("late-hands")
    run = world.request_sync("late-hands")
    replica = world.vm(world.pair("late-hands").replica_name, "dr")
    disk = [d for d in replica.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)][1]
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", fileOperation="destroy", device=disk)

    def taken_off() -> None:
        for snapshot in [s.snapshot for s in replica.snapshot.rootSnapshotList]:
            world.target.wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
        world.target.wait(replica.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))

    at(monkeypatch, "cursor.applying", taken_off)
    report = replicate.run(world.here, run.id)
    assert report.outcome == "waiting" and "was taken off while it was looked at" in report.reason
    world.expire_lease(run)
    with pytest.raises(Touched, match="content ids"):
        replicate.run(world.here, run.id)
