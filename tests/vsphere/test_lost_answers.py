"""Every changing verb, with the connection lost at its n-th call, for each n, before or after it was carried out.

The verb is then repeated as a caller would: the end must be right, and nothing doubled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vsphere.conftest import MIB, Simulator, config, spec, until
from tests.vsphere.switching import power_off
from workers.errors import Transient
from workers.models import HardwareChange
from workers.vsphere import changes, inventory, power, replica, snapshots
from workers.vsphere.session import Session

HOW = {
    "before": {"Drop": True},
    "after": {"DropAfter": True},
    "after, and slow": {"DropAfter": True, "TaskMs": 100},
}

#: A verb does something to the VM and gives a check of the end.
Verb = Callable[[Session, str], Callable[[], None]]


def take_snapshot(s: Session, moref: str) -> Callable[[], None]:
    taken = snapshots.create(s, moref, "run-1", quiesce=False).moref

    def check() -> None:
        assert [(n.moref, n.name) for n in inventory.vm_state(s, moref).snapshots] == [(taken, "run-1")]

    return check


def remove_snapshot(s: Session, moref: str) -> Callable[[], None]:
    """The first run of it, in `prepared`, took the snapshot."""
    first = inventory.vm_state(s, moref).snapshots
    for node in first:
        snapshots.remove(s, moref, node.moref)

    def check() -> None:
        state = inventory.vm_state(s, moref)
        assert state.snapshots == () and not state.consolidation_needed
        assert all(disk.parent is None for disk in state.config.disks)

    return check


def switch_on(s: Session, moref: str) -> Callable[[], None]:
    power.power_on(s, moref)
    return lambda: _equal(power.state(s, moref), "poweredOn")


def enable_tracking(s: Session, moref: str) -> Callable[[], None]:
    changes.enable(s, inventory.vm_state(s, moref))

    def check() -> None:
        state = inventory.vm_state(s, moref)
        assert state.change_tracking and state.snapshots == ()
        # A repetition may find it switched on, and leave the cycle to the next snapshot.
        snapshots.remove(s, moref, snapshots.create(s, moref, "one", quiesce=False).moref)
        taken = snapshots.create(s, moref, "two", quiesce=False).moref
        assert inventory.vm_config(s, moref, taken).disks[0].change_id

    return check


def set_witness(s: Session, moref: str) -> Callable[[], None]:
    replica.set_witness(s, moref, "fence 7")
    return lambda: _equal(inventory.vm_state(s, moref).witness, "fence 7")


def destroy(s: Session, moref: str) -> Callable[[], None]:
    replica.destroy(s, moref)
    return lambda: _equal(inventory.list_vms(s), [])


def _equal(found: object, expected: object) -> None:
    assert found == expected


def _lose(
    simulator: Simulator, session: Session, n: int, how: dict[str, Any], verb: Callable[[], Any]
) -> tuple[Any, bool]:
    """The result of the verb, repeated until it succeeds, with its n-th call lost; whether it made so many calls."""
    simulator.control(Clear=True)
    simulator.rule("*", Skip=n, **how)
    for _ in range(4):
        try:
            result = verb()
            break
        except Transient:
            continue
    else:
        raise AssertionError("the verb never succeeded")
    state = simulator.control()
    simulator.control(Clear=True)
    until(lambda: not _running(session))  # what was doubled would show only when it ends
    return result, state["rules"][0]["Count"] == 0


def _running(session: Session) -> list[Any]:
    tasks = session.read(session.content.taskManager, "recentTask").get("recentTask") or []
    return [t for t in session.read_each(tasks, "info.state") if t.values["info.state"] in ("queued", "running")]


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
@pytest.mark.parametrize(
    ("verb", "prepare"),
    [
        (take_snapshot, None),
        (remove_snapshot, take_snapshot),
        (switch_on, None),
        (enable_tracking, None),
        (set_witness, None),
        (destroy, None),
    ],
    ids=lambda value: getattr(value, "__name__", "-"),
)
def test_a_verb(
    simulator: Simulator, session: Session, make_vm: Any, how: dict[str, Any], verb: Verb, prepare: Verb | None
) -> None:
    if verb is enable_tracking and how is HOW["after"]:
        pytest.skip("seven seconds for what 'after, and slow' shows too")
    lost, n = True, 0
    while lost:
        moref = make_vm(f"n{n}", MIB)
        if prepare is not None:
            prepare(session, moref)
        check, lost = _lose(simulator, session, n, how, lambda m=moref: verb(session, m))
        check()
        if verb is not destroy:
            power_off(session, moref)
            replica.destroy(session, moref)
        n += 1
    assert n >= 3, "the verb makes several calls: the test has lost none of them"


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_building(simulator: Simulator, session: Session, how: dict[str, Any]) -> None:
    lost, n = True, 0
    while lost:
        wanted = spec("built", MIB, 2 * MIB)
        built, lost = _lose(simulator, session, n, how, lambda w=wanted: replica.create(session, w))
        (vm,) = inventory.list_vms(session)
        assert (vm.identity.moref, vm.identity.name) == (built.moref, "built")
        assert len(replica.disk_map(inventory.vm_state(session, built.moref))) == 2
        assert [p.name for p in simulator.file("[ds1] .").iterdir()] == ["built"]
        replica.destroy(session, built.moref)
        n += 1
    assert n >= 6


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_the_cursor(simulator: Simulator, session: Session, make_vm: Any, how: dict[str, Any]) -> None:
    moref = make_vm("cursor", MIB)
    lost, n = True, 0
    while lost:
        version = inventory.vm_state(session, moref).change_version
        text = f'{{"nonce":"{n}"}}'
        after, lost = _lose(
            simulator,
            session,
            n,
            how,
            lambda t=text, v=version: replica.write_cursor(session, moref, "understudy.cursor", t, v),
        )
        state = inventory.vm_state(session, moref)
        assert (state.notes["understudy.cursor"], state.change_version) == (text, after)
        n += 1
    assert n >= 3


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_the_hardware(simulator: Simulator, session: Session, make_vm: Any, how: dict[str, Any]) -> None:
    point = config(MIB, 2 * MIB)
    first, second = (disk.id for disk in point.disks)
    wanted = [
        HardwareChange(kind="remove disk", disk=first, label="Hard disk 1", capacity=0),
        HardwareChange(kind="add disk", disk=first, label="Hard disk 1", capacity=MIB),
        HardwareChange(kind="add disk", disk=second, label="Hard disk 2", capacity=2 * MIB),
    ]
    lost, n = True, 0
    while lost:
        moref = make_vm(f"hardware{n}", 4 * MIB)
        before = inventory.vm_state(session, moref)
        version, lost = _lose(
            simulator,
            session,
            n,
            how,
            lambda m=moref, v=before.change_version: replica.change_hardware(session, m, wanted, point, v),
        )
        state = inventory.vm_state(session, moref)
        found = replica.disk_map(state)
        assert {source: disk.capacity for source, disk in found.items()} == {first: MIB, second: 2 * MIB}
        assert len(state.config.disks) == 2 and state.change_version == version
        assert before.config.disks[0].id not in {disk.id for disk in state.config.disks}
        replica.destroy(session, moref)
        n += 1
    assert n >= 6
