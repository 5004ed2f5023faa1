"""The database's clock was a day ahead and was set right: what was written meanwhile must hold nothing up for a day."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from tests.catalogue.some import LONG, claimed, request, vm
from workers.catalogue import Catalogue, schema
from workers.models import Run, RunState


def ahead(catalogue: Catalogue, run: Run, **by: timedelta) -> None:
    """These times of the run, as a clock that was a day ahead has written them."""
    moment = catalogue.now() + timedelta(days=1)
    with catalogue.write() as conn:
        times = {name: moment + more for name, more in by.items()}
        conn.execute(sa.update(schema.runs).where(schema.runs.c.id == run.id).values(**times))


def test_the_lease_of_a_dead_worker_does_not_last_until_tomorrow(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    ahead(catalogue, run, sent=timedelta(), lease_until=timedelta(seconds=LONG))
    assert [lost.id for lost in catalogue.lost_runs(queued_s=60)] == [run.id]
    catalogue.mark_sent([run.id])
    again = catalogue.claim(run.id, "b", LONG)
    assert again is not None and again.owner == "b"


def test_the_lease_of_a_worker_that_lives_is_right_again_when_it_renews(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    ahead(catalogue, run, lease_until=timedelta(seconds=LONG))
    assert catalogue.renew(run.id, "a", LONG)
    assert catalogue.lost_runs(queued_s=60) == []
    assert catalogue.claim(run.id, "b", LONG) is None


def test_a_lease_that_was_made_longer_than_ours_is_no_wrong_clock(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    assert catalogue.claim(run.id, "b", 5) is None


def test_a_message_that_was_lost_is_sent_again_today(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    ahead(catalogue, run, sent=timedelta())
    assert [lost.id for lost in catalogue.lost_runs(queued_s=60)] == [run.id]
    catalogue.mark_sent([run.id])
    assert catalogue.lost_runs(queued_s=60) == []


def test_the_next_try_is_not_put_off_until_tomorrow(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    catalogue.yield_run(run.id, "a", error="vCenter does not answer")
    ahead(catalogue, run, sent=timedelta(), not_before=timedelta(seconds=10))
    assert [lost.id for lost in catalogue.lost_runs(queued_s=60)] == [run.id]
    again = catalogue.claim(run.id, "b", LONG)
    assert again is not None and again.state is RunState.RUNNING


def test_an_inventory_counts_although_the_last_one_is_of_tomorrow(catalogue: Catalogue) -> None:
    old, new = vm(1), vm(2)
    catalogue.record_inventory("prod", [old], catalogue.now() + timedelta(days=1))
    catalogue.record_inventory("prod", [new], catalogue.now())
    there = [known.identity for known in catalogue.inventory("prod") if known.gone_since is None]
    assert there == [new.identity]
