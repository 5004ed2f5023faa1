"""A VM through an encrypted store, from its backup to its replica: byte for byte, and nothing of it in plain sight."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.integration.world import MIB, World
from workers import backup, dispatch, replicate, restore_points, store_keys
from workers.errors import WrongKey
from workers.models import RunState, Trigger
from workers.run import Here
from workers.settings import Group, StoreSettings
from workers.store import Store, keyring


def test_backed_up_replicated_and_the_key_exchanged_between(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The replica follows by difference after the store got another key; a worker without that key touches nothing."""
    caplog.set_level("DEBUG")
    old, new = world.folder / "store-key", world.folder / "store-key-2"
    store_keys.new(old)
    world.make_vm("sealed", 16 * MIB)
    here = realm(world, old)
    place = here.settings.store("sealed")
    Store.create(place.path, place.key())

    world.scribble("sealed", 1)
    first = backed_up(world, here)
    world.assert_replica_is("sealed", first)
    store_keys.new(new)
    store_keys.add(here.settings, "sealed", new)
    stale, here = here, realm(world, new)
    assert store_keys.finish(here.settings, "sealed").ended == (keyring.key_id(bytes.fromhex(old.read_text())),)
    world.scribble("sealed", 2)
    refused = requested(stale)
    with pytest.raises(WrongKey, match="does not open it"):
        backup.run(stale, refused)
    assert world.catalogue.run(refused).family == "wrong key"
    world.assert_replica_is("sealed", first)
    second = backed_up(world, here)
    world.assert_replica_is("sealed", second)
    assert {point.id for point in restore_points.kept(here, "sealed")} >= {first, second}

    files = [file for file in (*place.path.rglob("*"), *world.folder.glob("catalogue*")) if file.is_file()]
    shown = {file: file.read_bytes() for file in files} | {Path("log"): caplog.text.encode()}
    for key in (bytes.fromhex(file.read_text()) for file in (old, new)):
        for form in (key, key.hex().encode(), base64.b64encode(key), repr(key)[2:-1].encode()):
            assert [file for file, text in shown.items() if form in text] == []


def realm(world: World, key_file: Path) -> Here:
    """One more store, encrypted, and a group that uses it."""
    group = {"source": "prod", "vms": ("sealed",), "store": "sealed", "target": "recovery"}
    changes = {
        "stores": {"sealed": StoreSettings(path=world.folder / "sealed", key_file=key_file)},
        "groups": {"all": Group.model_validate(group)},
    }
    return Here(world.settings.model_copy(update=changes), world.catalogue)


def requested(here: Here) -> str:
    (member,) = dispatch.find(here, "sealed")
    return dispatch.request_backup(here, member, Trigger.AD_HOC)[0].id


def backed_up(world: World, here: Here) -> str:
    """And replicated: the restore point."""
    report = backup.run(here, requested(here))
    assert report.point is not None, report
    world.keep("sealed", report)
    (member,) = dispatch.find(here, "sealed")
    pair = dispatch.pair_of(here, member)
    assert pair is not None
    run, _ = dispatch.request_sync(here, pair, Trigger.AD_HOC)
    replicate.run(here, run.id)
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED
    return report.point
