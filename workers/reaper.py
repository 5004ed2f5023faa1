"""What others left: runs whose worker or message vanished go on; failed runs' snapshots and packs are removed."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from workers.errors import FencedOut, WorkerLost
from workers.models import Run, RunKind
from workers.run import Here, give_up
from workers.settings import seconds


class Found(NamedTuple):
    """`lost` wait for a message; `ended` failed here and now; `unclean` have something to be removed; of `short`
    each is worth so many more workers."""

    lost: list[Run]
    ended: list[Run]
    unclean: list[Run]
    short: list[tuple[Run, int]]


def reap(here: Here) -> Found:
    """One tick. Repeatable; looks at the catalogue only."""
    tuning = here.settings.tuning
    lost: list[Run] = []
    ended: list[Run] = []
    for run in here.catalogue.lost_runs(queued_s=2 * seconds(tuning.reap_every)):
        if run.site not in here.settings.sites:
            sentence = (
                f"the site {run.site} is not in the configuration any more, so no worker can go on with this run; "
                f"add sites.{run.site} again, or let it be"
            )
            _end(here, run, sentence, "configuration", ended)
            continue
        if run.attempts < tuning.attempts:
            lost.append(run)
            continue
        _end(here, run, str(WorkerLost(run.attempts)), WorkerLost.family, ended)
    return Found(lost, ended, _unclean(here), _short(here))


def _short(here: Here) -> list[tuple[Run, int]]:
    """Runs of which free slices wait though more workers may be at them: a helper, or the message for it, was lost.

    A run that is worked on for long without having called helpers, being small, is slow enough to have some.
    """
    tuning = here.settings.tuning
    found = []
    for short in here.catalogue.short_of_workers(sent_s=2 * seconds(tuning.reap_every)):
        more = min(short.free, tuning.spread - max(1, short.busy))
        if more > 0 and short.run.site in here.settings.sites:
            found.append((short.run, more))
    return found


def _end(here: Here, run: Run, sentence: str, family: str, ended: list[Run]) -> None:
    with suppress(FencedOut):  # somebody went on with it just now
        give_up(here, run, sentence, family)
        ended.append(run)


def _unclean(here: Here) -> list[Run]:
    """Failed runs that left something which a worker of their site can remove."""
    found = []
    for run in here.catalogue.unclean_runs():
        if run.site in here.settings.sites:
            found.append(run)
            continue
        what = "pin in the store" if run.kind in (RunKind.RESTORE, RunKind.COPY) else "snapshot in vCenter"
        here.catalogue.note(
            run.id,
            f"its {what} may still be there: the site {run.site} is not in the configuration any more; remove "
            f"the {what} whose name ends in {run.id}",
        )
        here.catalogue.cleaned(run.id)
    return found
