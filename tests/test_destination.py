"""Where a replica goes: who says what, and which disk belongs to which. Tables."""

from __future__ import annotations

from typing import Any

import pytest

from workers.destination import (
    Destination,
    datastore_for,
    destination,
    differences,
    macs,
    match_disks,
    match_seeds,
    provisioned,
)
from workers.errors import BadInput, Refused, UnderstudyError
from workers.models import Disk, Nic, VmConfig
from workers.settings import RecoveryTarget, VmOverride

TARGET = {"site": "dr", "datastore": "ds1"}


def disk(number: int, capacity: int = 8, **more: Any) -> Disk:
    given = {"id": f"id-{number}", "key": 2000 + number, "label": f"Hard disk {number}", "capacity": capacity}
    return Disk.model_validate({**given, "controller": 1000, "unit": number, "file": "[src] vm/vm.vmdk", **more})


def effective(target: dict[str, Any], override: dict[str, Any]) -> Destination:
    place = RecoveryTarget.model_validate({**TARGET, **target})
    return destination(place, VmOverride.model_validate(override), "t", "web")


@pytest.mark.parametrize(
    ("target", "override", "wanted"),
    [
        pytest.param({}, {}, {"name": "web_replica", "provisioning": "thin", "keep_macs": None}, id="defaults"),
        pytest.param({"prefix": "dr-", "suffix": ""}, {}, {"name": "dr-web"}, id="prefix"),
        pytest.param({}, {"name": "w"}, {"name": "w"}, id="a name"),
        pytest.param({}, {"targets": {"t": {"name": "w"}, "u": {"name": "x"}}}, {"name": "w"}, id="a name there"),
        pytest.param({}, {"name": "w", "targets": {"u": {"name": "x"}}}, {"name": "w"}, id="another target's"),
        pytest.param(
            {"compute": "c"}, {"compute": "h", "targets": {"t": {"compute": "i"}}}, {"compute": "i"}, id="three"
        ),
        pytest.param({"pool": "p", "folder": "f"}, {"pool": ""}, {"pool": "", "folder": "f"}, id="back to the top"),
        pytest.param(
            {"networks": {"a": "1", "*": "2"}},
            {"networks": {"b": "3"}, "targets": {"t": {"networks": {"a": ""}}}},
            {"networks": {"a": "", "b": "3", "*": "2"}},
            id="networks are joined",
        ),
        pytest.param(
            {"datastores": {"*": "x"}},
            {"datastores": {"src": "y"}},
            {"datastores": {"*": "x", "src": "y"}},
            id="stores",
        ),
        pytest.param({"provisioning": "eager"}, {"provisioning": "original"}, {"provisioning": "original"}, id="disks"),
        pytest.param({"keep_macs": True}, {"keep_macs": False}, {"keep_macs": False}, id="no is an answer"),
        pytest.param(
            {},
            {"existing": "old", "targets": {"t": {"seed": "[ds1] x"}}},
            {"existing": None, "seed": "[ds1] x"},
            id="one beginning",
        ),
        pytest.param({}, {"excluded_disks": ["a"]}, {"excluded_disks": ("a",)}, id="excluded"),
    ],
)
def test_the_nearest_to_the_vm_says(target: dict[str, Any], override: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = effective(target, override).model_dump()
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("datastores", "wanted"),
    [({}, ""), ({"src": "a", "*": "b"}, "a"), ({"other": "a", "*": "b"}, "b"), ({"x": "a"}, "")],
)
def test_a_disks_datastore(datastores: dict[str, str], wanted: str) -> None:
    assert datastore_for(disk(1), datastores) == wanted


@pytest.mark.parametrize(
    ("how", "of", "wanted"),
    [
        ("original", {"thin": True}, "thin"),
        ("original", {"thin": False}, "thick"),
        ("original", {"thin": False, "eager": True}, "eager"),
        ("thin", {"thin": False}, "thin"),
        ("eager", {"thin": True}, "eager"),
    ],
)
def test_how_a_disk_is_made(how: Any, of: dict[str, bool], wanted: str) -> None:
    assert provisioned(disk(1, **of), how) == wanted


@pytest.mark.parametrize(
    ("keep", "networks", "same", "kept"),
    [
        (None, {}, False, True),
        (False, {}, False, False),
        (None, {"*": "there"}, True, False),
        (True, {"*": "there"}, True, True),
        (True, {}, True, False),
        (True, {"lan": "lan"}, True, False),
        (True, {"lan": ""}, True, True),
    ],
)
def test_which_addresses_are_kept(keep: bool | None, networks: dict[str, str], same: bool, kept: bool) -> None:
    nic = Nic(kind="vmxnet3", key=4000, network="lan", mac="00:50:56:00:00:01")
    (found,) = macs([nic], Destination(name="x", datastore="d", keep_macs=keep, networks=networks), same_vcenter=same)
    assert (found.mac == nic.mac) is kept


@pytest.mark.parametrize(
    ("wanted", "have", "named", "found"),
    [
        pytest.param([8, 8], [8, 8], {}, {"id-1": 11, "id-2": 12}, id="in order"),
        pytest.param([8, 4], [4, 8], {}, {"id-1": 12, "id-2": 11}, id="by size"),
        pytest.param([8, 8], [8, 8], {"Hard disk 1": "id-12"}, {"id-1": 12, "id-2": 11}, id="as named"),
        pytest.param([8, 4], [8], {}, {"id-1": 11}, id="one has to be made"),
        pytest.param([8], [6], {"id-1": "Hard disk 11"}, {"id-1": 11}, id="grows, when named"),
        pytest.param([8], [6], {}, "Hard disk 11 (6 bytes), which fits no disk", id="does not grow by itself"),
        pytest.param([8], [8, 8], {}, "Hard disk 12 (8 bytes), which fits no disk", id="too many"),
        pytest.param([8], [9], {"id-1": "id-11"}, "can not be made smaller", id="too large"),
        pytest.param(
            [8], [8], {"Hard disk 7": "id-11"}, "'Hard disk 7', which is no disk of the restore", id="no source"
        ),
        pytest.param([8, 8], [8], {"id-1": "id-11", "id-2": "id-11"}, "'id-11', which is no disk of there", id="twice"),
    ],
)
def test_which_disk_is_whose(wanted: list[int], have: list[int], named: dict[str, str], found: Any) -> None:
    source = [disk(1 + n, size) for n, size in enumerate(wanted)]
    there = [disk(11 + n, size) for n, size in enumerate(have)]
    if isinstance(found, str):
        with pytest.raises((Refused, BadInput)) as told:
            match_disks(source, there, named, where="there", key="overrides.web")
        assert found in str(told.value) and "nothing was written" in str(told.value)
        return
    matched = match_disks(source, there, named, where="there", key="overrides.web")
    assert {key: int(one.id.removeprefix("id-")) for key, one in matched.items()} == found


@pytest.mark.parametrize(
    ("files", "named", "found"),
    [
        pytest.param({"b": 8, "a": 4}, {}, {"id-1": "b", "id-2": "a"}, id="by size"),
        pytest.param({"a": 8, "b": 8, "c": 4}, {}, {"id-1": "a", "id-2": "c"}, id="one is not needed"),
        pytest.param({"a": 8, "b": 8, "c": 4}, {"Hard disk 1": "b"}, {"id-1": "b", "id-2": "c"}, id="as named"),
        pytest.param({"a": 8}, {}, "no disk of 4 bytes for Hard disk 2", id="one is missing"),
        pytest.param({"a": 8, "b": 4}, {"id-1": "b"}, "needs exactly 8", id="wrong size"),
        pytest.param({"a": 8, "b": 4}, {"id-1": "z"}, "names 'z'; the seed [ds1] s has", id="no such file"),
    ],
)
def test_which_seed_is_whose(files: dict[str, int], named: dict[str, str], found: Any) -> None:
    there = {f"[ds1] s/{name}": size for name, size in files.items()}
    source = [disk(1, 8), disk(2, 4)]
    if isinstance(found, str):
        with pytest.raises(UnderstudyError) as told:
            match_seeds(source, there, named, folder="[ds1] s", key="overrides.web")
        assert found in str(told.value)
        return
    matched = match_seeds(source, there, named, folder="[ds1] s", key="overrides.web")
    assert {key: file.removeprefix("[ds1] s/") for key, file in matched.items()} == found


def test_what_a_sync_leaves_as_it_is_is_said_and_nothing_else() -> None:
    given = {"name": "v", "guest_id": "g", "hardware_version": "vmx-19", "cpus": 2, "memory_mib": 64}
    nic = Nic(kind="vmxnet3", key=4000, network="lan", mac="m")
    source = VmConfig.model_validate({**given, "disks": (disk(1),), "nics": (nic,)})
    copy = disk(1, file="[ds1] r/r.vmdk")
    place = Destination(name="x", datastore="ds1")
    assert list(differences(place, source, source, {"id-1": copy})) == []
    other = source.model_copy(update={"cpus": 4, "memory_mib": 128, "firmware": "efi"})
    strict = place.model_copy(update={"networks": {"*": "dr"}, "datastores": {"*": "ds2"}, "provisioning": "thick"})
    said = list(differences(strict, source, other, {"id-1": copy}))
    assert len(said) == 6
    assert all("vCenter" in sentence for sentence in said)
    fewer = source.model_copy(update={"nics": ()})
    assert [s for s in differences(strict, source, fewer, {})] == [
        "the source has 1 network cards, the replica 0: a sync changes disks only. Change it on the replica in "
        "vCenter, or remove the replica to have it built anew"
    ]
