"""What others left: runs whose worker or message vanished go on; failed runs' snapshots and packs are removed."""

from __future__ import annotations

from typing import NamedTuple

from workers.errors import UnderstudyError
from workers.models import Run
from workers.run import Here, give_up
from workers.settings import seconds


class Found(NamedTuple):
    """`lost` wait for a message; `ended` failed here and now; `unclean` have something to be removed."""

    lost: list[Run]
    ended: list[Run]
    unclean: list[Run]


def reap(here: Here) -> Found:
    """One tick. Repeatable; looks at the catalogue only."""
    tuning = here.settings.tuning
    lost, ended = [], []
    for run in here.catalogue.lost_runs(queued_s=2 * seconds(tuning.reap_every)):
        if run.attempts < tuning.attempts:
            lost.append(run)
            continue
        sentence = (
            f"its worker was lost {run.attempts} times in a row (killed, out of memory, or its machine went down); "
            "look at the workers' logs, then start it again"
        )
        try:
            give_up(here, run, sentence)
            ended.append(run)
        except UnderstudyError:
            continue  # somebody went on with it just now
    return Found(lost, ended, here.catalogue.unclean_runs())
