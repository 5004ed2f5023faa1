"""One VM in several groups: two stores, one recovery target, one replica's name."""

from __future__ import annotations

import threading

import pytest

from tests.integration.world import MIB, World
from workers import backup, dispatch, status
from workers.errors import ConfigError, Foreign
from workers.models import RunKind, RunState, Trigger
from workers.run import Here
from workers.settings import Group, RecoveryTarget, StoreSettings
from workers.store import Store


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
    from workers import replicate

    with pytest.raises(Foreign, match="another recovery target"):
        replicate.run(here, run.id)
