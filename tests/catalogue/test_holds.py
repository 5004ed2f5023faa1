"""What people say about a target, how it excludes runs, and what of the history is dropped."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.catalogue.races import race
from workers.catalogue import Catalogue, HoldKind, migrations
from workers.errors import Refused
from workers.models import RunKind, RunState, Trigger

CHAIN = "chain:main:vm-1"


def held(catalogue: Catalogue, kind: HoldKind, target: str = CHAIN, reason: str = "moving house") -> None:
    catalogue.hold(target, kind, who="ann", reason=reason)


def ended(catalogue: Catalogue, target: str, state: RunState, family: str | None = None, **more: object) -> str:
    run = some.claimed(catalogue, target, **more)
    error = "it broke" if state is RunState.FAILED else None
    catalogue.finish(run.id, "a", state, error=error, family=family)
    return run.id


# --- holds --------------------------------------------------------------------------------------------------------


def test_a_hold_keeps_who_why_and_since(catalogue: Catalogue) -> None:
    held(catalogue, HoldKind.PAUSED)
    first = catalogue.holds()[CHAIN][HoldKind.PAUSED]
    assert (first.who, first.reason) == ("ann", "moving house")
    catalogue.hold(CHAIN, HoldKind.PAUSED, who="bob", reason="still moving")
    again = catalogue.holds(CHAIN)[CHAIN][HoldKind.PAUSED]
    assert (again.who, again.reason, again.since) == ("bob", "still moving", first.since)
    assert catalogue.release(CHAIN, [HoldKind.PAUSED, HoldKind.DISABLED]) == [again]
    assert catalogue.release(CHAIN, [HoldKind.PAUSED]) == [] and catalogue.holds() == {}


@pytest.mark.parametrize(
    ("kind", "trigger", "starts"),
    [
        (HoldKind.PAUSED, Trigger.SCHEDULE, False),
        (HoldKind.PAUSED, Trigger.AFTER_BACKUP, False),
        (HoldKind.PAUSED, Trigger.PROBE, False),
        (HoldKind.PAUSED, Trigger.AD_HOC, True),
        (HoldKind.DISABLED, Trigger.SCHEDULE, False),
        (HoldKind.DISABLED, Trigger.AD_HOC, False),
        (HoldKind.FORGOTTEN, Trigger.AD_HOC, False),
        (HoldKind.APPROVED, Trigger.SCHEDULE, True),
    ],
)
def test_what_a_hold_refuses(catalogue: Catalogue, kind: HoldKind, trigger: Trigger, starts: bool) -> None:
    held(catalogue, kind)
    if starts:
        assert some.request(catalogue, CHAIN, trigger=trigger)[1]
        return
    with pytest.raises(Refused, match=r"web-01 is \w+ since .* by ann \(moving house\); `understudy \w+ web-01` ends"):
        some.request(catalogue, CHAIN, trigger=trigger)
    assert catalogue.fence(CHAIN) == 0, "a request that is refused fences nobody out"
    assert some.request(catalogue, "pair:p", kind=RunKind.FORGET, trigger=Trigger.AD_HOC)[1]


def test_a_live_run_is_joined_also_under_a_hold(catalogue: Catalogue) -> None:
    run, _ = some.request(catalogue, CHAIN)
    held(catalogue, HoldKind.DISABLED)
    assert some.request(catalogue, CHAIN) == (run, False)


def _disable_or_request(number: int, url: str) -> str:
    catalogue = Catalogue.open(url)
    if number % 2:
        held(catalogue, HoldKind.DISABLED)
        return "disabled"
    try:
        some.request(catalogue, CHAIN, trigger=Trigger.AD_HOC)
        return "run"
    except Refused:
        return "refused"


def test_a_hold_and_a_request_have_an_order(url: str) -> None:
    catalogue = Catalogue.create(url)
    said = race(8, _disable_or_request, url)
    assert said.count("disabled") == 4 and set(said) <= {"disabled", "run", "refused"}
    assert len(catalogue.live_runs()) == (1 if "run" in said else 0)


def test_an_approval_is_for_one_run_that_ends_well(catalogue: Catalogue) -> None:
    held(catalogue, HoldKind.APPROVED)
    ended(catalogue, CHAIN, RunState.FAILED, "transient")
    assert HoldKind.APPROVED in catalogue.holds(CHAIN)[CHAIN]
    ended(catalogue, CHAIN, RunState.SUCCEEDED)
    assert catalogue.holds(CHAIN) == {}


def test_a_pause_of_a_pair_is_a_hold(catalogue: Catalogue) -> None:
    pair = some.pair(catalogue)
    assert catalogue.pause(pair.id, "rolled back").paused == "rolled back"
    assert catalogue.pair(pair.id).paused == catalogue.pairs()[0].paused == some.pair(catalogue).paused == "rolled back"
    assert HoldKind.PAUSED in catalogue.holds(f"pair:{pair.id}")[f"pair:{pair.id}"]
    assert catalogue.pause(pair.id, None).paused is None and catalogue.pair(pair.id).paused is None


def test_a_forgotten_pair_holds_nothing_and_its_runs_stay(catalogue: Catalogue) -> None:
    pair, run = some.syncing(catalogue)
    catalogue.set_replica(pair.id, "uuid-replica")
    catalogue.commit_sync(run.id, "a", some.sync_point(pair, run))
    catalogue.forget_pair(pair.id, who="ann", reason="sold")
    assert catalogue.pair(pair.id).replica is None
    assert catalogue.sync_point(pair.id) is None and catalogue.latest_sync_points() == []
    assert catalogue.run(run.id).point is not None
    with pytest.raises(Refused, match="`understudy enable web-01`"):
        some.request(catalogue, f"pair:{pair.id}", kind=RunKind.SYNC, trigger=Trigger.AD_HOC)


# --- failures in a row ----------------------------------------------------------------------------------------------


def test_failures_in_a_row_are_counted_since_the_last_good_run(catalogue: Catalogue) -> None:
    for state, family in [
        (RunState.FAILED, "refused"),
        (RunState.SUCCEEDED, None),
        (RunState.FAILED, "no space"),
        (RunState.FAILED, "vcenter unreachable"),
        (RunState.FAILED, "touched"),
        (RunState.FAILED, "vcenter unreachable"),
    ]:
        ended(catalogue, CHAIN, state, family)
    ended(catalogue, "chain:main:other", RunState.FAILED, "touched")
    (one,) = catalogue.latest_ended(CHAIN, uncounted=["vcenter unreachable"])
    assert (one.failures, one.blamed, one.family) == (2, "touched", "vcenter unreachable")
    third = catalogue.runs(target=CHAIN)[3]
    assert third.error and one.since == third.ended
    assert len(catalogue.latest_ended()) == 2
    catalogue.forgive(CHAIN)
    assert catalogue.latest_ended(CHAIN)[0].failures == 0
    ended(catalogue, CHAIN, RunState.FAILED, "touched")
    assert catalogue.latest_ended(CHAIN)[0].failures == 1
    ended(catalogue, CHAIN, RunState.NEEDS_APPROVAL)
    assert catalogue.latest_ended(CHAIN)[0].failures == 0


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_waiting_run_is_stopped_at_once_and_a_running_one_is_told(catalogue: Catalogue) -> None:
    waiting, _ = some.request(catalogue, CHAIN)
    stopped = catalogue.ask_to_stop(waiting.id, "paused by ann")
    assert stopped.state is RunState.STOPPED and stopped.reasons == ("paused by ann",)
    running = some.claimed(catalogue, CHAIN)
    told = catalogue.ask_to_stop(running.id, "paused by ann")
    assert told.state is RunState.RUNNING and told.memory["stop"] == "paused by ann"
    catalogue.finish(running.id, "a", RunState.SUCCEEDED)
    assert catalogue.ask_to_stop(running.id, "too late").state is RunState.SUCCEEDED


def test_what_a_stopped_run_left_is_found(catalogue: Catalogue) -> None:
    run = some.claimed(catalogue, CHAIN)
    catalogue.remember(run.id, "a", snapshot="snapshot-7")
    catalogue.yield_run(run.id, "a")
    catalogue.ask_to_stop(run.id, "paused")
    assert [left.id for left in catalogue.unclean_runs()] == [run.id]


# --- history --------------------------------------------------------------------------------------------------------


def _age(catalogue: Catalogue, days: int) -> None:
    """What the passing of time does."""
    with catalogue.write() as conn:
        for table, columns in {
            "runs": ("created", "ended"),
            "failures": ("at",),
            "sync_points": ("committed",),
        }.items():
            found = sa.Table(table, sa.MetaData(), autoload_with=conn)
            key = next(iter(found.primary_key))
            for row in conn.execute(sa.select(found)).mappings():
                moved = {c: row[c] - timedelta(days=days) for c in columns if row[c] is not None}
                conn.execute(sa.update(found).where(key == row[key.name]).values(**moved))


def test_old_history_goes_and_what_is_needed_stays(catalogue: Catalogue) -> None:
    slot = {"slot": "2026-01-01T00:00:00Z"}
    scheduled = ended(catalogue, CHAIN, RunState.SUCCEEDED, **slot)
    ended(catalogue, CHAIN, RunState.FAILED, "touched", trigger=Trigger.AD_HOC)
    left = some.claimed(catalogue, CHAIN, trigger=Trigger.AD_HOC)
    catalogue.remember(left.id, "a", snapshot="snapshot-7")
    catalogue.finish(left.id, "a", RunState.FAILED, error="died")
    newest = ended(catalogue, CHAIN, RunState.SUCCEEDED, trigger=Trigger.AD_HOC)
    pair, first = some.syncing(catalogue, trigger=Trigger.AD_HOC)
    catalogue.commit_sync(first.id, "a", some.sync_point(pair, first))
    second = some.claimed(catalogue, f"pair:{pair.id}", kind=RunKind.SYNC, trigger=Trigger.AD_HOC)
    catalogue.commit_sync(second.id, "a", some.sync_point(pair, second, point="00000002-x"))
    _age(catalogue, 100)
    live, _ = some.request(catalogue, "chain:main:live")
    fresh = ended(catalogue, "chain:main:3", RunState.FAILED, "refused")
    dropped = catalogue.drop_history(90 * 86400)
    assert dropped == (2, 1, 1)
    assert {run.id for run in catalogue.runs()} == {scheduled, left.id, newest, second.id, live.id, fresh}
    assert catalogue.used_slot(CHAIN, RunKind.BACKUP) == slot["slot"]
    assert [f.message for f in catalogue.failures()] == ["it broke", "died"]
    assert [p.point for p in catalogue.sync_points(pair.id)] == ["00000002-x"]
    assert catalogue.drop_history(90 * 86400) == (0, 0, 0)


# --- the migration ----------------------------------------------------------------------------------------------------


def test_pauses_and_families_of_an_older_catalogue_are_kept(url: str) -> None:
    catalogue = Catalogue(url)
    if catalogue.file is not None:
        catalogue.file.touch()
    with catalogue.write() as conn:
        migrations.upgrade(conn, url, "0001")
        conn.exec_driver_sql("INSERT INTO realm VALUES ('realm-1', '2026-01-01 00:00:00')")
        conn.exec_driver_sql(
            "INSERT INTO pairs VALUES ('p1', 'prod', 'u', 'web', 'main', 'dr', 'dr', NULL, 'web_replica', 1, 'none', "
            "'rolled back', '2026-01-01 00:00:00')"
        )
        conn.exec_driver_sql(
            "INSERT INTO runs (number, id, kind, target, vm, site, trigger, state, fence, attempts, memory, reasons, "
            "created, sent, read, written, stored, error) VALUES (1, 'r1', 'sync', 'pair:p1', 'web', 'dr', 'ad hoc', "
            "'failed', 1, 1, '{}', '[]', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 0, 0, 0, 'x')"
        )
        conn.exec_driver_sql(
            "INSERT INTO failures (number, at, run, kind, family, message) "
            "VALUES (1, '2026-01-01 00:00:00', 'r1', 'sync', 'touched', 'x')"
        )
    after = Catalogue.create(url)
    assert after.realm == "realm-1"
    assert after.pair("p1").paused == "rolled back" and after.holds("pair:p1")["pair:p1"][HoldKind.PAUSED].since
    assert after.run("r1").family == "touched"
