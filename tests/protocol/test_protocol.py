"""Plan, cursor, ledger, target and store under hypothesis, in a world in memory where any step may be the last."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.life import Life
from tests.protocol.realm import catalogue_template


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return catalogue_template(tmp_path_factory.mktemp("protocol"))


short = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_any_step_may_be_the_last(template: Path) -> None:
    class Here(Life):
        pass

    Here.template = template
    run_state_machine_as_test(Here, settings=short)
