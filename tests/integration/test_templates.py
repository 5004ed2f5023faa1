"""Templates: backed up without a snapshot, replicated as VMs, restored as templates. Judged byte for byte."""

from __future__ import annotations

import pytest
from pyVmomi import vim, vmodl

from tests.integration.test_restore import assert_holds, assert_nothing_of_ours, of, off, restored
from tests.integration.world import MIB, World
from workers import backup, dispatch
from workers.errors import BadInput, Refused
from workers.models import RunKind, RunState


def make(world: World, name: str, *sizes: int) -> None:
    world.make_vm(name, *sizes, powered_on=False)
    world.scribble(name, 1)
    world.vm(name).MarkAsTemplate()
    world.discover()


def as_vm(world: World, name: str) -> None:
    pools = world.source.read_all({vim.ResourcePool: ("name",)})
    world.vm(name).MarkAsVirtualMachine(pool=pools[0].ref)


def change(world: World, name: str, seed: int) -> None:
    """As people do: a VM is made of it, is run, and becomes a template again."""
    as_vm(world, name)
    world.source.wait(world.vm(name).PowerOnVM_Task())
    world.scribble(name, seed)
    off(world, name)
    world.vm(name).MarkAsTemplate()


def test_what_vsphere_refuses_of_templates(world: World) -> None:
    make(world, "refusing", 4 * MIB)
    vm = world.vm("refusing")
    with pytest.raises(vmodl.fault.NotSupported):
        world.source.wait(vm.CreateSnapshot_Task(name="x", description="", memory=False, quiesce=False))
    with pytest.raises(vim.fault.InvalidState):
        world.source.wait(vm.PowerOnVM_Task())
    with pytest.raises(vmodl.fault.NotSupported):
        world.source.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=1024)))


def test_backed_up_replicated_as_a_vm_and_restored_as_a_template(world: World) -> None:
    make(world, "golden", 8 * MIB, 5 * MIB)
    assert [m.vm.template for m in dispatch.find(world.here, "golden")] == [True], "a group covers it like a VM"
    first = world.backup("golden")
    assert first.point is not None
    world.assert_point_is_readable("golden", first.point)
    found = world.store.point(world.state("golden").identity.instance_uuid, first.point)
    assert found.config.template and found.consistency == "powered-off"

    again = world.backup("golden")
    assert again.outcome == RunState.NOTHING_NEW and "has not changed" in again.reason
    assert world.store.runs() == [], "prune waits for nobody"

    change(world, "golden", 2)
    second = str(world.backup("golden").point)
    world.assert_point_is_readable("golden", second)
    disk = world.store.point(found.vm.instance_uuid, second).disks[0]
    assert disk.mode == "compare" and "template" in disk.reason and disk.changed < disk.read

    report = world.sync("golden")
    world.assert_replica_is("golden", second)
    replica = world.state(world.pair("golden").replica_name, "dr")
    assert not replica.config.template
    assert any("its replica is a VM" in reason for reason in world.catalogue.run(report.run).reasons)

    restored(world, "golden", to="golden-old", point=first.point)
    made = world.state("golden-old")
    assert made.config.template
    assert_holds(world, made, "prod", of(world, first.point))
    assert_nothing_of_ours(made)
    restored(world, "golden", to="golden-vm", target="recovery", as_vm=True, power_on=True)
    made = world.state("golden-vm", "dr")
    assert (made.config.template, made.power) == (False, "poweredOn")
    assert_holds(world, made, "dr", of(world, second))
    with pytest.raises(BadInput, match="--as-vm"):
        restored(world, "golden", to="golden-x", power_on=True)

    change(world, "golden", 3)
    restored(world, "golden", over_original=True, point=first.point)
    state = world.state("golden")
    assert state.config.template
    assert_holds(world, state, "prod", of(world, first.point))
    undo = [p for p in world.store.points(found.vm.instance_uuid) if p.id not in (first.point, second)]
    world.held[undo[0].id] = {key: bytes(data) for key, data in world.log["golden"].items()}
    world.assert_point_is_readable("golden", undo[0].id)


@pytest.mark.parametrize(
    "becomes", ["vm", *(pytest.param(other, marks=pytest.mark.slow) for other in ("changed", "running"))]
)
def test_a_template_that_changes_while_it_is_read(world: World, becomes: str) -> None:
    """Guarded before and after: a run never mixes two states, whoever changes the template in between."""
    name = f"moving-{becomes}"
    make(world, name, 8 * MIB, 8 * MIB)
    world.backup(name)
    change(world, name, 2)
    run = world.request_backup(name)
    world.killed_at(run, "checkpoint.after")
    change(world, name, 3)
    if becomes != "changed":
        as_vm(world, name)
    if becomes == "running":
        world.source.wait(world.vm(name).PowerOnVM_Task())
    report = backup.run(world.here, run.id)
    world.keep(name, report)
    assert report.point is not None
    world.assert_point_is_readable(name, report.point)
    assert any("started again" in reason for reason in world.catalogue.run(run.id).reasons)
    assert world.store.point(world.state(name).identity.instance_uuid, report.point).seq == 2


def test_changed_at_the_very_end_is_noticed_at_the_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    make(world, "late", 4 * MIB)
    world.backup("late")
    change(world, "late", 2)
    real, times = backup.Chain.commit, []

    def commit(chain: backup.Chain) -> object:
        if not times:
            change(world, "late", 3)
        times.append(1)
        return real(chain)

    monkeypatch.setattr(backup.Chain, "commit", commit)  # only that something happens before it
    report = world.backup("late")
    assert len(times) == 2 and report.point is not None
    world.assert_point_is_readable("late", report.point)


@pytest.mark.slow
def test_a_vm_that_becomes_a_template_in_the_middle_of_its_backup(world: World) -> None:
    world.make_vm("stiff", 8 * MIB)
    world.scribble("stiff", 1)
    world.backup("stiff")
    world.scribble("stiff", 2)
    run = world.request_backup("stiff")
    world.killed_at(run, "checkpoint.after")
    off(world, "stiff")
    world.scribble("stiff", 3)
    world.vm("stiff").MarkAsTemplate()
    report = backup.run(world.here, run.id)
    world.keep("stiff", report)
    world.assert_point_is_readable("stiff", str(report.point))
    assert world.state("stiff").snapshots == ()


def test_a_template_with_somebodys_snapshot_is_a_sentence(world: World) -> None:
    world.make_vm("odd-template", 4 * MIB, powered_on=False)
    vm = world.vm("odd-template")
    world.source.wait(vm.CreateSnapshot_Task(name="somebody's", description="", memory=False, quiesce=False))
    vm.MarkAsTemplate()
    with pytest.raises(Refused, match="make a VM of it, remove the snapshot"):
        world.backup("odd-template")
    assert world.catalogue.runs(vm="odd-template", kind=RunKind.BACKUP)[0].state is RunState.FAILED
    assert world.store.runs() == []
