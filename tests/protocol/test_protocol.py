"""Plan, cursor, ledger, target and store under hypothesis, in a world in memory where any step may be the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.hard_life import HardLife
from tests.protocol.mistakes import MISTAKES
from tests.protocol.realm import Ground
from workers import undo_kept


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.close()


short = settings(
    max_examples=8,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
#: without making what was found smaller: that it is found is enough
found = settings(short, max_examples=60, phases=[Phase.generate], report_multiple_bugs=False)

#: found within some seconds; the others take longer
SOON = ("cursor_written_late", "no_pins")


def live(ground: Ground, how: settings, mistake: str | None = None) -> None:
    class Here(HardLife):
        def plant(self) -> None:
            if mistake is not None:
                MISTAKES[mistake](self.patch)

    Here.ground = ground
    run_state_machine_as_test(Here, settings=how)


def test_any_step_may_be_the_last(ground: Ground) -> None:
    live(ground, short)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_step_may_be_the_last_in_many_lives(ground: Ground) -> None:
    """Other ones each time; what fails is printed with the blob that repeats it."""
    live(ground, settings(short, max_examples=500, stateful_step_count=40, derandomize=False, print_blob=True))


@pytest.mark.parametrize("mistake", SOON)
def test_a_planted_mistake_is_found(mistake: str, ground: Ground) -> None:
    with pytest.raises(AssertionError):
        live(ground, found, mistake)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name not in SOON])
def test_a_planted_mistake_is_found_in_more_lives(mistake: str, ground: Ground) -> None:
    with pytest.raises(AssertionError):
        live(ground, settings(found, max_examples=400, stateful_step_count=30), mistake)


def _sleeps_through_a_newer_run(life: HardLife) -> None:
    life.a_sleeper([(0, 0, 2)], "slice.claimed", [(0, 0, 3)], False, "checkpoint.after", 1)


def _is_last_but_for_a_helper(life: HardLife) -> None:
    life.a_lost_helper([(0, 0, 3), (0, 4, 3)], "slices.planned", "slice.claimed", False)


def _loses_power_after_a_checkpoint(life: HardLife) -> None:
    life.back_up_of([(0, 0, 3), (0, 4, 3)])
    life.message(True, False, "checkpoint.after", "dies")
    life.the_host_goes_down(1)
    life.a_sync()


def _grows(life: HardLife) -> None:
    life.a_growth(0, 1, 3, "", "goes on")


def _dies_when_it_has_grown(life: HardLife) -> None:
    life.a_growth(0, 1, 3, "own.renewed", "dies")
    life.a_sync()


def _dies_on_its_way_back_before_a_growth(life: HardLife) -> None:
    life.a_growth(0, 1, 3, "", "goes on")
    life.a_way_back(1, "own.after", "dies")
    life.give_up()
    life.a_sync()


#: the shortest life that shows it: random ones need up to some hundred
SHOWN: dict[str, Callable[[HardLife], None]] = {
    "nobody_is_fenced": _sleeps_through_a_newer_run,
    "commits_too_early": _is_last_but_for_a_helper,
    "checkpoints_what_is_not_synced": _loses_power_after_a_checkpoint,
    "grown_disks_forgotten": _grows,
    "grown_by_the_dead_forgotten": _dies_when_it_has_grown,
    "added_by_the_dead_forgotten": _dies_on_its_way_back_before_a_growth,
}


@pytest.mark.parametrize("mistake", SHOWN)
def test_a_planted_mistake_is_found_where_it_does_harm(mistake: str, ground: Ground) -> None:
    """And without it that very life goes well."""

    def lived(planted: str | None) -> None:
        class Here(HardLife):
            def plant(self) -> None:
                if planted is not None:
                    MISTAKES[planted](self.patch)

        Here.ground = ground
        life = Here()
        try:
            life.begin()
            life.a_sync()
            SHOWN[mistake](life)
            life.check()
        finally:
            life.realm.close()
            life.patch.undo()

    lived(None)
    with pytest.raises(AssertionError, match="is committed as"):
        lived(mistake)


def test_a_disk_that_was_added_by_a_run_that_died_and_written_by_somebody_is_made_anew(ground: Ground) -> None:
    """Its first content id is known to nobody, so that a boot in between left no sign: what the guest wrote stayed."""

    class Here(HardLife):
        pass

    Here.ground = ground
    life = Here()
    life.begin()
    life.a_sync()
    life.realm.add_disk(3)
    life.realm.write(1, 0, 3)
    life.realm.backup()
    life.message(True, False, "hardware.after", "dies")
    life.boot([(1, 2)], False)
    life.message(True, False, "own.before", "dies")
    life.a_sync()
    life.check()
    life.teardown()


@pytest.mark.parametrize("sleeps", ["seal.after", "undo.clearing", "undo.cleared"])
def test_who_slept_after_its_commit_takes_nothing_from_a_newer_run(sleeps: str, ground: Ground) -> None:
    """It has still to remove what was kept and the pins of older points: by now a newer run may need just these."""

    class Here(HardLife):
        pass

    Here.ground = ground
    life = Here()
    life.begin()
    life.a_sync()
    life.back_up_of([(0, 1, 2)])
    life.message(True, False, sleeps, "sleeps")
    sleeper = life.realm.executions[-1]
    life.give_up()
    life.back_up_of([(0, 2, 3)])
    life.message(True, False, "cursor.applying", "sleeps")
    newer = life.realm.executions[-1]
    cursor = life.realm.cursor()
    assert cursor is not None and len(cursor.targets) == 1
    sleeper.finish()
    holders = life.realm.store.pins(life.realm.vm.instance_uuid)
    assert set(holders) >= {cursor.base, *cursor.targets}
    assert undo_kept.lost({"ds1": life.realm.folder / "ds1"}, life.realm.vcenter.vm_state("vm-1"), cursor.undo) is None
    newer.finish()
    life.check()
    life.teardown()
