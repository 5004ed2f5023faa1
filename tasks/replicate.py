"""Replication as tasks: `understudy.sync` is what people enqueue, `understudy.sync.run` does a run's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from celery import Task

from tasks.app import app, here
from tasks.dispatch import done, only_known, send_requested, with_helpers
from workers import dispatch, replicate
from workers.errors import BadInput, UnderstudyError
from workers.models import Trigger

log = structlog.get_logger()


@app.task(name="understudy.sync", throws=(BadInput,))
def request(
    vm: Any = None,
    discard_changes: Any = False,
    full: Any = None,
    target: Any = None,
    *more: Any,
    **unknown: Any,
) -> list[dict[str, Any]]:
    """Bring this VM's replicas up to the newest restore point now, or join the syncs that are running."""
    takes = (
        "vm (a VM's name), discard_changes (true or false), full (why every block is compared) and target (a recovery "
        "target)"
    )
    only_known(f"understudy.sync takes {takes}", more, unknown)
    if not isinstance(discard_changes, bool):  # "false" is true to Python, and would give up what others wrote
        raise BadInput(f"discard_changes is true or false, not {discard_changes!r}; nothing was requested")
    if full is not None and (not isinstance(full, str) or not full):
        raise BadInput(f"full is a sentence that says why every block is compared, not {full!r}; nothing was requested")
    targets = () if target is None else (target,)
    return send_requested(request_runs(vm, discard_changes=discard_changes, full=full, targets=targets))


def request_runs(
    vm: str, *, discard_changes: bool = False, full: str | None = None, targets: Sequence[str] = ()
) -> list[Any]:
    """One run per recovery target, of `targets` or of all. A target that can have no pair is said, and does not keep
    the others waiting."""
    made: list[Any] = []
    wrong: list[UnderstudyError] = []
    for member in [each for target in targets or (None,) for each in dispatch.replicated(here(), vm, target)]:
        try:
            pair = dispatch.pair_of(here(), member)
            assert pair is not None
            made.append(dispatch.request_sync(here(), pair, Trigger.AD_HOC, discard=discard_changes, full=full))
        except UnderstudyError as err:
            wrong.append(err)
    if wrong and not made:
        raise wrong[0]
    for each in wrong:
        log.error(str(each), vm=vm)
    return made


@app.task(name="understudy.sync.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    return done(replicate.run(with_helpers(), run))


@app.task(name="understudy.sync.slice", bind=True)
def help_out(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Work on free slices of the run, beside other workers. Without any it does nothing."""
    return done(replicate.help_out(with_helpers(), run))
