"""How each target's last run ended."""

from tests.catalogue import some
from workers.catalogue import Catalogue
from workers.models import RunState


def end(catalogue: Catalogue, target: str, state: RunState, **how: str) -> str:
    run = some.claimed(catalogue, target)
    catalogue.finish(run.id, "a", state, **how)
    return run.id


def test_the_last_end_of_each_target_and_why_it_failed(catalogue: Catalogue) -> None:
    end(catalogue, "chain:main:1", RunState.FAILED, error="broke", family="no space")
    mended = end(catalogue, "chain:main:1", RunState.SUCCEEDED)
    failed = end(catalogue, "chain:main:2", RunState.FAILED, error="broke", family="touched")
    some.request(catalogue, "chain:main:2")  # is live, has not ended
    some.request(catalogue, "chain:main:3")
    catalogue.raise_fence("chain:main:1", 50)  # without a run
    found = {each.run.target: (each.run.id, each.family) for each in catalogue.latest_ended()}
    assert found == {"chain:main:1": (mended, None), "chain:main:2": (failed, "touched")}


def test_nothing_has_ended_yet(catalogue: Catalogue) -> None:
    assert catalogue.latest_ended() == []
