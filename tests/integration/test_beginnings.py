"""Replicas that are not built from nothing: seeds, and VMs that are there. Judged byte for byte."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from tests.integration.places import (
    assert_holds,
    changed,
    disks_of,
    held,
    make_there,
    pair,
    plan,
    realm,
    reasons,
    replica_of,
    seed,
    sync,
)
from tests.integration.world import MIB, Vcenter, World, flat
from workers.errors import BadInput, Foreign, NotFound, Refused, Touched, UnderstudyError
from workers.replica import CURSOR
from workers.run import Here


@pytest.fixture(scope="module")
def world(vcenters: tuple[Vcenter, Vcenter], tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all tests of this file: their VMs have names of their own."""
    return World(tmp_path_factory.mktemp("world"), *vcenters)


def backed_up(world: World, name: str, *sizes: int) -> str:
    world.make_vm(name, *sizes)
    world.scribble(name, 1)
    point = world.backup(name).point
    assert point is not None
    return point


def mine(world: World, vm: str, **override: object) -> Here:
    return realm(world, overrides={vm: override})


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_that_is_right_costs_no_byte(world: World) -> None:
    point = backed_up(world, "seeded", 16 * MIB, 8 * MIB)
    first, second = held(world, "seeded", point)
    seed(world, "trucks/seeded", b_second=second, a_first=first)
    here = mine(world, "seeded", seed="[ds1] trucks/seeded")
    planned = plan(here, "seeded")
    assert planned.build_replica and planned.bytes == 24 * MIB
    assert all(d.mode == "compare" and d.reason.startswith("seed: ") for d in planned.disks)
    report = sync(here, pair(here, "seeded"))
    assert (report.outcome, report.written, report.read) == ("succeeded", 0, 24 * MIB)
    assert_holds(world, here, pair(here, "seeded"), point)
    files = {disk.file for disk in replica_of(here, pair(here, "seeded")).config.disks}
    assert all("trucks/seeded/" in file for file in files)
    world.scribble("seeded", 2)
    point = world.backup("seeded").point
    assert [d.mode for d in plan(here, "seeded").disks] == ["delta", "delta"]
    sync(here, pair(here, "seeded"))
    assert_holds(world, here, pair(here, "seeded"), point)


def test_of_a_seed_that_is_partly_wrong_only_what_differs_is_written(world: World) -> None:
    point = backed_up(world, "partly", 16 * MIB)
    (data,) = held(world, "partly", point)
    seed(world, "partly", disk=changed(data, 0, MIB, 16 * MIB - 4096))
    here = mine(world, "partly", seed="[ds1] partly")
    assert sync(here, pair(here, "partly")).written == 3 * 4096
    assert_holds(world, here, pair(here, "partly"), point)


@pytest.mark.slow
def test_a_seeded_run_that_dies_compares_again_and_loses_nothing(world: World) -> None:
    """The cursor says from the first moment that every block has to be compared: also to who comes after a crash."""
    point = backed_up(world, "dies", 8 * MIB)
    (data,) = held(world, "dies", point)
    seed(world, "dies", disk=changed(data, 4096, 5 * MIB))
    here = mine(world, "dies", seed="[ds1] dies")
    for step in ("create.after", "slice.synced"):
        run = world.request_sync("dies")
        world.killed_at(run, step, here)
        world.give_up(run.id)
    report = sync(here, pair(here, "dies"))
    assert "compare, 8388608 bytes" in reasons(here, report)
    assert_holds(world, here, pair(here, "dies"), point)


def refused(world: World, here: Here, name: str, error: type[UnderstudyError], words: str) -> None:
    """Before anything is written: no VM of ours is there, and the plan says the same."""
    with pytest.raises(error, match=words):
        plan(here, name)
    with pytest.raises(error, match=words):
        sync(here, pair(here, name))
    assert here.catalogue.pair(pair(here, name).id).replica is None
    with pytest.raises(NotFound):
        world.state(f"{name}_replica", "dr")


def test_a_seed_that_is_missing_or_does_not_fit_is_never_replaced_by_a_full_copy(world: World) -> None:
    point = backed_up(world, "unfit", 8 * MIB)
    (data,) = held(world, "unfit", point)
    here = mine(world, "unfit", seed="[ds1] unfit")
    refused(world, here, "unfit", NotFound, "the seed .* is not there")
    seed(world, "unfit", disk=data + bytes(MIB))
    refused(world, here, "unfit", Refused, f"no disk of {8 * MIB} bytes for Hard disk 1 .*unfit/disk.vmdk")
    named = mine(world, "unfit", seed="[ds1] unfit", disks={"Hard disk 1": "disk.vmdk"})
    refused(world, named, "unfit", Refused, "needs exactly")
    named = mine(world, "unfit", seed="[ds1] unfit", disks={"Hard disk 1": "disc.vmdk"})
    refused(world, named, "unfit", BadInput, "disc.vmdk.*the seed .* has")
    path = world.dr.datastores / "ds1" / "unfit"
    with open(path / "disk-flat.vmdk", "r+b") as file:
        file.truncate(MIB)
    refused(world, here, "unfit", Refused, "not complete")


def test_a_seed_that_a_vm_uses_is_left_alone(world: World) -> None:
    point = backed_up(world, "used", 8 * MIB)
    there = make_there(world, "user", 8 * MIB, content=held(world, "used", point))
    folder = there.config.disks[0].file.rpartition("/")[0]
    refused(world, mine(world, "used", seed=folder), "used", Refused, "is a disk of the VM user")


def test_seeds_of_one_size_go_by_name(world: World) -> None:
    point = backed_up(world, "twins", 8 * MIB, 8 * MIB)
    one, two = held(world, "twins", point)
    seed(world, "twins", a=two, b=one)
    named = {"Hard disk 1": "b.vmdk", "Hard disk 2": "[ds1] twins/a.vmdk"}
    here = mine(world, "twins", seed="[ds1] twins", disks=named)
    assert sync(here, pair(here, "twins")).written == 0
    assert_holds(world, here, pair(here, "twins"), point)


# --- a VM that is there ---------------------------------------------------------------------------------------------


def test_an_existing_vm_becomes_the_replica(world: World) -> None:
    point = backed_up(world, "mapped", 16 * MIB, 8 * MIB)
    one, two = held(world, "mapped", point)
    there = make_there(world, "old-copy", 16 * MIB, 8 * MIB, content=[changed(one, 0, 8 * MIB), two])
    here = mine(world, "mapped", existing="old-copy", overwrite_existing=True)
    planned = plan(here, "mapped")
    assert not planned.build_replica and planned.bytes == 24 * MIB
    assert "old-copy becomes the replica" in planned.disks[0].reason and "lost" in planned.disks[0].reason
    report = sync(here, pair(here, "mapped"))
    assert (report.written, report.read) == (2 * 4096, 24 * MIB)
    assert_holds(world, here, pair(here, "mapped"), point)
    known = here.catalogue.pair(pair(here, "mapped").id)
    assert (known.replica, known.replica_name) == (there.identity.instance_uuid, "old-copy")
    said = reasons(here, report)
    assert "what it holds now is lost" in said and "the source has 2 CPUs, the replica 1" in said
    world.scribble("mapped", 2)
    point = world.backup("mapped").point
    assert [d.mode for d in plan(here, "mapped").disks] == ["delta", "delta"]
    sync(here, pair(here, "mapped"))
    assert_holds(world, here, pair(here, "mapped"), point)


def test_an_existing_vm_by_uuid_whose_disks_are_other_ones(world: World) -> None:
    """By name: disk 1 is its second, which grows. The source's second has none there and is made."""
    point = backed_up(world, "other", 8 * MIB, 12 * MIB, 4 * MIB)
    there = make_there(world, "strange", 12 * MIB, 6 * MIB)
    uuid = there.identity.instance_uuid
    named = {"Hard disk 1": "Hard disk 2"}
    here = mine(world, "other", existing=uuid, overwrite_existing=True, disks=named)
    assert [(c.kind, c.label) for c in plan(here, "other").hardware] == [
        ("grow disk", "Hard disk 1"),
        ("add disk", "Hard disk 3"),
    ]
    sync(here, pair(here, "other"))
    assert here.catalogue.pair(pair(here, "other").id).replica_name == "strange"
    assert len(disks_of(here, pair(here, "other"))) == 3
    assert_holds(world, here, pair(here, "other"), point)


def untouched(world: World, here: Here, name: str, error: type[UnderstudyError], words: str, there: str) -> None:
    disk = world.state(there, "dr").config.disks[0]
    before = flat(world.dr, disk.file).read_bytes()
    with pytest.raises(error, match=words):
        sync(here, pair(here, name))
    state = world.state(there, "dr")
    assert flat(world.dr, disk.file).read_bytes() == before
    assert state.config.disks[0].content_id == disk.content_id
    assert pair(here, name).replica is None


def test_an_existing_vm_is_not_taken_without_consent(world: World) -> None:
    backed_up(world, "asks", 8 * MIB)
    make_there(world, "precious", 8 * MIB)
    here = mine(world, "asks", existing="precious")
    assert "refused until overwrite_existing" in plan(here, "asks").disks[0].reason
    untouched(world, here, "asks", Refused, "set overwrite_existing = true", "precious")
    assert not world.state("precious", "dr").notes
    here = mine(world, "asks", existing="preciosu", overwrite_existing=True)
    untouched(world, here, "asks", NotFound, "did you mean precious.*overrides.asks.existing", "precious")


def test_an_existing_vm_that_runs_or_has_snapshots_is_left_alone(world: World) -> None:
    backed_up(world, "state", 8 * MIB)
    make_there(world, "busy", 8 * MIB)
    here = mine(world, "state", existing="busy", overwrite_existing=True)
    vm = world.vm("busy", "dr")
    world.target.wait(vm.PowerOnVM_Task())
    untouched(world, here, "state", Refused, "busy is running", "busy")
    world.target.wait(vm.PowerOffVM_Task())
    world.target.wait(vm.CreateSnapshot_Task(name="mine", memory=False, quiesce=False))
    untouched(world, here, "state", Refused, "has the snapshot 'mine'", "busy")


def test_an_existing_vm_that_has_a_purpose_is_left_alone(world: World) -> None:
    point = backed_up(world, "wants", 8 * MIB)
    backed_up(world, "has", 8 * MIB)
    theirs = realm(world)
    sync(theirs, pair(theirs, "has"))
    here = mine(world, "wants", existing="has_replica", overwrite_existing=True)
    untouched(world, here, "wants", Foreign, "is the replica of another VM", "has_replica")
    bare = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key=CURSOR, value="")])
    world.target.wait(world.vm("has_replica", "dr").ReconfigVM_Task(bare))
    untouched(world, here, "wants", Foreign, "the replica of another pair already", "has_replica")
    make_there(world, "protected", 8 * MIB)
    here = mine(world, "wants", existing="protected", overwrite_existing=True)
    back = here.settings.groups["all"].model_copy(update={"source": "dr", "target": None, "vms": ("protected",)})
    both = {**here.settings.groups, "back": back}
    guarded = Here(here.settings.model_copy(update={"groups": both}), here.catalogue)
    untouched(world, guarded, "wants", Refused, "itself under a policy .back.", "protected")
    assert sync(here, pair(here, "wants")).outcome == "succeeded"
    assert_holds(world, here, pair(here, "wants"), point)


def test_an_existing_vm_whose_disks_do_not_fit_is_left_alone(world: World) -> None:
    backed_up(world, "fits", 8 * MIB)
    make_there(world, "larger", 12 * MIB)
    make_there(world, "more", 8 * MIB, 4 * MIB)
    here = mine(world, "fits", existing="larger", overwrite_existing=True)
    untouched(world, here, "fits", Refused, "fits no disk of the source", "larger")
    named = {"Hard disk 1": "Hard disk 1"}
    here = mine(world, "fits", existing="larger", overwrite_existing=True, disks=named)
    untouched(world, here, "fits", Refused, "can not be made smaller", "larger")
    here = mine(world, "fits", existing="more", overwrite_existing=True)
    untouched(world, here, "fits", Refused, "Hard disk 2 .* fits no disk", "more")


@pytest.mark.slow
def test_a_run_that_dies_while_it_takes_a_vm_over_is_gone_on_with(world: World) -> None:
    point = backed_up(world, "crash", 8 * MIB)
    there = make_there(world, "crashed", 8 * MIB)
    here = mine(world, "crash", existing="crashed", overwrite_existing=True)
    for step in ("takeover.before", "takeover.after", "slice.synced"):
        run = world.request_sync("crash")
        world.killed_at(run, step, here)
        world.give_up(run.id)
    sync(here, pair(here, "crash"))
    assert_holds(world, here, pair(here, "crash"), point)
    assert here.catalogue.pair(pair(here, "crash").id).replica == there.identity.instance_uuid


def test_who_boots_the_existing_vm_while_it_is_taken_over_keeps_their_data(world: World) -> None:
    backed_up(world, "boot", 8 * MIB)
    make_there(world, "booted", 8 * MIB)
    here = mine(world, "boot", existing="booted", overwrite_existing=True)
    run = world.request_sync("boot")
    world.killed_at(run, "takeover.after", here)
    world.give_up(run.id)
    vm = world.vm("booted", "dr")
    world.target.wait(vm.PowerOnVM_Task())
    world.target.wait(vm.PowerOffVM_Task())
    disk = world.state("booted", "dr").config.disks[0]
    before = flat(world.dr, disk.file).read_bytes()
    with pytest.raises(Touched, match="changed by somebody else"):
        sync(here, pair(here, "boot"))
    assert flat(world.dr, disk.file).read_bytes() == before
