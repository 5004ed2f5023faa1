"""Changed block tracking: when it starts, what it reports, what it refuses, how it can lie."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import GRAIN, MIB, Sim, add, change_id, disks, edit, new_disk
from pyVmomi import vim, vmodl


def tracked(sim: Sim, name: str, size: int = 8 * MIB) -> Any:
    """A VM whose tracking is active: enabled, then one throw-away snapshot cycle."""
    vm = sim.create(name, sizes=(size,), cbt=True)
    sim.wait(sim.snapshot(vm, "activate").RemoveSnapshot_Task(False))
    return vm


def guest_write(sim: Sim, vm: Any, offset: int, data: bytes, **more: Any) -> None:
    sim.control(guestWrite={"vm": vm.name, "disk": 0, "offset": offset, "hex": data.hex(), "force": True, **more})


def covers(areas: list[tuple[int, int]], offset: int) -> bool:
    return any(start <= offset < start + length for start, length in areas)


def exact(sim: Sim) -> None:
    sim.control(overReport=0)


def test_the_first_snapshot_after_enabling_has_no_change_id(sim: Sim) -> None:
    vm = sim.create("t-first", cbt=True)
    first = sim.snapshot(vm, "1")
    second = sim.snapshot(vm, "2")
    assert change_id(first) is None and str(change_id(second)).endswith("/1")
    with pytest.raises(vmodl.fault.InvalidArgument, match="deviceKey"):
        vm.QueryChangedDiskAreas(first, 2000, 0, "*")


def test_a_power_cycle_activates_too(sim: Sim) -> None:
    vm = sim.create("t-power", cbt=True)
    sim.wait(vm.PowerOnVM_Task())
    assert str(change_id(sim.snapshot(vm, "1"))).endswith("/1")
    sim.wait(vm.PowerOffVM_Task())


def test_without_tracking_there_is_nothing_to_ask(sim: Sim) -> None:
    vm = sim.create("t-off")
    sim.snapshot(vm, "1")
    second = sim.snapshot(vm, "2")
    assert change_id(second) is None
    with pytest.raises(vmodl.fault.InvalidArgument, match="deviceKey"):
        vm.QueryChangedDiskAreas(second, 2000, 0, "*")


def test_a_star_asks_for_what_is_in_use(sim: Sim) -> None:
    vm = tracked(sim, "t-star")
    sim.write(vm, 10, b"x")
    sim.write(vm, 3 * MIB - 1, b"yy")  # over the border of two areas
    sim.write(vm, 5 * MIB, bytes(4096))  # zeroes are not in use
    snap = sim.snapshot(vm, "1")
    assert sim.areas(vm, snap, "*") == [(0, GRAIN), (3 * MIB - GRAIN, 2 * GRAIN)]


def test_only_changes_are_reported_and_they_are_enough(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-diff")
    sim.write(vm, 0, b"a" * 200_000)
    one = sim.snapshot(vm, "1")
    id1, old = str(change_id(one)), sim.path(disks(one)[0]).read_bytes()
    sim.wait(one.RemoveSnapshot_Task(False))  # an id outlives its snapshot
    sim.write(vm, 70_000, b"b")
    sim.write(vm, 6 * MIB, b"c" * 70_000)
    two = sim.snapshot(vm, "2")
    new = sim.path(disks(two)[0]).read_bytes()
    areas = sim.areas(vm, two, id1)
    assert areas == [(GRAIN, GRAIN), (6 * MIB, 2 * GRAIN)]
    copy = bytearray(old)
    for start, length in areas:
        copy[start : start + length] = new[start : start + length]
    assert copy == new
    assert sim.areas(vm, two, str(change_id(two))) == []


def test_what_changed_and_changed_back_is_reported(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-back")
    one = sim.snapshot(vm, "1")
    sim.write(vm, 0, b"x")
    two = sim.snapshot(vm, "2")
    sim.write(vm, 0, b"\0")
    three = sim.snapshot(vm, "3")
    assert sim.areas(vm, three, str(change_id(one))) == [(0, GRAIN)]
    assert sim.areas(vm, three, str(change_id(two))) == [(0, GRAIN)]
    with pytest.raises(vim.fault.FileFault):  # the future of a snapshot cannot be asked for
        sim.areas(vm, two, str(change_id(three)))


def test_an_area_that_was_written_with_the_same_bytes_is_reported(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-touch")
    sim.write(vm, MIB, b"same")
    one = sim.snapshot(vm, "1")
    guest_write(sim, vm, MIB, b"same")
    two = sim.snapshot(vm, "2")
    assert sim.areas(vm, two, str(change_id(one))) == [(MIB, GRAIN)]


def test_about_a_tenth_more_is_reported_and_always_the_same(sim: Sim) -> None:
    vm = tracked(sim, "t-over", size=64 * MIB)
    one = sim.snapshot(vm, "1")
    changed = [n * 4 * GRAIN for n in range(256)]
    for offset in changed:
        sim.write(vm, offset, b"x")
    two = sim.snapshot(vm, "2")
    areas = sim.areas(vm, two, str(change_id(one)))
    assert all(covers(areas, offset) for offset in changed)
    extra = sum(length for _, length in areas) // GRAIN - len(changed)
    assert 10 <= extra <= 45
    assert sim.areas(vm, two, str(change_id(one))) == areas


@pytest.mark.parametrize("per_answer", [1, 2, 3])
def test_paging_gives_the_same_areas(sim: Sim, per_answer: int) -> None:
    vm = tracked(sim, f"t-page{per_answer}")
    one = sim.snapshot(vm, "1")
    for n in (0, 5, 6, 40, 127):
        sim.write(vm, n * GRAIN, b"x")
    two = sim.snapshot(vm, "2")
    whole = sim.areas(vm, two, str(change_id(one)))
    sim.control(maxAreas=per_answer)
    first = vm.QueryChangedDiskAreas(two, 2000, 0, str(change_id(one)))
    assert (first.startOffset, len(first.changedArea)) == (0, per_answer) and first.length < 8 * MIB
    assert sim.areas(vm, two, str(change_id(one))) == whole


def test_refused_questions(sim: Sim) -> None:
    vm = tracked(sim, "t-refuse")
    snap = sim.snapshot(vm, "1")
    own = str(change_id(snap))
    for offset in (8 * MIB, 9 * MIB, -1):
        with pytest.raises(vmodl.fault.InvalidArgument, match="startOffset"):
            vm.QueryChangedDiskAreas(snap, 2000, offset, "*")
    with pytest.raises(vmodl.fault.InvalidArgument, match="deviceKey"):
        vm.QueryChangedDiskAreas(snap, 2001, 0, "*")
    for foreign in ("52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/1", own.replace("/1", "/9"), "nonsense"):
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(snap, 2000, 0, foreign)


def test_an_extension_keeps_the_ids(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-extend")
    one = sim.snapshot(vm, "1")
    id1 = str(change_id(one))
    sim.wait(one.RemoveSnapshot_Task(False))
    disk = disks(vm)[0]
    disk.capacityInBytes, disk.capacityInKB = 10 * MIB, 10 * MIB // 1024
    sim.reconfigure(vm, deviceChange=[edit(disk)])
    sim.write(vm, 9 * MIB, b"new part")
    two = sim.snapshot(vm, "2")
    assert sim.areas(vm, two, id1) == [(9 * MIB, GRAIN)]


@pytest.mark.parametrize("how", ["revert", "toggle", "control"])
def test_a_reset_makes_a_new_generation(sim: Sim, how: str) -> None:
    vm = tracked(sim, f"t-reset-{how}")
    one = sim.snapshot(vm, "1")
    id1 = str(change_id(one))
    if how == "revert":
        sim.wait(one.RevertToSnapshot_Task())
    elif how == "toggle":
        sim.reconfigure(vm, changeTrackingEnabled=False)
        sim.reconfigure(vm, changeTrackingEnabled=True)
        sim.wait(sim.snapshot(vm, "activate").RemoveSnapshot_Task(False))
    else:
        sim.control(cbt={"vm": vm.name, "disk": 0, "reset": True})
    two = sim.snapshot(vm, "2")
    assert str(change_id(two)).split("/")[0] != id1.split("/")[0]
    with pytest.raises(vim.fault.FileFault):
        sim.areas(vm, two, id1)


def test_a_new_disk_is_tracked_from_the_next_cycle(sim: Sim) -> None:
    vm = tracked(sim, "t-disk")
    sim.reconfigure(vm, deviceChange=[add(new_disk(MIB, unit=1, controller=1000), file="create")])
    one, two = sim.snapshot(vm, "1"), sim.snapshot(vm, "2")
    assert change_id(one, 0) is not None and change_id(one, 1) is None and change_id(two, 1) is not None


def test_a_range_can_be_hidden_from_the_next_answers(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-hide")
    one = sim.snapshot(vm, "1")
    sim.write(vm, 0, b"x")
    sim.write(vm, 4 * MIB, b"y")
    two = sim.snapshot(vm, "2")
    sim.control(cbt={"vm": "t-hide", "disk": 0, "hide": {"offset": 4 * MIB, "length": 1}, "answers": 2})
    asked = [sim.areas(vm, two, str(change_id(one))) for _ in range(3)]
    assert asked == [[(0, GRAIN)], [(0, GRAIN)], [(0, GRAIN), (4 * MIB, GRAIN)]]


def test_without_a_snapshot_the_stopped_vm_itself_is_meant(sim: Sim) -> None:
    exact(sim)
    vm = tracked(sim, "t-live")
    one = sim.snapshot(vm, "1")
    sim.write(vm, 2 * MIB, b"x")
    answer = vm.QueryChangedDiskAreas(None, 2000, 0, str(change_id(one)))
    assert [(a.start, a.length) for a in answer.changedArea] == [(2 * MIB, GRAIN)]
    sim.wait(vm.PowerOnVM_Task())
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(None, 2000, 0, str(change_id(one)))
    sim.wait(vm.PowerOffVM_Task())


def test_a_large_sparse_disk_costs_little(sim: Sim) -> None:
    vm = tracked(sim, "t-large", size=4 << 30)
    sim.write(vm, 3 << 30, b"x" * MIB)
    snap = sim.snapshot(vm, "1")
    assert sim.areas(vm, snap, "*") == [(3 << 30, MIB)]
    frozen = sim.path(disks(snap)[0]).stat()
    assert frozen.st_size == 4 << 30 and frozen.st_blocks * 512 < 4 * MIB
