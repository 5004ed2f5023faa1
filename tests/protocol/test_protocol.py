"""Plan, cursor, ledger, target and store under hypothesis, in a world in memory where any step may be the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.life import Life
from tests.protocol.mistakes import MISTAKES
from tests.protocol.realm import Ground


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.close()


short = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_any_step_may_be_the_last(ground: Ground) -> None:
    class Here(Life):
        pass

    Here.ground = ground
    run_state_machine_as_test(Here, settings=short)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, ground: Ground) -> None:
    class Here(Life):
        def plant(self) -> None:
            MISTAKES[name](self.patch)

    Here.ground = ground
    quick = settings(short, max_examples=300, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Here, settings=quick)
