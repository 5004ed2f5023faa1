"""A new catalogue that takes over what a lost one has left."""

from __future__ import annotations

import pytest

from tests.catalogue import some
from workers.catalogue import Catalogue
from workers.errors import Refused
from workers.models import Pair, Run, RunKind, RunState, Trigger

REALM = "0b7a6c2e-3f57-4c0e-9a59-0d8f5b1f6a11"


def pair(**more: object) -> Pair:
    told = {
        "id": "aabbccddeeff", "source_site": "prod", "source": "uuid-1", "vm": "web", "store": "main",
        "recovery_target": "recovery", "site": "dr", "replica": "uuid-2", "replica_name": "web_replica",
        "generation": 3,
    }  # fmt: skip
    return Pair.model_validate(told | more)


def lost(run: str = "0123456789abcdef") -> Run:
    return Run(
        id=run,
        kind=RunKind.BACKUP,
        target="chain:main:uuid-1",
        vm="web",
        site="prod",
        trigger=Trigger.SCHEDULE,
        slot=None,
        state=RunState.FAILED,
        fence=0,
        attempts=0,
        memory={"snapshot": "snapshot-7"},
        created=some.NOON,
    )


def test_a_new_catalogue_becomes_another_realm_once(catalogue: Catalogue) -> None:
    assert catalogue.is_new()
    catalogue.take_over_realm(REALM)
    catalogue.take_over_realm(REALM)
    assert catalogue.realm == REALM
    catalogue.adopt_pair(pair())
    assert not catalogue.is_new()
    catalogue.take_over_realm(REALM)  # told again by a rebuild that is repeated
    with pytest.raises(Refused, match="has been used already"):
        catalogue.take_over_realm("another")
    assert catalogue.realm == REALM


def test_an_inventory_alone_is_no_use(catalogue: Catalogue) -> None:
    catalogue.record_inventory("prod", [some.vm(1)])
    assert catalogue.is_new()


def test_hole_9_a_fence_is_never_below_what_was_seen(catalogue: Catalogue) -> None:
    assert catalogue.keep_fence("pair:x", 57, 1000) == 1057
    assert catalogue.keep_fence("pair:x", 57, 1000) == 1057, "told again"
    assert catalogue.keep_fence("pair:x", 2000, 1000) == 2000
    run, _ = catalogue.request_run(RunKind.SYNC, "pair:x", vm="web", site="dr", trigger=Trigger.SCHEDULE)
    assert run.fence == 2001
    assert catalogue.keep_fence("pair:x", 57, 1000) == 2001, "a living run is not fenced out"
    catalogue.check_fence("pair:x", 2001)


def test_a_pair_keeps_the_id_that_its_replica_carries(catalogue: Catalogue) -> None:
    assert catalogue.adopt_pair(pair()).model_copy(update={"created": None}) == pair()
    catalogue.pause(pair().id, "a person's reason")
    assert catalogue.adopt_pair(pair()).paused == "a person's reason", "told again, it changes nothing"
    with pytest.raises(Refused, match="made a pair anew"):
        catalogue.adopt_pair(pair(id="ffeeddccbbaa"))
    assert [p.id for p in catalogue.pairs()] == [pair().id]


def test_hole_19_a_lost_run_is_recorded_as_ended_and_unclean(catalogue: Catalogue) -> None:
    catalogue.keep_fence(lost().target, 7, 0)
    for _ in range(2):
        catalogue.adopt_lost_run(lost(), "its catalogue was lost")
    (unclean,) = catalogue.unclean_runs()
    assert (unclean.id, unclean.state, unclean.fence) == (lost().id, RunState.FAILED, 8)
    assert [f.family for f in catalogue.failures(run=lost().id)] == ["catalogue lost"]
    catalogue.adopt_lost_run(lost("fedcba9876543210"), "its catalogue was lost")
    assert len(catalogue.unclean_runs()) == 2
    catalogue.cleaned(lost().id)
    assert [run.id for run in catalogue.unclean_runs()] == ["fedcba9876543210"]


def test_points_are_mirrored_once(catalogue: Catalogue) -> None:
    points = [some.restore_point(1), some.restore_point(2)]
    for _ in range(2):
        catalogue.adopt_points("main", points)
    catalogue.adopt_points("main", [])
    assert [p.id for p in catalogue.points(points[0].vm.instance_uuid)] == [p.id for p in points]


def test_what_a_failed_restore_left_is_found(catalogue: Catalogue) -> None:
    run, _ = catalogue.request_run(
        RunKind.RESTORE, "vm:x", vm="web", site="prod", trigger=Trigger.AD_HOC, memory={"order": '{"snapshot": 1}'}
    )
    assert catalogue.claim(run.id, "me", 60)
    catalogue.remember(run.id, "me", pinned="yes")
    catalogue.finish(run.id, "me", RunState.FAILED, error="no space left")
    assert [r.id for r in catalogue.unclean_runs()] == [run.id]
    catalogue.cleaned(run.id)
    assert catalogue.unclean_runs() == []
