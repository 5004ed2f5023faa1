"""Starting runs: one live run per target, one run per slot, fences that only rise."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.catalogue.races import race
from tests.catalogue.some import LONG, claimed, request
from tests.services import wait_for
from workers.catalogue import Catalogue
from workers.errors import BadInput, FencedOut, NotFound
from workers.models import RunKind, RunState, Trigger

TARGET = "chain:main:vm-1"


def test_a_new_run_is_queued_under_a_new_fence(catalogue: Catalogue) -> None:
    run, created = request(catalogue, slot="2026-03-01T12:00:00Z", pair="p1")
    assert created
    assert (run.state, run.fence, run.attempts, run.memory) == (RunState.QUEUED, 1, 0, {"pair": "p1"})
    assert catalogue.run(run.id) == run
    assert catalogue.fence(TARGET) == 1
    assert abs((catalogue.now() - run.created).total_seconds()) < 60


def test_a_second_request_joins_the_live_run(catalogue: Catalogue) -> None:
    first, _ = request(catalogue, slot="s1")
    assert request(catalogue, slot="s2") == (first, False)
    assert request(catalogue, trigger=Trigger.AD_HOC) == (first, False)
    assert catalogue.fence(TARGET) == 1


def test_a_slot_that_joined_a_live_run_is_not_used_up(catalogue: Catalogue) -> None:
    run = claimed(catalogue, slot="s1")
    request(catalogue, slot="s2")
    catalogue.finish(run.id, "a", RunState.SUCCEEDED)
    later, created = request(catalogue, slot="s2")
    assert created and later.fence == 2


def test_a_slot_runs_once_even_after_it_failed(catalogue: Catalogue) -> None:
    run = claimed(catalogue, slot="s1")
    catalogue.finish(run.id, "a", RunState.FAILED, error="it broke")
    again, created = request(catalogue, slot="s1")
    assert not created and again.id == run.id and again.state is RunState.FAILED
    other_kind, created = request(catalogue, slot="s1", kind=RunKind.SYNC)
    assert created and other_kind.id != run.id


def test_hole_9_a_new_fence_is_above_what_the_cursor_has_seen(catalogue: Catalogue) -> None:
    run, _ = request(catalogue, at_least=57)
    assert run.fence == catalogue.fence(TARGET) == 58
    # The live run is joined, however high the number that is asked for.
    assert request(catalogue, at_least=99)[0].fence == 58


def test_hole_9_a_run_that_finds_a_higher_fence_goes_on_above_it(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    assert catalogue.raise_fence(TARGET, 57, run_id=run.id, owner="a") == 58
    assert catalogue.run(run.id).fence == 58
    catalogue.check_fence(TARGET, 58)
    with pytest.raises(FencedOut, match="no longer zombie's"):
        catalogue.raise_fence(TARGET, 100, run_id=run.id, owner="zombie")
    assert catalogue.fence(TARGET) == 58


def test_raising_a_fence_stops_whoever_carries_the_old_one(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    catalogue.check_fence(TARGET, run.fence)
    assert catalogue.raise_fence(TARGET, 0) == 2
    with pytest.raises(FencedOut, match=f"fence 1 of {TARGET} is not the present one, which is 2"):
        catalogue.check_fence(TARGET, run.fence)
    assert catalogue.fence("a target nobody knows") == 0


def test_eight_requesters_make_one_run(catalogue: Catalogue) -> None:
    answers = race(8, _request_many, catalogue, 10)
    for round_ in zip(*answers, strict=True):
        assert len({run_id for run_id, _, _ in round_}) == 1
        assert sum(created for _, created, _ in round_) == 1
    assert catalogue.fence("target-9") == 1


def _request_many(number: int, catalogue: Catalogue, rounds: int) -> list[tuple[str, bool, int]]:
    answers = (request(catalogue, f"target-{n}", slot=f"slot-{number}") for n in range(rounds))
    return [(run.id, created, run.fence) for run, created in answers]


def test_two_beats_start_a_slot_once(catalogue: Catalogue) -> None:
    """Each ends what it started at once, so that only the slot keeps the other from starting it again."""
    answers = race(2, _tick, catalogue, [f"slot-{n:02}" for n in range(20)])
    made = sorted(slot for beat in answers for slot in beat)
    assert made == sorted(set(made))
    assert len(catalogue.runs(target=TARGET)) == len(made)


def _tick(number: int, catalogue: Catalogue, slots: list[str]) -> list[str]:
    made = []
    for slot in slots:
        run, created = request(catalogue, slot=slot)
        if created:
            made.append(slot)
            assert catalogue.claim(run.id, f"beat-{number}", LONG)
            catalogue.finish(run.id, f"beat-{number}", RunState.NOTHING_NEW)
    return made


def test_fences_rise_and_no_two_runs_share_one(catalogue: Catalogue) -> None:
    seen = [fence for found in race(4, _start_and_end, catalogue, 15) for fence in found]
    assert len(seen) == len(set(seen)) > 0
    runs = catalogue.runs(target=TARGET)
    assert [run.fence for run in runs] == sorted(seen, reverse=True)  # newest run first, highest fence first


def _start_and_end(number: int, catalogue: Catalogue, rounds: int) -> list[int]:
    fences = []
    for _ in range(rounds):
        run, created = request(catalogue)
        if created and catalogue.claim(run.id, f"worker-{number}", LONG):
            fences.append(run.fence)
            catalogue.finish(run.id, f"worker-{number}", RunState.SUCCEEDED)
    return fences


def test_runs_are_listed_the_newest_first_in_pages(catalogue: Catalogue) -> None:
    made = [request(catalogue, f"t{n}", vm=f"vm-{n % 2}")[0] for n in range(5)]
    assert [run.id for run in catalogue.runs()] == [run.id for run in reversed(made)]
    assert [run.id for run in catalogue.runs(vm="vm-1")] == [made[3].id, made[1].id]
    assert catalogue.runs(kind=RunKind.SYNC) == []
    page = catalogue.runs(limit=2)
    assert [run.id for run in catalogue.runs(limit=2, before=page[-1].id)] == [made[2].id, made[1].id]
    assert [run.id for run in catalogue.live_runs()] == [run.id for run in made]


def test_a_run_is_found_by_the_start_of_its_id(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    assert catalogue.find_run(run.id[:6]) == run
    with pytest.raises(NotFound, match="no run starts with 'zz'"):
        catalogue.find_run("zz")
    with pytest.raises(NotFound):
        catalogue.find_run("%")
    request(catalogue, "another")
    with pytest.raises(BadInput, match="starts several runs"):
        catalogue.find_run("")
    with pytest.raises(NotFound, match="before this one was rebuilt"):
        catalogue.run("nobody")


def test_the_used_slot_is_the_latest_of_the_schedule(catalogue: Catalogue) -> None:
    assert catalogue.used_slot(TARGET, RunKind.BACKUP) is None
    for slot, trigger in (("2026-03-01T12:00:00Z", Trigger.SCHEDULE), ("after 00000003-x", Trigger.AFTER_BACKUP)):
        run = claimed(catalogue, slot=slot, trigger=trigger)
        catalogue.finish(run.id, "a", RunState.SUCCEEDED)
    assert catalogue.used_slot(TARGET, RunKind.BACKUP) == "2026-03-01T12:00:00Z"
    assert catalogue.used_slot(TARGET, RunKind.SYNC) is None


def test_lost_is_a_run_whose_message_may_be_gone(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    assert catalogue.lost_runs(queued_s=60) == []
    assert [
        lost.id for lost in wait_for(lambda: catalogue.lost_runs(queued_s=0), "a queued run that counts as lost")
    ] == [run.id]
    catalogue.mark_sent([run.id])
    assert catalogue.lost_runs(queued_s=60) == []


def test_lost_is_a_run_whose_lease_ran_out_until_a_message_is_sent(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    assert catalogue.lost_runs(queued_s=0) == []
    catalogue.renew(run.id, "a", 0.01)
    wait_for(lambda: catalogue.lost_runs(queued_s=60), "a run whose lease ran out")
    catalogue.mark_sent([run.id])
    assert catalogue.lost_runs(queued_s=60) == []


def test_lost_is_no_run_that_is_not_due_or_has_ended(catalogue: Catalogue) -> None:
    waiting = claimed(catalogue, "t1")
    later = catalogue.now() + timedelta(minutes=30)
    catalogue.yield_run(waiting.id, "a", not_before=later, error="vCenter does not answer")
    ended = claimed(catalogue, "t2")
    catalogue.finish(ended.id, "a", RunState.SUCCEEDED)
    due = request(catalogue, "t3")[0]
    found = wait_for(lambda: catalogue.lost_runs(queued_s=0), "the due run")
    assert [run.id for run in found] == [due.id]


def test_lost_runs_take_turns_however_many_there_are(catalogue: Catalogue) -> None:
    requested = [request(catalogue, f"t{number}")[0] for number in range(3)]
    seen = []
    for _ in range(3):
        (first,) = wait_for(lambda: catalogue.lost_runs(queued_s=0, limit=1), "a run that counts as lost")
        catalogue.mark_sent([first.id])
        seen.append(first.id)
    assert sorted(seen) == sorted(run.id for run in requested)
