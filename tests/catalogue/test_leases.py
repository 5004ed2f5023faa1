"""Claims: who works on a run, and what an execution that lost it may no longer do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests.catalogue.races import race
from tests.catalogue.some import LONG, claimed, request
from tests.services import wait_for
from workers.catalogue import PLAN, Catalogue
from workers.errors import Conflict, FencedOut, NotFound
from workers.models import Run, RunState, Slice


def test_a_claim_takes_the_run_and_counts(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    mine = catalogue.claim(run.id, "a", LONG)
    assert mine is not None and mine.lease_until is not None
    assert (mine.state, mine.owner, mine.attempts) == (RunState.RUNNING, "a", 1)
    assert LONG - 600 < (mine.lease_until - catalogue.now()).total_seconds() <= LONG
    again = catalogue.claim(run.id, "a", LONG)  # its answer was lost
    assert again is not None and again.attempts == 1
    assert catalogue.claim(run.id, "b", LONG) is None


def test_hole_8_a_duplicate_message_starts_and_fences_nothing(catalogue: Catalogue) -> None:
    run = claimed(catalogue, owner="first delivery")
    before = catalogue.run(run.id)
    assert catalogue.claim(run.id, "second delivery", LONG) is None
    assert catalogue.run(run.id) == before
    catalogue.check_fence(run.target, run.fence)
    catalogue.finish(run.id, "first delivery", RunState.SUCCEEDED)
    assert catalogue.claim(run.id, "third delivery", LONG) is None
    assert catalogue.run(run.id).state is RunState.SUCCEEDED
    assert catalogue.fence(run.target) == 1


def test_of_eight_messages_one_gets_the_run(catalogue: Catalogue) -> None:
    ids = [request(catalogue, f"t{n}")[0].id for n in range(10)]
    answers = race(8, _claim_all, catalogue, ids)
    assert [sum(got) for got in zip(*answers, strict=True)] == [1] * 10
    assert {catalogue.run(run_id).attempts for run_id in ids} == {1}


def _claim_all(number: int, catalogue: Catalogue, ids: list[str]) -> list[bool]:
    return [catalogue.claim(run_id, f"delivery-{number}", LONG) is not None for run_id in ids]


def test_a_lease_that_ran_out_goes_to_the_next(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    catalogue.claim(run.id, "dead", 0.05)
    taken = wait_for(lambda: catalogue.claim(run.id, "next", LONG), "the claim of a deserted run")
    assert taken.owner == "next" and taken.attempts == 2
    assert not catalogue.renew(run.id, "dead", LONG)
    _cannot_write(catalogue, run, "dead")


def test_a_lease_that_ran_out_unnoticed_can_be_renewed(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    catalogue.claim(run.id, "a", 0.01)
    wait_for(lambda: catalogue.lost_runs(queued_s=0), "the end of the lease")
    assert catalogue.renew(run.id, "a", LONG)
    assert catalogue.claim(run.id, "b", LONG) is None


def _cannot_write(catalogue: Catalogue, run: Run, owner: str) -> None:
    slice_ = Slice(run=run.id, disk="d", start=0, end=10, done=5)
    with pytest.raises(FencedOut, match="no longer"):
        catalogue.remember(run.id, owner, snapshot="snapshot-9")
    with pytest.raises(FencedOut):
        catalogue.add_slices(run.id, [slice_], owner=owner)
    with pytest.raises(FencedOut):
        catalogue.checkpoint(run.id, run.fence, slice_, owner=owner)
    with pytest.raises(FencedOut):
        catalogue.drop_slices(run.id, owner=owner)
    with pytest.raises(FencedOut):
        catalogue.finish(run.id, owner, RunState.SUCCEEDED)
    assert not catalogue.yield_run(run.id, owner)


def test_yielding_is_for_progress_or_with_an_error(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    assert catalogue.yield_run(run.id, "a", error="vCenter does not answer")
    failed = catalogue.run(run.id)
    assert (failed.state, failed.owner, failed.attempts, failed.error) == (
        RunState.QUEUED,
        None,
        1,
        "vCenter does not answer",
    )
    again = catalogue.claim(run.id, "b", LONG)
    assert again is not None and again.attempts == 2
    assert catalogue.yield_run(run.id, "b")  # a slice is done, the rest is queued
    rested = catalogue.run(run.id)
    assert (rested.attempts, rested.error) == (0, None)
    assert not catalogue.yield_run(run.id, "b")  # told again: nothing to let go of


def test_a_run_is_not_claimed_before_its_time(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    catalogue.yield_run(run.id, "a", not_before=catalogue.now() + timedelta(hours=1), error="busy")
    assert catalogue.claim(run.id, "b", LONG) is None
    other = claimed(catalogue, "t2")
    catalogue.yield_run(other.id, "a", not_before=catalogue.now() + timedelta(milliseconds=50))
    due = wait_for(lambda: catalogue.claim(other.id, "b", LONG), "the run's time")
    assert due.not_before is None


def test_an_unknown_run_is_not_claimed(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="made in another catalogue"):
        catalogue.claim("stray", "a", LONG)


def test_memory_is_merged_and_forgotten_by_key(catalogue: Catalogue) -> None:
    run = claimed(catalogue, pair="p1")
    catalogue.remember(run.id, "a", snapshot="snapshot-1", task="task-1")
    assert catalogue.remember(run.id, "a", task=None).memory == {"pair": "p1", "snapshot": "snapshot-1"}


def test_reasons_are_kept_in_order_and_once(catalogue: Catalogue) -> None:
    run, _ = request(catalogue)
    catalogue.note(run.id, "disk 1 is read in full: change tracking was reset", "disk 2 is not protected")
    catalogue.note(run.id, "disk 2 is not protected", "quiescing failed")
    assert catalogue.run(run.id).reasons == (
        "disk 1 is read in full: change tracking was reset",
        "disk 2 is not protected",
        "quiescing failed",
    )


def test_an_end_may_be_told_twice_but_not_changed(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    for _ in range(2):
        catalogue.finish(run.id, "a", RunState.SUCCEEDED, point="00000001-x", read=3, written=2, stored=1)
    ended = catalogue.run(run.id)
    assert (ended.state, ended.point, ended.read, ended.written, ended.stored) == (
        RunState.SUCCEEDED,
        "00000001-x",
        3,
        2,
        1,
    )
    assert ended.ended is not None and ended.lease_until is None
    with pytest.raises(FencedOut, match="already ended"):
        catalogue.finish(run.id, "a", RunState.FAILED, error="no")
    with pytest.raises(FencedOut, match="already ended"):
        catalogue.finish(run.id, "b", RunState.SUCCEEDED)
    _ended_cannot_change(catalogue, run)


def _ended_cannot_change(catalogue: Catalogue, run: Run) -> None:
    with pytest.raises(FencedOut, match="already ended"):
        catalogue.remember(run.id, "a", snapshot="x")
    assert not catalogue.renew(run.id, "a", LONG)
    assert not catalogue.yield_run(run.id, "a")


def test_a_failed_run_leaves_a_failure(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    for _ in range(2):
        catalogue.finish(run.id, "a", RunState.FAILED, error="the store main is full; make room", family="no space")
    (failure,) = catalogue.failures()
    assert (failure.run, failure.vm, failure.kind, failure.family) == (run.id, "web-01", "backup", "no space")
    assert failure.message == catalogue.run(run.id).error == "the store main is full; make room"


@pytest.mark.parametrize(
    ("state", "error"), [(RunState.QUEUED, None), (RunState.FAILED, None), (RunState.SUCCEEDED, "but")]
)
def test_an_end_that_is_none_is_a_mistake_of_ours(catalogue: Catalogue, state: RunState, error: str | None) -> None:
    run = claimed(catalogue)
    with pytest.raises(ValueError, match="cannot end"):
        catalogue.finish(run.id, "a", state, error=error)


def _plan(run: Run) -> list[Slice]:
    return [Slice(run=run.id, disk=disk, start=n * 10, end=n * 10 + 10, done=n * 10) for disk in "ba" for n in range(3)]


def _claim_slices(catalogue: Catalogue, run: Run, owner: str = "a", lease: float = LONG) -> None:
    """All of them."""
    catalogue.remember(run.id, owner, **{PLAN: "plan"})
    while catalogue.claim_slice(run.id, owner, lease, fence=run.fence, plan="plan", tries=9) is not None:
        pass


def _progress(slices: Sequence[Slice]) -> list[Slice]:
    return [Slice.model_validate(slice_.model_dump(include=set(Slice.model_fields))) for slice_ in slices]


def test_slices_are_planned_once_and_checkpointed(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    plan = _plan(run)
    catalogue.add_slices(run.id, plan, owner="a")
    _claim_slices(catalogue, run)
    half = plan[0].model_copy(update={"done": 5, "read": 5, "made": "segment-1"})
    catalogue.checkpoint(run.id, run.fence, half, owner="a")
    catalogue.checkpoint(run.id, run.fence, half, owner="a")
    catalogue.add_slices(run.id, plan, owner="a")  # told again: what is done stays done
    found = catalogue.slices(run.id)
    assert [(s.disk, s.start) for s in found] == [("a", 0), ("a", 10), ("a", 20), ("b", 0), ("b", 10), ("b", 20)]
    assert _progress(found)[3] == half
    catalogue.drop_slices(run.id, owner="a")
    assert catalogue.slices(run.id) == []


def test_another_plan_is_refused_until_the_first_is_dropped(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    plan = _plan(run)
    catalogue.add_slices(run.id, plan, owner="a")
    with pytest.raises(Conflict, match="plan of 6 slices already"):
        catalogue.add_slices(run.id, plan[:3], owner="a")
    catalogue.drop_slices(run.id, owner="a")
    catalogue.add_slices(run.id, plan[:3], owner="a")
    assert len(catalogue.slices(run.id)) == 3


def test_a_checkpoint_never_goes_back_nor_past_the_end(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    (slice_, *_) = plan = _plan(run)
    catalogue.add_slices(run.id, plan, owner="a")
    _claim_slices(catalogue, run)
    catalogue.checkpoint(run.id, run.fence, slice_.model_copy(update={"done": 5}), owner="a")
    for wrong in ({"done": 4}, {"done": 11}, {"done": 7, "end": 8}):
        with pytest.raises(Conflict, match="recorded up to 5 of 10"):
            catalogue.checkpoint(run.id, run.fence, slice_.model_copy(update=wrong), owner="a")
    assert catalogue.slices(run.id)[3].done == 5


def test_a_checkpoint_under_an_old_fence_is_refused(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    plan = _plan(run)
    catalogue.add_slices(run.id, plan, owner="a")
    _claim_slices(catalogue, run)
    catalogue.raise_fence(run.target, 0)
    with pytest.raises(FencedOut, match="fence 1"):
        catalogue.checkpoint(run.id, run.fence, plan[0].model_copy(update={"done": 5}), owner="a")


def test_hole_12_a_sleeper_cannot_report_the_lost_snapshot_into_the_new_plan(catalogue: Catalogue) -> None:
    """The run goes on with a new snapshot, under its own fence: only the owner tells the two apart."""
    run = claimed(catalogue, owner="sleeper")
    catalogue.add_slices(run.id, _plan(run), owner="sleeper")
    _claim_slices(catalogue, run, "sleeper")
    catalogue.renew(run.id, "sleeper", 0.01)
    wait_for(lambda: catalogue.claim(run.id, "next", LONG), "the claim of a deserted run")
    catalogue.drop_slices(run.id, owner="next")
    catalogue.add_slices(run.id, _plan(run), owner="next")
    _claim_slices(catalogue, run, "next")
    read_from_the_old = _plan(run)[0].model_copy(update={"done": 10, "made": "segment of the old snapshot"})
    with pytest.raises(FencedOut, match="it went to next"):
        catalogue.checkpoint(run.id, run.fence, read_from_the_old, owner="sleeper")
    assert all(slice_.made == "" for slice_ in catalogue.slices(run.id))
