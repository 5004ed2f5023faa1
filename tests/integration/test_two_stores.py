"""One VM in several groups: two stores, one recovery target, one replica's name. And one in an encrypted store."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest

from tests.integration.world import MIB, World
from workers import backup, dispatch, replicate, restore_points, status, store_keys
from workers.errors import ConfigError, Foreign, WrongKey
from workers.models import RunKind, RunState, Trigger
from workers.run import Here
from workers.settings import Group, RecoveryTarget, StoreSettings
from workers.store import Store, keyring


def with_groups(world: World, **groups: dict[str, str]) -> Here:
    """The realm with a second store, a second recovery target and these groups."""
    second = StoreSettings(path=world.folder / "second")
    Store.create(second.path)
    found = {name: Group.model_validate({"source": "prod", "vms": ("*",), **given}) for name, given in groups.items()}
    changes = {
        "stores": {**world.settings.stores, "second": second},
        "targets": {**world.settings.targets, "other": RecoveryTarget(site="dr", datastore="ds2")},
        "groups": found,
    }
    return Here(world.settings.model_copy(update=changes), world.catalogue)


def test_two_backups_of_a_vm_never_take_each_others_snapshot(world: World) -> None:
    """A snapshot that is taken away is a backup that starts again; two that take it from each other never end."""
    world.make_vm("both", 16 * MIB)
    world.scribble("both", 1)
    here = with_groups(world, one={"store": "main"}, two={"store": "second"})
    runs = [dispatch.request_backup(here, member, Trigger.AD_HOC)[0] for member in dispatch.find(here, "both")]
    assert len({run.target for run in runs}) == 2
    world.killed_at(runs[0], "snapshot.after")
    waiting = backup.run(here, runs[1].id)
    assert waiting.outcome == "waiting"
    assert runs[0].id in waiting.reason
    assert len(world.state("both").snapshots) == 1
    assert world.catalogue.run(runs[1].id).state is RunState.QUEUED
    first = backup.run(here, runs[0].id)
    assert first.outcome == "succeeded"
    assert not any("started again" in reason for reason in world.catalogue.run(first.run).reasons)
    world.expire_lease(runs[1])  # the pause is over
    assert backup.run(here, runs[1].id).outcome == "succeeded"
    assert world.state("both").snapshots == ()


def test_two_backups_of_a_vm_at_the_same_moment(world: World) -> None:
    world.make_vm("same", 16 * MIB)
    world.scribble("same", 1)
    here = with_groups(world, one={"store": "main"}, two={"store": "second"})
    runs = [dispatch.request_backup(here, member, Trigger.AD_HOC)[0] for member in dispatch.find(here, "same")]

    def work(run_id: str) -> None:
        while world.catalogue.run(run_id).live:
            world.expire_lease(world.catalogue.run(run_id)) if world.catalogue.run(run_id).owner is None else None
            backup.run(here, run_id)

    threads = [threading.Thread(target=work, args=(run.id,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [world.catalogue.run(run.id).state for run in runs] == [RunState.SUCCEEDED] * 2
    for run in runs:
        assert not any("started again" in reason for reason in world.catalogue.run(run.id).reasons)


def test_one_replica_of_two_stores_is_refused_and_said(world: World) -> None:
    """The pair would change its store at every tick, and compare the whole replica each time."""
    world.make_vm("torn", 8 * MIB)
    here = with_groups(
        world, one={"store": "main", "target": "recovery"}, two={"store": "second", "target": "recovery"}
    )
    member = dispatch.find(here, "torn")[0]
    with pytest.raises(ConfigError, match=r"main.*second"):
        dispatch.pair_of(here, member)
    assert world.catalogue.pairs("torn") == []
    (line,) = (line for line in status.overview(here, ["torn"]) if line.store == "main")
    assert any("second" in sentence for sentence in line.troubles)


def test_a_backup_is_still_sent_when_its_pair_is_refused(world: World) -> None:
    world.make_vm("sent", 8 * MIB)
    every = {"backup": {"every": "1h", "jitter": "none"}, "target": "recovery"}
    here = with_groups(world, one={"store": "main", **every}, two={"store": "second", **every})
    fresh = dispatch.dispatch(here, world.catalogue.now())
    assert sorted(run.target.split(":")[1] for run in fresh if run.vm == "sent") == ["main", "second"]
    assert {run.kind for run in fresh} == {RunKind.BACKUP}


def test_two_targets_with_the_same_replica_name_say_whose_it_is(world: World) -> None:
    world.make_vm("name", 8 * MIB)
    world.backup("name")
    world.sync("name")
    here = with_groups(world, one={"store": "main", "target": "recovery"}, two={"store": "main", "target": "other"})
    with pytest.raises(ConfigError, match="recovery and other would both have a replica name_replica"):
        dispatch.pair_of(here, next(m for m in dispatch.find(here, "name") if m.target == "other"))
    # The replica may stay when its target goes from the configuration.
    here = with_groups(world, two={"store": "main", "target": "other"})
    (second,) = dispatch.find(here, "name")
    pair = dispatch.pair_of(here, second)
    assert pair is not None
    run, _ = dispatch.request_sync(here, pair, Trigger.AD_HOC)
    with pytest.raises(Foreign, match="another recovery target"):
        replicate.run(here, run.id)


# --- an encrypted one ----------------------------------------------------------------------------------------------


def test_through_an_encrypted_store_whose_key_is_exchanged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The replica follows by difference after the store got another key; a worker without that key touches nothing."""
    caplog.set_level("DEBUG")
    old, new = world.folder / "store-key", world.folder / "store-key-2"
    store_keys.new(old)
    world.make_vm("sealed", 16 * MIB)
    here = with_a_key(world, old)
    place = here.settings.store("sealed")
    Store.create(place.path, place.key())

    world.scribble("sealed", 1)
    first = backed_up(world, here)
    world.assert_replica_is("sealed", first)
    store_keys.new(new)
    store_keys.add(here.settings, "sealed", new)
    stale, here = here, with_a_key(world, new)
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


def with_a_key(world: World, key_file: Path) -> Here:
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
