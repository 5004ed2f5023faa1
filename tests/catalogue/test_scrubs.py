"""How far something was compared, and where it differs."""

from __future__ import annotations

import pytest

from tests.catalogue import some
from workers.catalogue import Catalogue, Damage, Scrub
from workers.errors import FencedOut
from workers.models import Pair, Run, RunKind, RunState


def verifying(catalogue: Catalogue) -> tuple[Pair, Run]:
    pair = some.pair(catalogue)
    return pair, some.claimed(catalogue, f"pair:{pair.id}", kind=RunKind.VERIFY, pair=pair.id)


def damage(run: Run, start: int, end: int, disk: str = "d1", granules: int = 1) -> Damage:
    return Damage(
        target=run.target, disk=disk, start=start, end=end, granules=granules, label="Hard disk 1", point="p",
        run=run.id, found=some.NOON,
    )  # fmt: skip


def known(catalogue: Catalogue) -> list[tuple[str, int, int, int]]:
    return [(d.disk, d.start, d.end, d.granules) for d in catalogue.damages()]


def test_a_range_that_is_compared_again_replaces_what_was_known_of_it(catalogue: Catalogue) -> None:
    _, run = verifying(catalogue)
    catalogue.compared(run.id, "a", "d1", 0, 100_000, [damage(run, 0, 4096), damage(run, 20480, 40960, granules=3)])
    catalogue.compared(run.id, "a", "d2", 0, 100_000, [damage(run, 8192, 12288, "d2")])
    for _ in range(2):  # an answer that was lost
        catalogue.compared(run.id, "a", "d1", 24576, 28672, [])
        assert known(catalogue) == [
            ("d1", 0, 4096, 1),
            ("d1", 20480, 24576, 1),
            ("d1", 28672, 40960, 3),
            ("d2", 8192, 12288, 1),
        ]
    assert catalogue.damages("pair:other") == []
    assert catalogue.damages(run.target)[0].found > some.NOON, "by the database's clock"
    catalogue.mended(run.id, "a")
    assert known(catalogue) == []


def test_only_who_holds_the_run_may_say_so(catalogue: Catalogue) -> None:
    _, run = verifying(catalogue)
    scrub = Scrub(target=run.target, began=some.NOON, part="d1", offset=5, covered=5, total=10)
    for call in (
        lambda: catalogue.compared(run.id, "b", "d1", 0, 5, [damage(run, 0, 5)]),
        lambda: catalogue.scrubbed(run.id, "b", scrub),
        lambda: catalogue.mended(run.id, "b"),
    ):
        with pytest.raises(FencedOut):
            call()
    assert catalogue.scrubs() == {} and known(catalogue) == []
    catalogue.scrubbed(run.id, "a", scrub)
    later = scrub.model_copy(update={"offset": 10, "covered": 10, "ended": some.NOON, "whole_ended": some.NOON})
    catalogue.scrubbed(run.id, "a", later)
    assert catalogue.scrubs(run.target) == {run.target: later} == catalogue.scrubs()


@pytest.mark.parametrize(("mode", "left"), [("compare", 0), ("build", 0), ("delta", 1)])
def test_a_compare_of_every_block_leaves_no_damage(catalogue: Catalogue, mode: str, left: int) -> None:
    pair, run = verifying(catalogue)
    catalogue.compared(run.id, "a", "d1", 0, 5, [damage(run, 0, 5)])
    catalogue.finish(run.id, "a", RunState.FAILED, error="differs", family="validation failed")
    sync = some.claimed(catalogue, f"pair:{pair.id}", kind=RunKind.SYNC, pair=pair.id)
    catalogue.commit_sync(sync.id, "a", some.sync_point(pair, sync, mode=mode))
    assert len(catalogue.damages()) == left


def test_what_was_known_goes_with_the_pair(catalogue: Catalogue) -> None:
    pair, run = verifying(catalogue)
    catalogue.compared(run.id, "a", "d1", 0, 5, [damage(run, 0, 5)])
    catalogue.scrubbed(run.id, "a", Scrub(target=run.target, began=some.NOON))
    catalogue.forget_pair(pair.id, who="ann", reason="sold")
    assert catalogue.damages() == [] and catalogue.scrubs() == {}


def test_a_verification_is_not_how_a_target_goes(catalogue: Catalogue) -> None:
    """Neither the last run that ended, nor the end of a streak of failures."""
    target = "pair:p"
    for kind, state in (
        (RunKind.SYNC, RunState.FAILED),
        (RunKind.VERIFY, RunState.SUCCEEDED),
        (RunKind.SYNC, RunState.FAILED),
        (RunKind.VERIFY, RunState.FAILED),
    ):
        run = some.claimed(catalogue, target, kind=kind)
        catalogue.finish(run.id, "a", state, error="e" if state is RunState.FAILED else None, family="no space")
    (last,) = catalogue.latest_ended(target)
    assert last.run.kind is RunKind.SYNC and last.failures == 2
    assert catalogue.latest_verifications()[target].state is RunState.FAILED
