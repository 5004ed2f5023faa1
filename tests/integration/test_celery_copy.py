"""A backup sets off a copy, the copy sets off the sync that reads it: by messages alone, in real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import services
from tests.integration.realm import LOOK, PATIENCE, Realm
from tests.integration.world import MIB
from workers.models import RunKind, Trigger
from workers.store import Store


@pytest.mark.slow
def test_a_backup_comes_to_the_replica_by_way_of_its_copy(make_realm: Callable[..., Realm]) -> None:
    realm = make_realm(
        vms=["way"],
        group=('copy = { to = "far" }', 'sources = ["far", "main"]'),
        store=('link = "wan"',),
        more=('[stores.far]\npath = "far"\nsite = "dr"', '[links.wan]\nrate = "500MB"'),
    )
    world = realm.world
    Store.create(world.settings.stores["far"].path)
    world.make_vm("way", 8 * MIB)
    world.scribble("way", 1)
    realm.workers(None, "prod", "dr")
    (asked,) = realm.ask("understudy.backup", vm="way").get(**LOOK)
    pair = world.pair("way")
    synced = services.wait_for(lambda: world.catalogue.sync_point(pair.id), "the sync point", PATIENCE)
    world.held[synced.point] = {key: bytes(data) for key, data in world.log["way"].items()}
    world.assert_replica_is("way", synced.point)
    runs = {run.kind: run for run in world.catalogue.runs(vm="way")}
    assert set(runs) == {RunKind.BACKUP, RunKind.COPY, RunKind.SYNC} and len(world.catalogue.runs(vm="way")) == 3
    assert runs[RunKind.BACKUP].id == asked["run"]
    assert (runs[RunKind.COPY].trigger, runs[RunKind.COPY].site) == (Trigger.AFTER_BACKUP, "dr")
    assert runs[RunKind.SYNC].memory["source"] == "far"
    # The copy came over the link; the sync read what stands beside it.
    over = {kind for kind, run in runs.items() if any("over the link wan" in reason for reason in run.reasons)}
    assert over == {RunKind.BACKUP, RunKind.COPY}
    # A person asks for what is there already.
    said = realm.ask("understudy.copy", vm="way", source="main", to="far").get(**LOOK)
    services.wait_for(lambda: not world.catalogue.run(said[0]["run"]).live, "the second copy's end", PATIENCE)
    assert "already" in "".join(world.catalogue.run(said[0]["run"]).reasons)
