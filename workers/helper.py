"""Help with a run that another worker has, or nobody just now: take free slices of it, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from workers import faults
from workers.catalogue import CONDEMNED, PLAN, STOP
from workers.errors import Conflict, FencedOut, SliceFailed, SnapshotLost, Stopped, Transient, UnderstudyError
from workers.models import Run, RunKind, RunReport, Slice
from workers.run import Here, Live, NotYet, OutOfTime, execution, of_kind, renewed, storage_in_words

log = structlog.get_logger()

#: of a slice, and nothing that ends the run
_PASSING = (Transient, Conflict, FencedOut, SnapshotLost, SliceFailed, Stopped, NotYet, OutOfTime)


class NotAsLeft(Exception):
    """What the slices were planned for is not what is found. Only who has the run may change that."""


class Helper(Live):
    """An execution that has claims of slices at most, never of their run."""

    def __init__(self, here: Here, run: Run, owner: str) -> None:
        super().__init__(here, run, owner)
        self.waits_since = None  # it is gone when there is no place for one more

    @property
    def place_holder(self) -> str:
        """Each helper for itself: it is a worker more."""
        return self.owner

    def remember(self, **memory: str | None) -> None:
        raise NotAsLeft

    def forget_slices(self) -> None:
        raise NotAsLeft

    def refence(self, at_least: int) -> None:
        raise NotAsLeft

    def note(self, *reasons: str) -> None:
        """The run's reasons are its worker's to give."""
        for reason in reasons:
            log.info(reason, run=self.run.id, vm=self.run.vm)

    def renew(self, lease: float) -> bool:
        """Also False when the run has ended: or the lock on a slice's range would hold the target's next run up."""
        return self.here.catalogue.renew_slices(self.run.id, self.owner, lease) and self.still_held()

    def give_up_plan(self, part: Slice, **memory: str) -> None:
        self.here.catalogue.give_up_plan(part, self.owner, self.run.fence, **memory)

    def failed(self, part: Slice, err: Exception) -> None:
        super().failed(part, err)
        if not isinstance(err, (*_PASSING, NotAsLeft)):
            known = isinstance(err, UnderstudyError)
            said = str(err) if known else f"unexpected {type(err).__name__}: {err}; the worker's log has the details"
            family = err.family if isinstance(err, UnderstudyError) else "unexpected"
            self.here.catalogue.condemn(self.run.id, said, family, at=(part, self.owner))


def help_out(
    here: Here, run_id: str, kind: RunKind, work: Callable[[Helper], None], lead: Callable[[Here, str], RunReport]
) -> RunReport:
    """Work on free slices of the run. Who finds that all are finished goes on with the run itself, by `lead`.

    Nothing is raised that concerns a slice: it is in the ledger, for whoever has the run. A run of another kind (a
    message by hand, with the wrong run) is an error, and changes nothing.
    """
    run = of_kind(here, run_id, kind)
    helper = Helper(here, run, execution())
    if not run.live or not helper.planned:
        return RunReport(run=run_id, vm=run.vm, outcome="left", reason="there is nothing to help with")
    outcome, reason = _helped(helper, work)
    faults.at("helper.done")
    now = here.catalogue.run(run_id)
    planned = now.memory.get(PLAN) == helper.recall(PLAN)
    ends = not now.memory.keys().isdisjoint((STOP, CONDEMNED)) or (planned and helper.all_finished())
    if now.live and ends:
        return lead(here, run_id)
    return helper.report(outcome, reason)


def _helped(helper: Helper, work: Callable[[Helper], None]) -> tuple[str, str]:
    """What became of it: outcome and reason."""
    about = {"run": helper.run.id, "vm": helper.run.vm}
    try:
        with renewed(helper):
            try:
                with storage_in_words():
                    work(helper)
            finally:
                helper.let_go()
    except OutOfTime:
        return "helps", "its time in this task was up; another message goes on"
    except NotAsLeft:
        return "left", "what is found is not what was planned for; the run's own worker sees to that"
    except SliceFailed as err:
        helper.here.catalogue.condemn(helper.run.id, str(err), err.family)
        return "left", str(err)
    except (UnderstudyError, NotYet) as err:
        log.warning(str(err), **about)
        return "left", str(err)
    except Exception as err:
        log.exception("unexpected error", **about)
        return "left", f"unexpected {type(err).__name__}: {err}"
    return "left", "no slice is free any more"
