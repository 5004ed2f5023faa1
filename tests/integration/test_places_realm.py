"""Few places and several workers, as processes: never two at one place, all get done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import services
from tests.integration.realm import ASKED_ONLY, PATIENCE, Realm
from tests.integration.world import MIB
from workers.models import RunState


@pytest.mark.slow
def test_one_place_on_a_datastore_and_two_workers(make_realm: Callable[..., Realm]) -> None:
    names = ["few-1", "few-2", "few-3", "few-4"]
    realm = make_realm(vms=names, group=ASKED_ONLY, more=("[limits]", "datastore = 1"))
    world = realm.world
    for seed, name in enumerate(names):
        world.make_vm(name, 4 * MIB)
        world.scribble(name, seed)
    realm.workers(None, "prod", "prod")
    realm.beat()
    runs = [realm.backup(name) for name in names]
    seen: list[list[str]] = []

    def all_ended() -> bool:
        seen.append(world.catalogue.places().get("datastore ds1 of prod", []))
        return not any(world.catalogue.run(run.id).live for run in runs)

    services.wait_for(all_ended, "the end of all backups", 4 * PATIENCE)
    assert max(map(len, seen)) == 1, "never two at once"
    done = [world.catalogue.run(run.id) for run in runs]
    assert {run.state for run in done} == {RunState.SUCCEEDED}, [run.error for run in done]
    assert all(run.attempts <= 1 and not run.errors for run in done), "to wait is no failed try"
    assert world.catalogue.places() == {}
