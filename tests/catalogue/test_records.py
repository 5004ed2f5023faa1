"""What is recorded: sync points, pairs, restore points, inventory, failures."""

from __future__ import annotations

import pytest

from tests.catalogue.races import race
from tests.catalogue.some import failure, pair, request, restore_point, sync_point, syncing, vm
from tests.services import wait_for
from workers.catalogue import Catalogue
from workers.errors import BadInput, Conflict, FencedOut, NotFound, Refused
from workers.models import Pair, Run, RunKind, RunState, SyncPoint


def test_a_commit_records_the_sync_point_and_ends_the_run(catalogue: Catalogue) -> None:
    pair_, run = syncing(catalogue)
    kept = catalogue.commit_sync(run.id, "a", sync_point(pair_, run), read=8192)
    assert abs((catalogue.now() - kept.committed).total_seconds()) < 60  # the database's time
    assert catalogue.sync_point(pair_.id) == kept
    ended = catalogue.run(run.id)
    assert (ended.state, ended.point, ended.written, ended.read) == (RunState.SUCCEEDED, "00000001-abc", 4096, 8192)
    assert ended.reasons == kept.reasons


def test_a_commit_that_is_told_again_is_the_same_commit(catalogue: Catalogue) -> None:
    pair_, run = syncing(catalogue)
    kept = catalogue.commit_sync(run.id, "a", sync_point(pair_, run))
    # Even after a newer run has started: it is a fact that this one had committed.
    request(catalogue, run.target, kind=RunKind.SYNC)
    assert catalogue.commit_sync(run.id, "a", sync_point(pair_, run)) == kept
    with pytest.raises(Conflict, match="cannot commit 00000002-x"):
        catalogue.commit_sync(run.id, "a", sync_point(pair_, run, point="00000002-x"))
    assert catalogue.sync_points(pair_.id) == [kept]


def test_a_run_that_was_fenced_out_cannot_commit(catalogue: Catalogue) -> None:
    pair_, run = syncing(catalogue)
    catalogue.raise_fence(run.target, 0)
    with pytest.raises(FencedOut, match="the present one is 2; a newer run owns the replica"):
        catalogue.commit_sync(run.id, "a", sync_point(pair_, run))
    with pytest.raises(FencedOut):
        catalogue.commit_sync(run.id, "a", sync_point(pair_, run, fence=2))
    with pytest.raises(FencedOut, match="no longer zombie's"):
        catalogue.commit_sync(run.id, "zombie", sync_point(pair_, run))
    assert catalogue.sync_point(pair_.id) is None
    assert catalogue.run(run.id).live


def test_half_applied_replicas_are_known_from_the_first_write_to_the_commit(catalogue: Catalogue) -> None:
    one, other = pair(catalogue), pair(catalogue, source="another")
    catalogue.applying(one.id, base="A", toward="B", undo="[ds1] x")
    catalogue.applying(other.id, base="A", toward="B", undo="")
    since = catalogue.half_applied()[one.id].since
    catalogue.applying(one.id, base="A", toward="C", undo="")
    known = catalogue.half_applied()
    assert (known[one.id].toward, known[one.id].undo, known[one.id].since) == ("C", "", since)
    for _ in range(2):
        catalogue.applied(one.id)
    assert set(catalogue.half_applied()) == {other.id}
    catalogue.forget_pair(other.id, who="somebody", reason="it is over")
    assert catalogue.half_applied() == {}


def test_eight_that_commit_the_same_run_commit_it_once(catalogue: Catalogue) -> None:
    pair_, run = syncing(catalogue)
    answers = race(8, _commit, catalogue, pair_, run)
    assert all(answer == answers[0] for answer in answers)
    assert catalogue.sync_points() == [answers[0]]


def _commit(_number: int, catalogue: Catalogue, pair_: Pair, run: Run) -> SyncPoint:
    return catalogue.commit_sync(run.id, "a", sync_point(pair_, run))


def test_a_commit_and_a_raised_fence_have_an_order(catalogue: Catalogue) -> None:
    """Whoever is first, a sync point is never committed under a fence that was already old."""
    for _ in range(5):
        pair_, run = syncing(catalogue)
        committed, raised = sorted(race(2, _commit_or_raise, catalogue, pair_, run))
        assert raised[1] == run.fence + 1
        known = [point.run for point in catalogue.sync_points(pair_.id)]
        assert (run.id in known) == (committed[1] == 1)
        if catalogue.run(run.id).live:
            catalogue.finish(run.id, "a", RunState.FAILED, error="fenced out")


def _commit_or_raise(number: int, catalogue: Catalogue, pair_: Pair, run: Run) -> tuple[str, int]:
    if number == 0:
        return "raised", catalogue.raise_fence(run.target, 0)
    try:
        catalogue.commit_sync(run.id, "a", sync_point(pair_, run))
    except FencedOut:
        return "committed", 0
    return "committed", 1


def test_the_latest_sync_point_is_that_of_the_highest_fence(catalogue: Catalogue) -> None:
    for seq in range(1, 4):
        pair_, run = syncing(catalogue)
        catalogue.commit_sync(run.id, "a", sync_point(pair_, run, point=f"{seq:08}-x"))
    latest = catalogue.sync_point(pair_.id)
    assert latest is not None and (latest.point, latest.fence) == ("00000003-x", 3)
    assert [point.fence for point in catalogue.sync_points(pair_.id, limit=2)] == [3, 2]
    assert len(catalogue.sync_points()) == 3
    assert catalogue.sync_point("another") is None


def test_a_pair_is_made_once(catalogue: Catalogue) -> None:
    made = race(8, _ensure, catalogue)
    assert len({found.id for found in made}) == 1
    assert catalogue.pairs() == [made[0]] == catalogue.pairs("web-01") == catalogue.pairs("uuid-1")
    assert catalogue.pairs("web-02") == []


def _ensure(_number: int, catalogue: Catalogue) -> Pair:
    return pair(catalogue)


def test_a_pair_follows_its_group_until_the_replica_is_built(catalogue: Catalogue) -> None:
    made = pair(catalogue)
    moved = pair(catalogue, vm="renamed", site="other", replica_name="renamed_replica")
    assert (moved.id, moved.vm, moved.site, moved.replica_name) == (made.id, "renamed", "other", "renamed_replica")
    catalogue.set_replica(made.id, "uuid-replica")
    built = pair(catalogue, vm="again", site="other", replica_name="again_replica", store="second")
    assert (built.vm, built.store, built.replica_name) == ("again", "second", "renamed_replica")
    with pytest.raises(Refused, match="was built at other"):
        pair(catalogue, site="elsewhere")
    assert catalogue.pair(made.id) == built


def test_a_replica_is_not_exchanged_by_accident(catalogue: Catalogue) -> None:
    made = pair(catalogue)
    assert catalogue.set_replica(made.id, "one") == catalogue.set_replica(made.id, "one")
    with pytest.raises(Refused, match="has the replica one already"):
        catalogue.set_replica(made.id, "two")
    assert catalogue.set_replica(made.id, None).replica is None


def test_pausing_generation_and_failover(catalogue: Catalogue) -> None:
    made = pair(catalogue)
    assert catalogue.pause(made.id, "rolled back to an older point").paused == "rolled back to an older point"
    assert catalogue.pause(made.id, None).paused is None
    assert catalogue.set_failover(made.id, "failover running").failover == "failover running"
    assert catalogue.bump_generation(made.id).generation == 2
    assert catalogue.bump_generation(made.id, at_least=7).generation == 8
    assert catalogue.pair(made.id).generation == 8
    with pytest.raises(NotFound, match="no pair nobody"):
        catalogue.pause("nobody", "why")


def test_points_are_mirrored(catalogue: Catalogue) -> None:
    for seq in (2, 1, 3):
        catalogue.record_point("main", restore_point(seq))
    catalogue.record_point("main", restore_point(3))
    catalogue.record_point("main", restore_point(1, number=2))
    catalogue.record_point("second", restore_point(2))
    assert [(p.store, p.seq) for p in catalogue.points("uuid-1")] == [
        ("main", 1),
        ("main", 2),
        ("main", 3),
        ("second", 2),
    ]
    newest = catalogue.newest_points()
    assert [(p.store, p.vm, p.seq) for p in newest] == [
        ("main", "uuid-1", 3),
        ("main", "uuid-2", 1),
        ("second", "uuid-1", 2),
    ]
    assert (newest[0].capacity, newest[0].read, newest[0].changed, newest[0].stored) == (1 << 30, 5, 3, 2)
    for _ in range(2):
        catalogue.drop_point("main", "uuid-1", "00000003-abc")
    assert [p.seq for p in catalogue.newest_points("main")] == [2, 1]


def test_the_inventory_marks_what_a_complete_answer_lacks(catalogue: Catalogue) -> None:
    catalogue.record_inventory("prod", [vm(1), vm(2)])
    catalogue.record_inventory("dr", [vm(3, site="dr")])
    catalogue.record_inventory("prod", [vm(2, name="renamed")])
    gone, renamed = catalogue.inventory("prod")[1], catalogue.inventory("prod")[0]
    assert (renamed.identity.name, renamed.gone_since) == ("renamed", None)
    assert gone.identity.name == "web-01" and gone.gone_since is not None
    first_gone = gone.gone_since
    wait_for(lambda: catalogue.now() > first_gone, "a later time")
    catalogue.record_inventory("prod", [vm(2)])
    assert catalogue.inventory("prod")[0].gone_since == first_gone  # since then, not since the last answer
    catalogue.record_inventory("prod", [vm(1), vm(2)])
    assert [known.gone_since for known in catalogue.inventory()] == [None, None, None]


def test_an_inventory_with_an_ambiguous_vm_is_refused_whole(catalogue: Catalogue) -> None:
    catalogue.record_inventory("prod", [vm(1)])
    with pytest.raises(BadInput, match=r"two VMs with the instance UUID uuid-2 \(web-02 and clone\)"):
        catalogue.record_inventory("prod", [vm(2), vm(2, name="clone")])
    assert [(known.identity.name, known.gone_since) for known in catalogue.inventory()] == [("web-01", None)]


def test_failures_are_listed_the_newest_first(catalogue: Catalogue) -> None:
    for number in range(3):
        catalogue.record_failure(failure(f"failure {number}", run=f"run-{number}"))
    catalogue.record_failure(failure("another", vm="web-02"))
    assert [f.message for f in catalogue.failures(vm="web-01", limit=2)] == ["failure 2", "failure 1"]
    assert [f.message for f in catalogue.failures(run="run-0")] == ["failure 0"]
    assert abs((catalogue.now() - catalogue.failures()[0].at).total_seconds()) < 60


def test_a_failure_of_a_run_or_task_is_told_once(catalogue: Catalogue) -> None:
    for _ in range(2):
        catalogue.record_failure(failure("same", run="r", task="t"))
    catalogue.record_failure(failure("same", run="r"))
    catalogue.record_failure(failure("same", run="r2", task="t2"))
    catalogue.record_failure(failure("other", run="r", task="t"))
    assert [f.message for f in catalogue.failures()] == ["other", "same", "same"]
