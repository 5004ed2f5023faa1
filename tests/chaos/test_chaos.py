"""The short form of the chaos: some steps, some random kills, one verdict after each. `make chaos` has the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import labels
from tests.chaos.campaign import Campaign
from tests.chaos.place import place

#: printed with a failure; UNDERSTUDY_TEST_SEED repeats it, as far as moments can be repeated
SEED = int(os.environ.get("UNDERSTUDY_TEST_SEED", 20261122))
#: of the way of a backup and of a sync, one of each kind
SHORT = (
    "snapshot.after",
    "store.linked",
    "cursor.applying",
    "own.renewed",
    "slice.claimed",
    "slice.written",
    "checkpoint.after",
    "commit.after",
    "seal.before",
    "helper.done",
)


def test_what_is_hit_elsewhere_is_hit_there() -> None:
    for label, file in labels.ELSEWHERE.items():
        assert f'"{label}"' in Path(file).read_text(), f"{file} kills nobody at {label}"
    assert len(labels.here()) > 60 and set(SHORT) <= set(labels.here())


@pytest.mark.timeout(600)
def test_a_short_chaos(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with place(tmp_path, each=1, lease="3s", prune_every="2s") as here:
        here.settle_in(SEED, ("steady-0", "churn-0"), pause=0.5)
        campaign = Campaign(here, SEED)
        campaign.watch.start()
        try:
            campaign.at_steps(SHORT, seconds=60, and_then=2)
        finally:
            campaign.watch.stop()
    left = [step for step in SHORT if not campaign.watch.met[step]]
    assert not left, f"nobody came to {left}"
    assert sum(campaign.watch.commits().values()) >= 2
