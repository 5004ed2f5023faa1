"""Where replicas go: mappings, several recovery targets, one vCenter on both sides. Judged byte for byte."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from tests.integration.places import (
    SMALL,
    assert_holds,
    disks_of,
    make_there,
    pair,
    pairs,
    realm,
    reasons,
    replica_of,
    sync,
)
from tests.integration.world import MIB, Vcenter, World
from workers import backup, check, dispatch, replicate, status
from workers.errors import BadInput, ConfigError, Foreign, NotFound, Refused
from workers.models import RunState, Trigger
from workers.run import Here
from workers.settings import Schedule


@pytest.fixture(scope="module")
def world(vcenters: tuple[Vcenter, Vcenter], tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all tests of this file: their VMs have names of their own."""
    return World(tmp_path_factory.mktemp("world"), *vcenters)


def with_card(world: World, name: str, *sizes: int, network: str = "VM Network") -> None:
    world.make_vm(name, *sizes)
    backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network)
    card = vim.vm.device.VirtualVmxnet3(key=-1, backing=backing, addressType="generated")
    world._reconfigure(name, vim.vm.device.VirtualDeviceSpec(operation="add", device=card))


def backed_up(world: World, name: str, *sizes: int) -> str:
    with_card(world, name, *sizes)
    world.scribble(name, 1)
    point = world.backup(name).point
    assert point is not None
    return point


# --- mappings -------------------------------------------------------------------------------------------------------


def test_disks_cards_folder_and_pool_go_where_the_target_and_the_override_say(world: World) -> None:
    point = backed_up(world, "mapped", 8 * MIB, 4 * MIB)
    s = world.target
    datacenter = s.read(s.content.rootFolder, "childEntity")["childEntity"][0]
    datacenter.vmFolder.CreateFolder("Replicas").CreateFolder("Web")
    cluster = next(f for f in s.read_all({vim.ClusterComputeResource: ("name", "resourcePool", "host")}))
    shares = vim.SharesInfo(level="normal", shares=1)
    limits = vim.ResourceAllocationInfo(reservation=0, limit=-1, expandableReservation=True, shares=shares)
    spec = vim.ResourceConfigSpec(cpuAllocation=limits, memoryAllocation=limits)
    cluster.values["resourcePool"].CreateResourcePool("Standby", spec)
    host = s.read(cluster.values["host"][0], "name")["name"]
    target = {
        "site": "dr",
        "datastore": "ds1",
        "datastores": {"ds1": "ds2"},
        "folder": "Replicas/Web",
        "pool": "Standby",
        "compute": cluster.values["name"],
        "networks": {"VM Network": "DR Network"},
        "provisioning": "eager",
        "suffix": "-standby",
    }
    override = {"compute": host, "excluded_disks": ["Hard disk 2"], "targets": {"mapped": {"networks": {"*": ""}}}}
    here = realm(world, {"mapped": target}, target="mapped", overrides={"mapped": override})
    (found,) = [f for f in check.targets(here.settings, ["dr"]) if f.what == "target mapped"]
    assert found.result == "ok", found
    sync(here, pair(here, "mapped"))
    vm = replica_of(here, pair(here, "mapped"))
    assert vm.identity.name == "mapped-standby" and vm.vmx.startswith("[ds1]") and vm.host == host
    (disk,) = disks_of(here, pair(here, "mapped")).values()
    assert disk.file.startswith("[ds2]") and disk.eager
    assert [(nic.network, nic.connected) for nic in vm.config.nics] == [("DR Network", True)]
    seen = s.read(s.vm(vm.identity.moref), "parent", "resourcePool")
    names = [s.read(seen[key], "name")["name"] for key in ("parent", "resourcePool")]
    assert names == ["Web", "Standby"]
    assert_holds(world, here, pair(here, "mapped"), point)


def test_what_a_changed_target_does_to_a_replica_that_is_there(world: World) -> None:
    """Added disks and excluded disks follow at once; the rest is said, in words, and left."""
    backed_up(world, "later", 8 * MIB)
    here = realm(world)
    sync(here, pair(here, "later"))
    world.add_disk("later", 4 * MIB)
    world.scribble("later", 2)
    point = world.backup("later").point
    changes = {"datastores": {"*": "ds2"}, "provisioning": "thick", "networks": {"VM Network": "VM Network"}}
    here = realm(world, {"recovery": {"site": "dr", "datastore": "ds1", **changes}})
    report = sync(here, pair(here, "later"))
    first, added = (disks_of(here, pair(here, "later"))[disk.id] for disk in world.disks("later"))
    assert first.file.startswith("[ds1]") and first.thin
    assert added.file.startswith("[ds2]") and not added.thin
    said = reasons(here, report)
    assert "Hard disk 1 is on ds1, the configuration says ds2" in said
    assert "Hard disk 1 of the replica is thin, the configuration says thick" in said
    assert "a card of VM Network is in DR Network there, the configuration says VM Network" in said
    assert_holds(world, here, pair(here, "later"), point)


def test_zeroes_do_not_take_a_thick_disks_space_back(world: World) -> None:
    world.make_vm("thick", 8 * MIB)
    world.write("thick", 0, b"x" * 4 * MIB)
    world.backup("thick")
    here = realm(world, {"recovery": {"site": "dr", "datastore": "ds1", "provisioning": "thick"}})
    sync(here, pair(here, "thick"))
    world.write("thick", 0, bytes(4 * MIB))
    point = world.backup("thick").point
    sync(here, pair(here, "thick"))
    (disk,) = disks_of(here, pair(here, "thick")).values()
    assert_holds(world, here, pair(here, "thick"), point)
    base = disk.parent or disk.file
    file = world.dr.datastores / "ds1" / base.partition("] ")[2].replace(".vmdk", "-flat.vmdk")
    assert file.stat().st_blocks * 512 >= 4 * MIB


def test_check_names_the_place_that_is_not_there(world: World) -> None:
    place = {"site": "dr", "datastore": "ds1"}
    wrong = {
        "a": {"datastores": {"*": "ds7"}},
        "b": {"folder": "Nowhere"},
        "c": {"networks": {"x": "Moon", "y": ""}},
    }
    override = {
        "web-01": {"targets": {"recovery": {"compute": "no-host"}}},
        "web-02": {"pool": "no-pool"},
        "web-03": {"existing": "no-vm"},
        "web-04": {"seed": "[ds1] no-seed"},
    }
    here = realm(world, {key: {**place, **more} for key, more in wrong.items()}, overrides=override)
    found = {f.what: f for f in check.targets(here.settings, ["dr"])}
    assert {what for what, f in found.items() if f.result == "failed"} == found.keys() - {"target recovery"}
    assert "ds7" in found["target a"].sentence and "Nowhere" in found["target b"].sentence
    assert "Moon" in found["target c"].sentence
    assert "no-host" in found["overrides web-01 (recovery)"].sentence
    assert "no-pool" in found["overrides web-02 (recovery)"].sentence
    assert "no VM 'no-vm'" in found["overrides web-03 (recovery)"].sentence
    assert "the seed [ds1] no-seed is not there" in found["overrides web-04 (recovery)"].sentence


def test_a_datastore_that_is_not_mounted_is_said_before_a_replica_is_made_there(world: World) -> None:
    backed_up(world, "unmounted", SMALL)
    here = realm(world, {"recovery": {"site": "dr", "datastore": "ds1", "datastores": {"*": "ds2"}}})
    site = here.settings.sites["dr"].model_copy(update={"datastores": {"ds1": world.dr.datastores / "ds1"}})
    sites = {**here.settings.sites, "dr": site}
    here = Here(here.settings.model_copy(update={"sites": sites}), here.catalogue)
    with pytest.raises(ConfigError, match="datastore ds2, which is not among"):
        sync(here, pair(here, "unmounted"))
    with pytest.raises(NotFound):
        world.state("unmounted_replica", "dr")


# --- several targets ------------------------------------------------------------------------------------------------

FAR = {"far": {"site": "dr", "datastore": "ds2", "suffix": "_far"}}


def test_one_source_with_several_targets_is_backed_up_once(world: World) -> None:
    point = backed_up(world, "many", 8 * MIB)
    here = realm(world, FAR, target=["recovery", "far"])
    both = pairs(here, "many")
    assert set(both) == {"recovery", "far"} and len({p.id for p in both.values()}) == 2
    sync(here, both["recovery"])
    world.scribble("many", 2)
    newest = world.backup("many").point
    sync(here, both["far"])
    assert_holds(world, here, both["recovery"], point)
    assert_holds(world, here, both["far"], newest)
    uuid = both["far"].source
    assert {p: len(h) for p, h in world.store.pins(uuid).items()} == {point: 1, newest: 1}
    lines = {line.recovery_target: line.state for line in status.overview(here, ["many"])}
    assert lines == {"recovery": status.State.NEEDS_SYNC, "far": status.State.IN_SYNC}
    sync(here, both["recovery"])
    assert_holds(world, here, both["recovery"], newest)
    assert [m.target for m in dispatch.replicated(here, "many")] == ["recovery", "far"]
    assert [m.target for m in dispatch.replicated(here, "many", "far")] == ["far"]
    with pytest.raises(BadInput, match="no recovery target 'near'; it has far, recovery"):
        dispatch.replicated(here, "many", "near")
    fences = {here.catalogue.fence(replicate.target_of(p.id)) for p in both.values()}
    assert fences == {1, 2}


def test_a_tick_backs_up_once_and_replicates_to_each_target(world: World) -> None:
    world.make_vm("tick", SMALL)
    here = realm(world, FAR, target=["recovery", "far"], vms=["tick"], backup=Schedule(every="1h", jitter="none"))
    (first,) = dispatch.dispatch(here, here.catalogue.now())
    world.scribble("tick", 1)
    point = backup.run(here, first.id).point
    made = dispatch.after_backup(here, pairs(here, "tick")["far"].source, "main", point)
    assert len({run.target for run in made}) == 2
    assert dispatch.dispatch(here, here.catalogue.now()) == []


def test_a_target_that_fails_does_not_keep_the_others_waiting(world: World) -> None:
    backed_up(world, "partial", SMALL)
    make_there(world, "partial_replica", SMALL)
    here = realm(world, FAR, target=["recovery", "far"])
    both = pairs(here, "partial")
    with pytest.raises(Foreign):
        sync(here, both["recovery"])
    assert sync(here, both["far"]).outcome == "succeeded"
    lines = {line.recovery_target: line.state for line in status.overview(here, ["partial"])}
    assert lines == {"recovery": status.State.QUARANTINED, "far": status.State.IN_SYNC}
    # A target that can not even have a pair: the others' runs are made all the same.
    twin = {"a-twin": {"site": "dr", "datastore": "ds2"}, **FAR}
    here = realm(world, twin, target=["recovery", "a-twin", "far"])
    point = world.backup("partial").point
    made = dispatch.after_backup(here, both["far"].source, "main", point or "")
    assert [run.target for run in made][-1] == replicate.target_of(both["far"].id)
    with pytest.raises(ConfigError, match="recovery and a-twin would both have a replica partial_replica"):
        pairs(here, "partial")


# --- one vCenter on both sides --------------------------------------------------------------------------------------

NEAR = {"near": {"site": "prod", "datastore": "ds1", "networks": {"*": "VM Network"}}}


def test_a_pair_within_one_vcenter_has_names_addresses_and_uuids_of_its_own(world: World) -> None:
    point = backed_up(world, "local", 8 * MIB, 4 * MIB)
    here = realm(world, NEAR, target="near")
    report = sync(here, pair(here, "local"))
    source, copy = world.state("local"), replica_of(here, pair(here, "local"))
    assert copy.identity.site == "prod" and copy.identity.name == "local_replica"
    assert copy.identity.bios_uuid != source.identity.bios_uuid
    assert copy.identity.instance_uuid != source.identity.instance_uuid
    assert not {nic.mac for nic in source.config.nics} & {nic.mac for nic in copy.config.nics}
    assert not {d.id for d in source.config.disks} & {d.id for d in copy.config.disks}
    assert not {d.file for d in source.config.disks} & {d.file for d in copy.config.disks}
    assert source.vmx.rpartition("/")[0] != copy.vmx.rpartition("/")[0]
    assert "BIOS UUID of its own" in reasons(here, report)
    assert_holds(world, here, pair(here, "local"), point)
    world.scribble("local", 2)
    point = world.backup("local").point
    sync(here, pair(here, "local"))
    assert_holds(world, here, pair(here, "local"), point)


@pytest.mark.parametrize(("network", "kept"), [("VM Network", False), ("DR Network", True)])
def test_addresses_are_kept_within_one_vcenter_only_in_another_network(world: World, network: str, kept: bool) -> None:
    name = f"mac-{'kept' if kept else 'new'}"
    backed_up(world, name, SMALL)
    near = {"near": {**NEAR["near"], "networks": {"*": network}, "keep_macs": True}}
    here = realm(world, near, target="near")
    sync(here, pair(here, name))
    (mine,), (theirs,) = world.state(name).config.nics, replica_of(here, pair(here, name)).config.nics
    assert (mine.mac == theirs.mac) is kept


def test_addresses_are_kept_at_another_vcenter_unless_the_target_says_no(world: World) -> None:
    backed_up(world, "mac-far", SMALL)
    target = {"site": "dr", "datastore": "ds1", "networks": {"*": "DR Network"}}
    two = {"keeps": {**target, "suffix": "_k"}, "renews": {**target, "suffix": "_r", "keep_macs": False}}
    here = realm(world, two, target=["keeps", "renews"])
    for each in pairs(here, "mac-far").values():
        sync(here, each)
    (mine,) = world.state("mac-far").config.nics
    found = {key: replica_of(here, each).config.nics[0].mac for key, each in pairs(here, "mac-far").items()}
    assert found["keeps"] == mine.mac != found["renews"]


def test_a_name_that_is_taken_within_one_vcenter_is_a_sentence(world: World) -> None:
    backed_up(world, "named", SMALL)
    bare = {"near": {**NEAR["near"], "suffix": ""}}
    with pytest.raises(ConfigError, match="the same name at the same site prod"):
        pair(realm(world, bare, target="near"), "named")
    itself = {"existing": world.state("named").identity.instance_uuid, "overwrite_existing": True}
    here = realm(world, NEAR, target="near", overrides={"named": itself})
    with pytest.raises(Refused, match="named is named itself"):
        sync(here, pair(here, "named"))
    world.make_vm("taken", SMALL)
    here = realm(world, NEAR, target="near", overrides={"named": {"name": "taken"}})
    with pytest.raises(Foreign, match="a VM named taken is already at site prod"):
        sync(here, pair(here, "named"))


def test_a_replica_that_its_pair_does_not_know_yet_is_no_member(world: World) -> None:
    """The run died between the VM and the catalogue, and the inventory was read: the pattern * matches the copy."""
    backed_up(world, "early", SMALL)
    here = realm(world, NEAR, target="near")
    run = dispatch.request_sync(here, pair(here, "early"), Trigger.AD_HOC)[0]
    world.killed_at(run, "create.after", here)
    world.give_up(run.id)
    world.discover()
    assert here.catalogue.pair(pair(here, "early").id).replica is None
    assert "early_replica" in {vm.identity.name for vm in here.catalogue.inventory("prod")}
    assert "early_replica" not in {member.vm.identity.name for member in dispatch.members(here)}
    with pytest.raises(NotFound):
        dispatch.find(here, "early_replic")
    sync(here, pair(here, "early"))
    assert here.catalogue.run(run.id).state is RunState.FAILED
    assert "early_replica" not in {member.vm.identity.name for member in dispatch.members(here)}
