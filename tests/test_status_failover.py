"""Where a pair stands between its two sides: a table for the pure function."""

from __future__ import annotations

import pytest

from tests.test_status import DONE, NOW, a_pair, a_point, a_sync, failed
from workers.catalogue import Ended
from workers.state import Failover, State, status


@pytest.mark.parametrize("word", list(Failover))
@pytest.mark.parametrize(
    ("last", "damage", "state"),
    [
        (DONE, "", State.IN_SYNC),
        (failed("touched"), "", State.TOUCHED),
        (failed("no space"), "", State.FAILED),
        (DONE, "a part differs", State.VALIDATION_FAILED),
    ],
)
def test_where_a_pair_stands_between_its_sides_is_a_word_of_its_own(
    word: Failover, last: Ended, damage: str, state: State
) -> None:
    """It takes nothing from what is known of the data, and is said first."""
    found = status(a_pair(failover=str(word)), a_point(2), a_sync(2), None, last, NOW, damage=damage)
    assert (found.state, found.failover) == (state, word)
    assert found.sentence.startswith(str(word)) == (word is not Failover.NONE)
    assert found.problem == (state is not State.IN_SYNC or word.endswith(("failed", "partial")))
