"""Full restores: to a new VM and over the original, whole and in parts. Judged byte for byte by the content log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pyVmomi import vim

from tests.integration.world import MIB, World, first_difference, flat
from workers import backup, left_behind, restore
from workers.errors import BadInput, ConfigError, NoSpace, NotFound, Refused, StoreDamaged
from workers.models import Disk, Run, RunReport, RunState, VmState
from workers.restore_order import Wish
from workers.vsphere import restoring


def ask(world: World, name: str, **wish: Any) -> Run:
    run, _ = restore.request(world.here, Wish(vm=name, **wish))
    return run


def restored(world: World, name: str, **wish: Any) -> RunReport:
    return restore.run(world.here, ask(world, name, **wish).id)


def disks(state: VmState) -> list[Disk]:
    return sorted(state.config.disks, key=lambda d: d.key)


def assert_holds(world: World, state: VmState, site: str, wanted: list[bytes]) -> None:
    vcenter = world.prod if site == "prod" else world.dr
    found = [flat(vcenter, disk.file).read_bytes() for disk in disks(state)]
    assert [len(data) for data in found] == [len(data) for data in wanted]
    assert [first_difference(a, b) for a, b in zip(found, wanted, strict=True)] == [None] * len(wanted)


def off(world: World, name: str) -> None:
    world.source.wait(world.vm(name).PowerOffVM_Task())


def of(world: World, point: str) -> list[bytes]:
    """By disk, in the order of keys: the log keeps the order in which they were made."""
    return list(world.held[point].values())


def assert_nothing_of_ours(state: VmState) -> None:
    assert set(state.notes) <= {restoring.RESTORED} and not state.snapshots
    assert restoring.SIGN not in state.config.annotation


def test_a_vm_with_two_disks_to_a_new_one_at_each_site(world: World) -> None:
    world.make_vm("web", 8 * MIB, 5 * MIB + 3 * 1024, annotation="the shop", firmware="efi")
    world.scribble("web", 1)
    first = str(world.backup("web").point)
    world.scribble("web", 2)
    second = str(world.backup("web").point)
    source = world.state("web")

    planned = restore.preview(world.here, Wish(vm="web", to="web-old", point=first))
    assert planned.objections == () and planned.where == "prod/web-old" and len(planned.disks) == 2
    report = restored(world, "web", to="web-old", point=first)
    made = world.state("web-old")
    assert_holds(world, made, "prod", of(world, first))
    assert report.written == sum(d.bytes for d in planned.disks)
    assert made.power == "poweredOff" and made.config.annotation == "the shop"
    assert made.identity.instance_uuid != source.identity.instance_uuid
    assert made.identity.bios_uuid != source.identity.bios_uuid
    assert (made.config.cpus, made.config.memory_mib, made.config.firmware) == (2, 512, "efi")
    assert_nothing_of_ours(made)

    restored(world, "web", to="web-new", target="recovery", networks={"VM Network": "DR Network"}, power_on=True)
    made = world.state("web-new", "dr")
    assert made.power == "poweredOn"
    assert_holds(world, made, "dr", of(world, second))
    assert_nothing_of_ours(made)

    restored(world, "web", to="web-part", site="dr", datastore="ds2", disks=("Hard disk 2",), point=first[:9])
    made = world.state("web-part", "dr")
    assert_holds(world, made, "dr", of(world, first)[1:])
    assert disks(made)[0].file.startswith("[ds2]")
    assert world.store.pins(source.identity.instance_uuid) == {}
    assert backup.run(world.here, world.request_backup("web").id).outcome == "succeeded", "its chain goes on"


def test_over_the_original_with_its_hardware_and_an_undo(world: World) -> None:
    """What was there is a restore point; only what differs is written; the next backup compares."""
    world.make_vm("db", 8 * MIB, 8 * MIB, 4 * MIB)
    world.scribble("db", 1)
    first = str(world.backup("db").point)
    uuid = world.state("db").identity.instance_uuid
    world.sync("db")
    gone = world.disks("db")[2].id
    world.remove_disk("db", 2)
    world.grow_disk("db", 1, 12 * MIB)
    world.add_disk("db", 4 * MIB)
    world.scribble("db", 2)
    world.write("db", 11 * MIB, b"x" * 4096, 1)
    with pytest.raises(Refused, match="is running; nothing was written"):
        restored(world, "db", over_original=True, point=first)
    off(world, "db")
    before = {key: bytes(data) for key, data in world.log["db"].items()}
    report = restored(world, "db", over_original=True, point=first)
    state = world.state("db")
    assert state.identity.instance_uuid == uuid
    reasons = " ".join(world.catalogue.run(report.run).reasons)
    assert "came after the restore point" in reasons and "is kept as the restore point" in reasons
    one, two, three = of(world, first)
    added = next(d for d in disks(state) if d.id in before and d.capacity == 4 * MIB)
    again = next(d for d in disks(state) if d.capacity == 4 * MIB and d.id != added.id)
    assert gone != again.id
    held = {d.id: flat(world.prod, d.file).read_bytes() for d in disks(state)}
    ids = list(world.held[first])
    assert held[ids[0]] == one and held[ids[1]] == two + bytes(4 * MIB) and held[again.id] == three
    assert held[added.id] == before[added.id]
    assert 0 < report.written < 16 * MIB, "only what differs"
    assert_nothing_of_ours(state)

    # the undo is complete, and the next backup sees what change tracking did not
    undo = world.store.newest(uuid)
    assert undo is not None
    world.held[undo.id] = before
    world.assert_point_is_readable("db", undo.id)
    world.log["db"] = {key: bytearray(data) for key, data in held.items()}
    world.source.wait(world.vm("db").PowerOnVM_Task())
    after = world.backup("db")
    found = world.store.point(uuid, str(after.point))
    assert {d.mode for d in found.disks} == {"compare", "full"}
    world.assert_point_is_readable("db", str(after.point))
    world.sync("db")
    world.assert_replica_is("db", str(after.point))
    off(world, "db")
    restored(world, "db", over_original=True, point=undo.id)
    now = {d.id: flat(world.prod, d.file).read_bytes() for d in disks(world.state("db"))}
    assert all(now[key] == data for key, data in before.items())


STEPS = [
    ("restore.pinned", "new over"),
    ("restore.built", "new"),
    ("restore.claimed", "over"),
    ("restore.marked", "over"),
    ("restore.renewed", "new over"),
    ("restore.owned", "new over"),
    ("slice.written", "new over"),
    ("checkpoint.after", "new over"),
    ("restore.finishing", "new over"),
    ("restore.released", "new over"),
    ("restore.running", "new over"),
]
SHORT = {
    ("restore.built", "new"),
    ("restore.marked", "over"),
    ("restore.released", "over"),
}


@pytest.mark.parametrize(
    ("step", "over"),
    [
        pytest.param(step, way == "over", id=f"{step}-{way}", marks=[] if (step, way) in SHORT else pytest.mark.slow)
        for step, ways in STEPS
        for way in ways.split()
    ],
)
def test_a_restore_killed_at_any_step_goes_on(world: World, step: str, over: bool) -> None:
    name = f"k{over:d}-{step.replace('.', '-')}"
    world.make_vm(name, 4 * MIB, 4 * MIB, powered_on=False)
    world.scribble(name, 1)
    point = str(world.backup(name).point)
    world.scribble(name, 2)
    wish = {"over_original": True} if over else {"to": f"{name}-copy"}
    run = ask(world, name, point=point, power_on=True, **wish)
    world.killed_at(run, step)
    left = world.state(name) if over else None
    if left is not None and restoring.MARKER in left.notes:
        with pytest.raises(Refused, match="half restored"):
            world.backup(name)
    assert restore.run(world.here, run.id).outcome == "succeeded"
    state = world.state(name if over else f"{name}-copy")
    assert state.power == "poweredOn"
    assert_holds(world, state, "prod", of(world, point))
    assert_nothing_of_ours(state)
    assert world.store.pins(world.state(name).identity.instance_uuid) == {}


@pytest.mark.parametrize("over", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["new", "over"])
def test_who_boots_a_half_restored_vm_is_noticed(world: World, over: bool) -> None:
    name = f"booted-{over:d}"
    world.make_vm(name, 16 * MIB, powered_on=False)
    world.scribble(name, 1)
    point = str(world.backup(name).point)
    world.scribble(name, 2)
    run = ask(world, name, point=point, **({"over_original": True} if over else {"to": f"{name}-copy"}))
    world.killed_at(run, "checkpoint.after")
    half = name if over else f"{name}-copy"
    vm = world.vm(half)
    world.source.wait(vm.PowerOnVM_Task())
    with open(flat(world.prod, disks(world.state(half))[0].file), "r+b") as file:
        file.seek(15 * MIB)
        file.write(b"guest" * 1000)
    world.source.wait(vm.PowerOffVM_Task())
    report = restore.run(world.here, run.id)
    assert report.outcome == "succeeded", report
    assert any("all of it is compared" in reason for reason in world.catalogue.run(run.id).reasons)
    assert_holds(world, world.state(half), "prod", of(world, point))


def test_another_restore_takes_over_what_a_dead_one_left(world: World) -> None:
    """To a new VM: what was half done is removed. Over the original: all of it is compared."""
    world.make_vm("heir", 8 * MIB, powered_on=False)
    world.scribble("heir", 1)
    first = str(world.backup("heir").point)
    world.scribble("heir", 2)
    second = str(world.backup("heir").point)
    for over in (False, True):
        wish: dict[str, Any] = {"over_original": True} if over else {"to": "heir-copy"}
        dead = ask(world, "heir", point=first, **wish)
        world.killed_at(dead, "slice.written")
        with pytest.raises(Refused, match=f"another restore to .* is under way .run {dead.id}"):
            ask(world, "heir", point=second, **wish)
        assert ask(world, "heir", point=first, **wish).id == dead.id
        world.give_up(dead.id)
        (unclean,) = world.catalogue.unclean_runs()
        left_behind.clean_up(world.here, unclean.id)
        assert world.store.pins(world.state("heir").identity.instance_uuid) == {}
        assert world.catalogue.unclean_runs() == []
        restored(world, "heir", point=second, **wish)
        assert_holds(world, world.state("heir" if over else "heir-copy"), "prod", of(world, second))


def test_the_same_identity_when_the_original_is_gone(world: World) -> None:
    world.make_vm("lost", 8 * MIB)
    world.scribble("lost", 1)
    point = str(world.backup("lost").point)
    state = world.state("lost")
    with pytest.raises(Refused, match="two VMs of one identity"):
        ask(world, "lost", to="lost-2", same_identity=True)
    off(world, "lost")
    world.source.wait(world.vm("lost").Destroy_Task())
    world.discover()
    with pytest.raises(NotFound, match="--to lost --same-identity"):
        ask(world, "lost", over_original=True)
    restored(world, "lost", to="lost", same_identity=True)
    back = world.state("lost")
    assert back.identity.instance_uuid == state.identity.instance_uuid
    assert back.identity.bios_uuid == state.identity.bios_uuid
    assert [n.mac for n in back.config.nics] == [n.mac for n in state.config.nics]
    assert_holds(world, back, "prod", of(world, point))
    world.discover()
    world.log["lost"] = {}
    world._learn_disks("lost")
    for disk in world.disks("lost"):
        world.log["lost"][disk.id][:] = flat(world.prod, disk.file).read_bytes()
    again = str(world.backup("lost").point)
    world.assert_point_is_readable("lost", again)


def test_what_can_not_be_is_a_sentence_and_touches_nothing(world: World) -> None:
    world.make_vm("app", 4 * MIB)
    world.backup("app")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (BadInput, "say where to", {}),
        (BadInput, "say where to", {"to": "x", "over_original": True}),
        (NotFound, "has no disk 'Hard disk 9'; it has Hard disk 1", {"to": "x", "disks": ("Hard disk 9",)}),
        (NotFound, "no restore point of app", {"to": "x", "point": "nonsense"}),
        (NotFound, "as old as 2001-01-01", {"to": "x", "point": "2001-01-01"}),
        (NotFound, "no recovery target 'moon'", {"to": "x", "target": "moon"}),
        (ConfigError, "no datastore 'ds9'", {"to": "x", "datastore": "ds9"}),
        (NotFound, "no site 'mars'; configured are: dr, prod", {"to": "x", "site": "mars"}),
        (NotFound, "no store 'tape'; configured are: main", {"to": "x", "store": "tape"}),
        (BadInput, "say where at dr", {"to": "x", "site": "dr"}),
        (BadInput, "is at the site dr, not at prod", {"to": "x", "target": "recovery", "site": "prod"}),
        (BadInput, "takes no place", {"over_original": True, "datastore": "ds2"}),
    ]
    for error, words, wish in cases:
        with pytest.raises(error, match=words):
            ask(world, "app", **wish)
    with pytest.raises(NotFound, match="no VM 'ap' is known"):
        ask(world, "ap", to="x")
    assert world.catalogue.live_runs() == []
    with pytest.raises(Refused, match="a VM named app is already at prod"):
        restored(world, "app", to="app")
    assert "already at prod" in restore.preview(world.here, Wish(vm="app", to="app")).objections[0]
    assert "power it off" in restore.preview(world.here, Wish(vm="app", over_original=True)).objections[0]
    world.write("app", 0, b"data" * 1024)
    world.backup("app")
    world.prod.control(freeSpace={"datastore": "ds1", "bytes": 100})
    with pytest.raises(NoSpace, match="the datastore ds1 at prod has 100 free"):
        restored(world, "app", to="x")
    world.prod.control(clear=True, freeSpace={"datastore": "ds1"})
    off(world, "app")
    snapshot = world.source.wait(
        world.vm("app").CreateSnapshot_Task(name="somebody's", description="", memory=False, quiesce=False)
    )
    with pytest.raises(Refused, match="stands on app"):
        restored(world, "app", over_original=True)
    world.source.wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    path = next((world.folder / "store" / "packs").iterdir())
    path.write_bytes(b"broken" * 1000)
    with pytest.raises(StoreDamaged):
        restored(world, "app", to="x", point="newest")
    assert world.catalogue.runs(limit=1)[0].state is RunState.FAILED


def test_a_time_is_the_newest_point_of_then_or_before(world: World) -> None:
    world.make_vm("timed", 4 * MIB)
    points = [str(world.backup("timed").point) for _ in range(3)]
    found = world.catalogue.points(world.state("timed").identity.instance_uuid)
    between = found[1].data_time + (found[2].data_time - found[1].data_time) / 2
    order = restore.order_of(world.here, Wish(vm="timed", to="x", point=between.isoformat()))
    assert order.point == points[1]
    later = (found[2].data_time + timedelta(days=1)).replace(tzinfo=None).isoformat(" ")
    assert restore.order_of(world.here, Wish(vm="timed", to="x", point=later)).point == points[2]


@pytest.mark.slow
def test_a_clone_of_a_half_restored_vm_is_not_ours(world: World) -> None:
    world.make_vm("torn", 4 * MIB, powered_on=False)
    world.scribble("torn", 1)
    world.backup("torn")
    run = ask(world, "torn", to="torn-copy")
    world.killed_at(run, "slice.written")
    vm = world.vm("torn-copy")
    folder = world.source.read(vm, "parent")["parent"]
    world.source.wait(vm.CloneVM_Task(folder, "torn-clone", vim.vm.CloneSpec(location=vim.vm.RelocateSpec())))
    with pytest.raises(Refused, match="already at prod"):
        restored(world, "torn", to="torn-clone")
    world.discover()
    with pytest.raises(Refused, match="half restored"):
        backup.run(world.here, world.request_backup("torn-clone").id)
