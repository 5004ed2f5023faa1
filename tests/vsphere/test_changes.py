from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import MIB, Simulator
from workers.errors import (
    ChangeTrackingUnusable,
    NotFound,
    SnapshotLost,
    Transient,
    UnderstudyError,
    VcenterUnreachable,
)
from workers.extents import Extents
from workers.models import Disk
from workers.vsphere import changes, inventory, power, snapshots
from workers.vsphere.session import Session

KIB = 1024


def snapshot(session: Session, moref: str, name: str) -> tuple[str, Disk]:
    taken = snapshots.create(session, moref, name, quiesce=False).moref
    return taken, inventory.vm_config(session, moref, taken).disks[0]


def write(simulator: Simulator, vm: str, offset: int, length: int, fill: str = "a5") -> None:
    simulator.control(
        GuestWrite={"VM": vm, "Disk": 0, "Offset": offset, "Hex": fill * 512, "Repeat": length // 512, "Force": True}
    )


@pytest.fixture
def tracked(simulator: Simulator, session: Session, make_vm: Any) -> str:
    simulator.control(OverReport=0)
    moref = str(make_vm("tracked", 16 * MIB))
    assert changes.enable(session, inventory.vm_state(session, moref))
    return moref


def test_what_was_written_since_a_change_id(simulator: Simulator, session: Session, tracked: str) -> None:
    write(simulator, "tracked", 0, 4 * KIB)
    first, a = snapshot(session, tracked, "a")
    assert a.change_id
    assert changes.changed_areas(session, tracked, first, a) == Extents.of([(0, 64 * KIB)])
    snapshots.remove(session, tracked, first)
    for offset in (1 * MIB, 3 * MIB, 15 * MIB):
        write(simulator, "tracked", offset, 100 * KIB, "5a")
    second, b = snapshot(session, tracked, "b")
    expected = Extents.of([(offset, 128 * KIB) for offset in (1 * MIB, 3 * MIB, 15 * MIB)])
    assert changes.changed_areas(session, tracked, second, b, a.change_id) == expected
    assert changes.changed_areas(session, tracked, second, b) == expected | Extents.of([(0, 64 * KIB)])
    for most in (1, 2):
        simulator.control(Clear=True, MaxAreas=most)
        assert changes.changed_areas(session, tracked, second, b, a.change_id) == expected
        assert simulator.calls()["QueryChangedDiskAreas"] >= 3 // most


def test_nothing_written_is_nothing_and_not_everything(session: Session, tracked: str) -> None:
    first, a = snapshot(session, tracked, "a")
    assert not changes.changed_areas(session, tracked, first, a)
    snapshots.remove(session, tracked, first)
    second, b = snapshot(session, tracked, "b")
    assert not changes.changed_areas(session, tracked, second, b, a.change_id)


def test_over_reporting_is_a_superset(simulator: Simulator, session: Session, tracked: str) -> None:
    simulator.control(OverReport=100)
    first, a = snapshot(session, tracked, "a")
    snapshots.remove(session, tracked, first)
    write(simulator, "tracked", 4 * MIB, 64 * KIB)
    second, b = snapshot(session, tracked, "b")
    found = changes.changed_areas(session, tracked, second, b, a.change_id)
    assert not Extents.of([(4 * MIB, 64 * KIB)]) - found


@pytest.mark.parametrize("change_id", [None, "", "52 de c0 d9 00 00 00 00-00 00 00 00 00 00 00 00/3"])
def test_change_ids_that_lead_nowhere(session: Session, tracked: str, change_id: str | None) -> None:
    taken, disk = snapshot(session, tracked, "a")
    with pytest.raises(ChangeTrackingUnusable, match=r"no change id|was reset"):
        changes.changed_areas(session, tracked, taken, disk, change_id)


def test_tracking_that_was_reset(simulator: Simulator, session: Session, tracked: str) -> None:
    first, a = snapshot(session, tracked, "a")
    snapshots.remove(session, tracked, first)
    simulator.control(Cbt={"VM": "tracked", "Disk": 0, "Reset": True})
    second, b = snapshot(session, tracked, "b")
    with pytest.raises(ChangeTrackingUnusable, match=r"was reset|not in effect"):
        changes.changed_areas(session, tracked, second, b, a.change_id)


def test_a_sequence_number_of_the_same_generation_that_vcenter_does_not_know(session: Session, tracked: str) -> None:
    taken, disk = snapshot(session, tracked, "a")
    assert disk.change_id
    with pytest.raises(ChangeTrackingUnusable, match="FileFault"):
        changes.changed_areas(session, tracked, taken, disk, disk.change_id.rpartition("/")[0] + "/4711")


def test_tracking_that_is_off(session: Session, make_vm: Any) -> None:
    moref = make_vm("untracked", 4 * MIB)
    taken, disk = snapshot(session, moref, "a")
    assert disk.change_id is None
    with pytest.raises(ChangeTrackingUnusable, match="not in effect when the snapshot was taken"):
        changes.changed_areas(session, moref, taken, disk, "52 de/1")
    # What is allocated is only a hint, so not knowing is no failure.
    assert changes.changed_areas(session, moref, taken, disk) == Extents.whole(4 * MIB)


def test_a_snapshot_that_is_gone(session: Session, tracked: str) -> None:
    taken, disk = snapshot(session, tracked, "a")
    snapshots.remove(session, tracked, taken)
    for change_id in ("*", disk.change_id):
        with pytest.raises(SnapshotLost, match=taken):
            changes.changed_areas(session, tracked, taken, disk, change_id)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"Fault": "FileFault"}, ChangeTrackingUnusable),
        ({"Fault": "InvalidArgument"}, ChangeTrackingUnusable),
        ({"Fault": "SystemError"}, ChangeTrackingUnusable),
        ({"Fault": "HostCommunication"}, Transient),
        ({"Drop": True, "Count": 2}, VcenterUnreachable),
    ],
)
def test_trouble_in_the_middle_never_gives_a_part(
    simulator: Simulator, session: Session, tracked: str, rule: dict[str, Any], error: type[Exception]
) -> None:
    first, a = snapshot(session, tracked, "a")
    snapshots.remove(session, tracked, first)
    for offset in range(0, 16 * MIB, MIB):
        write(simulator, "tracked", offset, 4 * KIB)
    second, b = snapshot(session, tracked, "b")
    simulator.control(MaxAreas=3)
    simulator.rule("QueryChangedDiskAreas", Skip=2, **rule)
    with pytest.raises(error):
        changes.changed_areas(session, tracked, second, b, a.change_id)
    simulator.control(Clear=True)
    assert len(changes.changed_areas(session, tracked, second, b, a.change_id)) == 16


class Answers:
    """Stands for a session whose vCenter contradicts itself, which the simulator does not."""

    def __init__(self, *pages: tuple[int, int, list[tuple[int, int]]]) -> None:
        self.pages = list(pages)
        self.asked: list[int] = []

    def vm(self, moref: str) -> Answers:
        return self

    def object(self, kind: Any, moref: str) -> None:
        return None

    def QueryChangedDiskAreas(self, snapshot: Any, key: int, offset: int, change_id: str) -> Any:
        self.asked.append(offset)
        start, length, areas = self.pages.pop(0)
        kind = vim.VirtualMachine.DiskChangeInfo
        extent = kind.DiskChangeExtent
        return kind(startOffset=start, length=length, changedArea=[extent(start=o, length=n) for o, n in areas])


DISK = Disk(
    id="d", key=2000, label="Hard disk 1", capacity=1000, controller=1000, unit=0, file="[ds] a", change_id="u/2"
)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param((0, 0, []), id="does not advance"),
        pytest.param((0, -5, []), id="goes back"),
        pytest.param((0, 1001, []), id="beyond the capacity"),
        pytest.param((5, 995, []), id="another offset than asked"),
        pytest.param((0, 1000, [(0, 10), (5, 10)]), id="overlapping"),
        pytest.param((0, 1000, [(20, 10), (5, 10)]), id="out of order"),
        pytest.param((0, 500, [(490, 20)]), id="beyond its own page"),
        pytest.param((0, 1000, [(990, 20)]), id="beyond the disk"),
        pytest.param((0, 1000, [(10, 0)]), id="empty area"),
        pytest.param((0, 1000, [(-10, 20)]), id="before the disk"),
    ],
)
def test_answers_that_contradict_themselves(page: tuple[int, int, list[tuple[int, int]]]) -> None:
    with pytest.raises(ChangeTrackingUnusable, match="contradicts itself"):
        changes.changed_areas(Answers(page), "vm-1", "s-1", DISK, "u/1")  # type: ignore[arg-type]
    later = Answers((0, 400, [(0, 10)]), (400 + page[0], page[1], [(400 + o, n) for o, n in page[2]]))
    with pytest.raises(ChangeTrackingUnusable):
        changes.changed_areas(later, "vm-1", "s-1", DISK, "u/1")  # type: ignore[arg-type]


def test_pages_follow_each_other_to_the_end_and_no_further() -> None:
    answers = Answers((0, 400, [(0, 10), (390, 10)]), (400, 100, []), (500, 500, [(500, 500)]))
    found = changes.changed_areas(answers, "vm-1", "s-1", DISK, "u/1")  # type: ignore[arg-type]
    assert found == Extents.of([(0, 10), (390, 10), (500, 500)]) and answers.asked == [0, 400, 500]


# --- switching it on ----------------------------------------------------------------------------------------------


def test_enable_leaves_no_snapshot_and_the_next_one_has_change_ids(session: Session, make_vm: Any) -> None:
    moref = make_vm("enabled", 4 * MIB)
    power.power_on(session, moref)
    assert changes.enable(session, inventory.vm_state(session, moref))
    state = inventory.vm_state(session, moref)
    assert state.change_tracking and state.snapshots == () and not state.consolidation_needed
    assert not changes.enable(session, state)
    assert snapshot(session, moref, "a")[1].change_id


def test_enable_says_why_not(session: Session, make_vm: Any) -> None:
    moref = make_vm("not", 4 * MIB)
    snapshots.create(session, moref, "of an admin", quiesce=False)
    with pytest.raises(ChangeTrackingUnusable, match=r"has snapshots \(of an admin\)"):
        changes.enable(session, inventory.vm_state(session, moref))
    assert not inventory.vm_state(session, moref).change_tracking
    template = make_vm("template")
    session.vm(template).MarkAsTemplate()
    with pytest.raises(ChangeTrackingUnusable, match="is a template"):
        changes.enable(session, inventory.vm_state(session, template))


@pytest.mark.parametrize("number", range(6))
def test_what_vcenter_refuses_while_looking_for_left_overs_is_said(
    simulator: Simulator, session: Session, tracked: str, number: int
) -> None:
    """Whichever of the reads it is, and one that comes too late for any."""
    simulator.rule("RetrievePropertiesEx", Skip=number, Fault="SystemError")
    try:
        changes.tidy(session, tracked)
    except UnderstudyError as err:
        assert tracked in str(err) and "Injected fault" in str(err)
    else:
        assert number > 1
    simulator.control(Clear=True)


def test_enable_goes_on_where_a_worker_died(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("died", 4 * MIB)
    simulator.rule("RemoveSnapshot_Task", Drop=True)
    with pytest.raises(VcenterUnreachable):
        changes.enable(session, inventory.vm_state(session, moref))
    assert len(inventory.vm_state(session, moref).snapshots) == 1
    changes.enable(session, inventory.vm_state(session, moref))
    state = inventory.vm_state(session, moref)
    assert state.snapshots == () and state.change_tracking
    assert snapshot(session, moref, "a")[1].change_id


def test_of_a_vm_that_is_gone(session: Session) -> None:
    with pytest.raises((NotFound, SnapshotLost)):
        changes.changed_areas(session, "vm-4711", "snapshot-1", DISK, "u/1")
