from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.vsphere.conftest import Simulator
from workers.errors import NoSpace, NotFound, Refused, TaskStillRunning, Transient, VcenterUnreachable
from workers.models import SnapshotNode
from workers.vsphere import inventory, power, snapshots
from workers.vsphere.session import Session


def test_of_a_vm_that_is_off(session: Session, make_vm: Any) -> None:
    moref = make_vm("off")
    taken = snapshots.create(session, moref, "s", "a description", quiesce=True)
    assert (taken.consistency, taken.notes) == ("powered-off", ())
    (node,) = inventory.vm_state(session, moref).snapshots
    assert (node.moref, node.name) == (taken.moref, "s") and node.description.startswith("a description")
    # Found again later, when the VM runs: the snapshot is still one of a VM that was off.
    power.power_on(session, moref)
    assert snapshots.create(session, moref, "s", quiesce=True) == taken


def test_of_a_running_guest(session: Session, make_vm: Any, simulator: Simulator) -> None:
    moref = make_vm("on")
    power.power_on(session, moref)
    simulator.control(Guest={"VM": "on", "Tools": True})
    assert snapshots.create(session, moref, "q", quiesce=True)[1:] == ("quiesced", ())
    assert snapshots.create(session, moref, "c", quiesce=False)[1:] == ("crash-consistent", ())


@pytest.mark.parametrize(
    "fault",
    ["ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable", "GenericVmConfigFault", "SnapshotFault"],
)
@pytest.mark.parametrize("as_task", [True, False], ids=["task", "call"])
def test_a_guest_that_cannot_be_quiesced(
    session: Session, make_vm: Any, simulator: Simulator, fault: str, as_task: bool
) -> None:
    moref = make_vm("busy")
    power.power_on(session, moref)
    simulator.rule("CreateSnapshot_Task", Fault=fault, AsTask=as_task)
    moref_taken, consistency, notes = snapshots.create(session, moref, "s", quiesce=True)
    assert consistency == "crash-consistent" and fault in notes[0] and "could not be quiesced" in notes[0]
    assert [n.moref for n in snapshots.tree(session, moref)] == [moref_taken]


def test_other_trouble_is_not_taken_for_quiescing(session: Session, make_vm: Any, simulator: Simulator) -> None:
    moref = make_vm("full")
    power.power_on(session, moref)
    simulator.rule("CreateSnapshot_Task", Fault="NoDiskSpace", AsTask=True)
    with pytest.raises(NoSpace, match="snapshot 's' of full"):
        snapshots.create(session, moref, "s", quiesce=True)
    simulator.rule("CreateSnapshot_Task", Fault="SnapshotFault", AsTask=True, Count=2)
    with pytest.raises(Refused, match="SnapshotFault"):
        snapshots.create(session, moref, "s", quiesce=True)
    assert snapshots.tree(session, moref) == ()


def test_quiescing_that_fails_late_is_not_tried_again(session: Session, make_vm: Any, simulator: Simulator) -> None:
    moref = make_vm("hung")
    power.power_on(session, moref)
    simulator.rule("CreateSnapshot_Task", Fault="ApplicationQuiesceFault", AsTask=True, TaskMs=1000)
    with pytest.raises(TaskStillRunning):
        snapshots.create(session, moref, "s", quiesce=True, wait=0.1)
    simulator.control(Clear=True)
    _, consistency, notes = snapshots.create(session, moref, "s", quiesce=True)
    assert consistency == "crash-consistent" and "ApplicationQuiesceFault" in notes[0]
    assert simulator.calls()["CreateSnapshot_Task"] == 1


def test_templates_have_none(session: Session, make_vm: Any) -> None:
    moref = make_vm("template")
    session.vm(moref).MarkAsTemplate()
    with pytest.raises(Refused, match="is a template"):
        snapshots.create(session, moref, "s", quiesce=False)


def test_find_by_name(session: Session, make_vm: Any) -> None:
    moref = make_vm("named")
    assert snapshots.find(session, moref, "b") is None
    taken = [snapshots.create(session, moref, name, quiesce=False).moref for name in ("a", "b", "c")]
    assert snapshots.find(session, moref, "b") == taken[1]
    with pytest.raises(NotFound):
        snapshots.find(session, "vm-4711", "b")


def test_remove_folds_the_disks_back(session: Session, make_vm: Any) -> None:
    moref = make_vm("folded")
    before = inventory.vm_state(session, moref).config.disks[0].file
    first = snapshots.create(session, moref, "a", quiesce=False).moref
    second = snapshots.create(session, moref, "b", quiesce=False).moref
    snapshots.remove(session, moref, first)
    state = inventory.vm_state(session, moref)
    assert [n.moref for n in state.snapshots] == [second] and state.config.disks[0].parent == before
    snapshots.remove(session, moref, second)
    snapshots.remove(session, moref, second)  # absent is fine
    (disk,) = inventory.vm_state(session, moref).config.disks
    assert (disk.file, disk.parent) == (before, None)
    with pytest.raises(NotFound):
        snapshots.remove(session, "vm-4711", second)


def test_a_removal_under_way_is_waited_for(session: Session, make_vm: Any, simulator: Simulator) -> None:
    moref = make_vm("removing")
    taken = snapshots.create(session, moref, "a", quiesce=False).moref
    simulator.control(Clear=True)
    simulator.rule("RemoveSnapshot_Task", TaskMs=800)
    with pytest.raises(TaskStillRunning):
        snapshots.remove(session, moref, taken, wait=0.1)
    snapshots.remove(session, moref, taken)
    assert snapshots.tree(session, moref) == ()
    assert simulator.calls()["RemoveSnapshot_Task"] == 1


def test_disks_left_unconsolidated_are_consolidated(session: Session, make_vm: Any, simulator: Simulator) -> None:
    moref = make_vm("left")
    taken = snapshots.create(session, moref, "a", quiesce=False).moref
    simulator.control(Clear=True, LeaveUnconsolidated={"VM": "left", "Count": 1})
    snapshots.remove(session, moref, taken)
    state = inventory.vm_state(session, moref)
    assert not state.consolidation_needed and state.config.disks[0].parent is None
    assert simulator.calls()["ConsolidateVMDisks_Task"] == 1


def test_a_consolidation_that_fails_is_taken_up_by_the_next_call(
    session: Session, make_vm: Any, simulator: Simulator
) -> None:
    moref = make_vm("stuck")
    taken = snapshots.create(session, moref, "a", quiesce=False).moref
    simulator.control(LeaveUnconsolidated={"VM": "stuck", "Count": 1})
    simulator.rule("ConsolidateVMDisks_Task", Fault="FileLocked", AsTask=True)
    with pytest.raises(Transient, match="consolidate"):
        snapshots.remove(session, moref, taken)
    assert inventory.vm_state(session, moref).consolidation_needed
    snapshots.remove(session, moref, taken)
    assert not inventory.vm_state(session, moref).consolidation_needed


def test_a_snapshot_asked_for_by_a_dead_worker_is_not_taken_twice(
    session: Session, make_vm: Any, simulator: Simulator
) -> None:
    moref = make_vm("dead")
    simulator.control(Clear=True)
    simulator.rule("CreateSnapshot_Task", TaskMs=800, DropAfter=True)
    with pytest.raises(VcenterUnreachable):
        snapshots.create(session, moref, "s", quiesce=False)
    taken = snapshots.create(session, moref, "s", quiesce=False)
    assert [n.moref for n in snapshots.tree(session, moref)] == [taken.moref]
    assert simulator.calls()["CreateSnapshot_Task"] == 1


def test_two_workers_ask_for_different_snapshots(session: Session, make_vm: Any) -> None:
    moref = make_vm("two")
    threads = [
        threading.Thread(target=snapshots.create, args=(session, moref, name), kwargs={"quiesce": False})
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(node.name for node in snapshots.tree(session, moref)) == ["a", "b"]


def test_the_fingerprint_of_a_tree() -> None:
    a, b = SnapshotNode(moref="s1", name="a"), SnapshotNode(moref="s2", name="b", parent="s1")
    prints = {
        snapshots.fingerprint(nodes)
        for nodes in (
            (),
            (a,),
            (a, b),
            (a, b.model_copy(update={"parent": None})),
            (a.model_copy(update={"name": "x"}),),
        )
    }
    assert len(prints) == 5
    assert snapshots.fingerprint((a, b)) == snapshots.fingerprint((b, a))
