"""Slices: who works on which, what an execution that lost one may no longer do, and who sees that the last is done."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.catalogue.races import race
from tests.catalogue.some import LONG, claimed
from tests.services import wait_for
from workers.catalogue import CONDEMNED, PLAN, Catalogue, SliceState
from workers.errors import Conflict, FencedOut, SliceFailed, WorkerLost
from workers.models import Run, RunState, Slice

TRIES = 3


def planned(catalogue: Catalogue, count: int = 3, target: str = "chain:main:vm-1") -> Run:
    """A claimed run ("lead") with slices of ten bytes."""
    run = claimed(catalogue, target, owner="lead")
    catalogue.add_slices(run.id, [_slice(run, n) for n in range(count)], owner="lead")
    return catalogue.remember(run.id, "lead", **{PLAN: "plan-1"})


def _slice(run: Run, number: int) -> Slice:
    return Slice(run=run.id, disk="d", start=number * 10, end=number * 10 + 10, done=number * 10)


def take(catalogue: Catalogue, run: Run, owner: str, lease: float = LONG, **more: Any) -> SliceState | None:
    given: dict[str, Any] = {"fence": run.fence, "plan": "plan-1", "tries": TRIES}
    return catalogue.claim_slice(run.id, owner, lease, **(given | more))


def taken(catalogue: Catalogue, run: Run, owner: str, lease: float = LONG) -> SliceState:
    found = take(catalogue, run, owner, lease)
    assert found is not None
    return found


def far(slice_: Slice, done: int) -> Slice:
    return slice_.model_copy(update={"done": done})


def test_slices_are_handed_out_in_order_each_to_one(catalogue: Catalogue) -> None:
    run = planned(catalogue)
    assert [taken(catalogue, run, owner).start for owner in "abc"] == [0, 10, 20]
    assert take(catalogue, run, "d") is None
    (first, *_) = catalogue.slices(run.id)
    assert first.owner == "a" and first.began is not None and first.lease_until is not None and first.attempts == 1
    assert LONG - 600 < (first.lease_until - catalogue.now()).total_seconds() <= LONG


def test_what_is_finished_is_let_go_and_shows_when(catalogue: Catalogue) -> None:
    run = planned(catalogue, 2)
    mine, other = taken(catalogue, run, "a"), taken(catalogue, run, "b")
    catalogue.checkpoint(run.id, run.fence, far(mine, 10), owner="a")
    catalogue.checkpoint(run.id, run.fence, far(mine, 10), owner="a")  # its answer was lost
    one, two = catalogue.slices(run.id)
    assert one.finished and one.owner == "a" and one.lease_until is None
    assert one.began is not None and one.ended is not None and two.began is not None and two.ended is None
    assert one.began <= two.began <= one.ended, "the ledger shows that they were at work at the same time"
    catalogue.renew_slices(run.id, "a", LONG)
    assert catalogue.slices(run.id)[0].lease_until is None
    assert take(catalogue, run, "a") is None and other.start == 10


def test_of_eight_workers_each_slice_has_one(catalogue: Catalogue) -> None:
    run = planned(catalogue, 12)
    answers = race(8, _take_two, catalogue, run)
    places = [place for got in answers for place in got]
    assert len(places) == len(set(places)) == 12


def _take_two(number: int, catalogue: Catalogue, run: Run) -> list[int]:
    found = [take(catalogue, run, f"w{number}") for _ in range(2)]
    return [each.start for each in found if each is not None]


def test_a_slice_whose_lease_ran_out_goes_on_from_its_checkpoint_with_another(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    dead = taken(catalogue, run, "dead", 0.05)
    catalogue.checkpoint(run.id, run.fence, far(dead, 4), owner="dead")
    found: SliceState = wait_for(lambda: take(catalogue, run, "next"), "the slice of the dead worker")
    assert (found.done, found.owner, found.attempts) == (4, "next", 1)
    with pytest.raises(FencedOut, match="it went to next"):
        catalogue.check_slice(run.id, "dead", run.fence, dead)
    with pytest.raises(FencedOut, match="no longer dead's"):
        catalogue.checkpoint(run.id, run.fence, far(dead, 10), owner="dead")
    catalogue.renew_slices(run.id, "dead", LONG)
    catalogue.slice_failed(dead, "dead", "late", 60)
    catalogue.release_slices(run.id, "dead")
    assert catalogue.slices(run.id) == [found]
    catalogue.check_slice(run.id, "next", run.fence, found)


def test_a_lease_that_ran_out_unnoticed_still_holds(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    mine = taken(catalogue, run, "a", 0.01)
    wait_for(lambda: (catalogue.slices(run.id)[0].lease_until or catalogue.now()) < catalogue.now(), "its end")
    catalogue.check_slice(run.id, "a", run.fence, mine)
    catalogue.renew_slices(run.id, "a", LONG)
    assert take(catalogue, run, "b") is None


def test_who_has_the_run_keeps_its_slices_with_it(catalogue: Catalogue) -> None:
    run = planned(catalogue, 2)
    taken(catalogue, run, "lead", 0.01)
    other = taken(catalogue, run, "other", 0.01)
    assert catalogue.renew(run.id, "lead", LONG)
    found: SliceState = wait_for(lambda: take(catalogue, run, "next"), "the other's slice")
    assert found.start == other.start and take(catalogue, run, "next") is None


def test_letting_go_is_no_failed_try(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    for _ in range(TRIES + 1):
        taken(catalogue, run, "a")
        catalogue.release_slices(run.id, "a")
    (found,) = catalogue.slices(run.id)
    assert (found.attempts, found.owner, found.lease_until) == (0, None, None)


def test_one_that_fails_comes_last_and_not_at_once(catalogue: Catalogue) -> None:
    run = planned(catalogue, 2)
    bad = taken(catalogue, run, "a")
    catalogue.slice_failed(bad, "a", "the mount hangs", 0.3)
    good = taken(catalogue, run, "a")
    assert (bad.start, good.start) == (0, 10)
    assert take(catalogue, run, "b") is None, "its pause"
    again: SliceState = wait_for(lambda: take(catalogue, run, "b"), "the end of its pause")
    assert (again.start, again.attempts, again.error) == (0, 2, "the mount hangs")


def test_one_that_fails_again_and_again_is_named_when_nothing_else_is_left(catalogue: Catalogue) -> None:
    run = planned(catalogue, 2)
    bad, good = taken(catalogue, run, "a"), taken(catalogue, run, "b")
    catalogue.checkpoint(run.id, run.fence, far(bad, 3), owner="a")
    for _ in range(TRIES):
        catalogue.slice_failed(far(bad, 3), "a", "the device says EIO", 0)
        bad = wait_for(lambda: take(catalogue, run, "a"), "another try")
    catalogue.slice_failed(bad, "a", "the device says EIO", 0)
    moment = catalogue.now()
    wait_for(lambda: catalogue.now() > moment, "the end of its pause")
    assert take(catalogue, run, "a") is None, "it must not end what others are still at"
    catalogue.checkpoint(run.id, run.fence, far(good, 20), owner="b")
    with pytest.raises(SliceFailed, match=r"disk d from byte 0 to 10 failed 3 times at byte 3.*the device says EIO"):
        take(catalogue, run, "a")


def test_one_that_kills_each_worker_ends_its_run_as_lost_workers_do(catalogue: Catalogue) -> None:
    """Which nobody's VM is set aside for: it is the workers' fault until something else is known."""
    run = planned(catalogue, 1)
    for _ in range(TRIES):
        wait_for(lambda: take(catalogue, run, "a", lease=0), "the end of a lease")
    with pytest.raises(SliceFailed, match=f"its worker was lost {TRIES} times in a row") as failed:
        take(catalogue, run, "b")
    assert failed.value.family == WorkerLost.family


def test_progress_starts_the_count_again(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    for done in range(1, TRIES + 3):
        part = taken(catalogue, run, "a")
        catalogue.checkpoint(run.id, run.fence, far(part, done), owner="a")
        catalogue.slice_failed(far(part, done), "a", "lost again", 0)
        wait_for(lambda: (catalogue.slices(run.id)[0].lease_until or catalogue.now()) <= catalogue.now(), "its pause")
    assert catalogue.slices(run.id)[0].attempts == 0


def test_a_plan_that_is_given_up_stops_everybody(catalogue: Catalogue) -> None:
    """Found by one who works on a slice, e.g. that change tracking missed a block: nobody else begins another."""
    run = planned(catalogue)
    mine, other = taken(catalogue, run, "a"), taken(catalogue, run, "b")
    catalogue.give_up_plan(mine, "a", run.fence, why="a block was missed")
    assert PLAN not in catalogue.run(run.id).memory and catalogue.run(run.id).memory["why"] == "a block was missed"
    with pytest.raises(Conflict, match="given up"):
        take(catalogue, run, "b")
    catalogue.drop_slices(run.id, owner="lead")
    catalogue.add_slices(run.id, [_slice(run, n) for n in range(3)], owner="lead")
    catalogue.remember(run.id, "lead", **{PLAN: "plan-2"})
    with pytest.raises(Conflict, match="given up"):
        take(catalogue, run, "b")
    with pytest.raises(FencedOut, match="no longer b's"):
        catalogue.checkpoint(run.id, run.fence, far(other, 20), owner="b")
    with pytest.raises(FencedOut):
        catalogue.give_up_plan(other, "b", run.fence, why="late")
    assert catalogue.claim_slice(run.id, "c", LONG, fence=run.fence, plan="plan-2", tries=TRIES) is not None


def test_hole_10_nobody_gets_or_keeps_a_slice_under_an_old_fence_or_of_an_ended_run(catalogue: Catalogue) -> None:
    run = planned(catalogue)
    mine = taken(catalogue, run, "a")
    catalogue.refence(run.id, "lead", 7)
    for call in (
        lambda: take(catalogue, run, "a"),
        lambda: catalogue.check_slice(run.id, "a", run.fence, mine),
        lambda: catalogue.checkpoint(run.id, run.fence, far(mine, 5), owner="a"),
    ):
        with pytest.raises(FencedOut, match="fence 1"):
            call()
    fenced = catalogue.run(run.id)
    catalogue.finish(run.id, "lead", RunState.FAILED, error="given up")
    for call in (
        lambda: take(catalogue, fenced, "a"),
        lambda: catalogue.check_slice(run.id, "a", fenced.fence, mine),
        lambda: catalogue.checkpoint(run.id, fenced.fence, far(mine, 5), owner="a"),
    ):
        with pytest.raises(FencedOut, match="already ended"):
            call()


# --- the end of a run that several work on --------------------------------------------------------------------------


def test_a_shared_run_is_running_and_not_lost_while_somebody_works_on_it(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    part = taken(catalogue, run, "helper")
    assert catalogue.share_run(run.id, "lead") and not catalogue.share_run(run.id, "lead")
    shared = catalogue.run(run.id)
    assert (shared.state, shared.owner, shared.lease_until, shared.attempts) == (RunState.RUNNING, None, None, 0)
    assert catalogue.lost_runs(queued_s=0) == []
    catalogue.checkpoint(run.id, run.fence, far(part, 10), owner="helper")
    assert [lost.id for lost in wait_for(lambda: catalogue.lost_runs(queued_s=0), "a run to be gone on with")] == [
        run.id
    ]
    again = catalogue.claim(run.id, "helper", LONG)
    assert again is not None and again.attempts == 1
    assert catalogue.lost_runs(queued_s=0) == []


def test_a_shared_run_whose_last_worker_dies_is_lost_when_its_lease_has_run_out(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    taken(catalogue, run, "helper")
    catalogue.share_run(run.id, "lead")
    assert catalogue.lost_runs(queued_s=600) == []
    catalogue.renew_slices(run.id, "helper", 0)
    (lost,) = wait_for(lambda: catalogue.lost_runs(queued_s=600), "the end of its lease")
    assert lost.id == run.id


def test_whoever_is_last_has_the_run_and_it_is_one(catalogue: Catalogue) -> None:
    """The lead gives the run back and looks again; each who ends its last slice looks and claims: one commits."""
    for turn in range(5):
        run = planned(catalogue, 3, target=f"pair:{turn}")
        parts = [taken(catalogue, run, f"w{n}") for n in range(3)]
        answers = race(4, _end, catalogue, run, parts)
        assert sum(answers) == 1, answers
        assert catalogue.run(run.id).state is RunState.SUCCEEDED


def _end(number: int, catalogue: Catalogue, run: Run, parts: list[SliceState]) -> bool:
    """Three finish their slices, one is the lead, which has none."""
    me = "lead" if number == 3 else f"w{number}"
    if me != "lead":
        catalogue.checkpoint(run.id, run.fence, far(parts[number], parts[number].end), owner=me)
    elif not all(part.finished for part in catalogue.slices(run.id)):
        catalogue.share_run(run.id, me)
    if not all(part.finished for part in catalogue.slices(run.id)):
        return False
    if catalogue.claim(run.id, me, LONG) is None:
        return False
    catalogue.finish(run.id, me, RunState.SUCCEEDED)
    return True


def test_a_fatal_failure_of_a_slice_ends_the_run_once(catalogue: Catalogue) -> None:
    free, led = planned(catalogue, target="t1"), planned(catalogue, target="t2")
    catalogue.share_run(free.id, "lead")
    for run in (free, led):
        for _ in range(2):
            catalogue.condemn(run.id, "somebody powered it on", "touched")
        catalogue.condemn(run.id, "another sentence", "error")
    ended = catalogue.run(free.id)
    assert (ended.state, ended.error, ended.family) == (RunState.FAILED, "somebody powered it on", "touched")
    assert len(catalogue.failures(run=free.id)) == 1
    late = planned(catalogue, target="t3")
    gone = taken(catalogue, late, "a")
    catalogue.release_slices(late.id, "a")
    catalogue.condemn(late.id, "about what was there before", "refused", at=(gone, "a"))
    assert CONDEMNED not in catalogue.run(late.id).memory
    kept = catalogue.run(led.id)
    assert kept.live and kept.memory[CONDEMNED] == "touched: somebody powered it on", "whoever has it ends it"


def test_what_more_workers_could_be_at(catalogue: Catalogue) -> None:
    run = planned(catalogue, 5)
    taken(catalogue, run, "a")
    lost = taken(catalogue, run, "lost")
    taken(catalogue, run, "b")
    waiting = taken(catalogue, run, "c")
    catalogue.slice_failed(waiting, "c", "later", 600)
    catalogue.mark_sent([run.id])
    assert catalogue.short_of_workers(sent_s=600) == []
    catalogue.renew_slices(run.id, "lost", 0)
    (short,) = wait_for(lambda: catalogue.short_of_workers(sent_s=600), "the end of a lease")
    assert (short.run.id, short.free, short.busy) == (run.id, 2, 2) and lost.start == 10
    catalogue.mark_sent([run.id])
    assert catalogue.short_of_workers(sent_s=600) == []
    assert [each.run.id for each in wait_for(lambda: catalogue.short_of_workers(sent_s=0), "the next time")] == [run.id]
    catalogue.ask_to_stop(run.id, "stopped by a person")
    assert catalogue.short_of_workers(sent_s=-timedelta(hours=1).total_seconds()) == []


def test_progress_of_any_slice_is_progress_of_the_run(catalogue: Catalogue) -> None:
    run = planned(catalogue, 1)
    catalogue.yield_run(run.id, "lead", error="the mount hangs")
    assert catalogue.claim(run.id, "lead", LONG)
    assert catalogue.run(run.id).attempts == 2
    catalogue.checkpoint(run.id, run.fence, far(taken(catalogue, run, "helper"), 5), owner="helper")
    assert catalogue.run(run.id).attempts == 1


def test_errors_are_those_that_a_try_ended_with_and_progress_ends_them(catalogue: Catalogue) -> None:
    """A lost worker is an attempt and no failure: the pause after an error grows with the errors alone."""
    run = planned(catalogue, 1)
    for _ in range(2):
        part = taken(catalogue, run, "lost", 0)
        wait_for(
            lambda: catalogue.now() > (catalogue.slices(run.id)[0].lease_until or catalogue.now()), "a lease's end"
        )
    assert (part.attempts, part.errors) == (2, 0)
    catalogue.slice_failed(taken(catalogue, run, "a"), "lost", "said too late", 0)
    assert catalogue.slices(run.id)[0].errors == 0
    catalogue.slice_failed(part, "a", "the mount hangs", 0)
    again: SliceState = wait_for(lambda: take(catalogue, run, "a", tries=9), "another try")
    assert (again.attempts, again.errors) == (4, 1)
    catalogue.yield_run(run.id, "lead", error="the mount hangs")
    assert (failed := catalogue.claim(run.id, "lead", LONG)) is not None and failed.errors == 1
    catalogue.checkpoint(run.id, run.fence, far(again, 5), owner="a")
    assert (catalogue.slices(run.id)[0].errors, catalogue.run(run.id).errors) == (0, 0)
    catalogue.yield_run(run.id, "lead", error="the mount hangs")
    assert catalogue.claim(run.id, "lead", LONG) and catalogue.yield_run(run.id, "lead")
    assert catalogue.run(run.id).errors == 0
