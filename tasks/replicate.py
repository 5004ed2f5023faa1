"""Replication as tasks: `understudy.sync` is what people enqueue, `understudy.sync.run` does a run's work."""

from __future__ import annotations

from typing import Any

import structlog
from celery import Task

from tasks.app import app, here
from tasks.dispatch import go_on, only_known, send_requested
from workers import dispatch, replicate
from workers.errors import BadInput, UnderstudyError
from workers.models import Trigger

log = structlog.get_logger()


@app.task(name="understudy.sync", throws=(BadInput,))
def request(
    vm: Any = None, discard_changes: Any = False, target: Any = None, *more: Any, **unknown: Any
) -> list[dict[str, Any]]:
    """Bring this VM's replicas up to the newest restore point now, or join the syncs that are running."""
    takes = "understudy.sync takes vm (a VM's name), discard_changes (true or false) and target (a recovery target)"
    only_known(takes, more, unknown)
    if not isinstance(discard_changes, bool):  # "false" is true to Python, and would give up what others wrote
        raise BadInput(f"discard_changes is true or false, not {discard_changes!r}; nothing was requested")
    return send_requested(request_runs(vm, discard_changes=discard_changes, target=target))


def request_runs(vm: str, *, discard_changes: bool = False, target: str | None = None) -> list[Any]:
    """One run per recovery target. A target that can have no pair is said, and does not keep the others waiting."""
    made: list[Any] = []
    wrong: list[UnderstudyError] = []
    for member in dispatch.replicated(here(), vm, target):
        try:
            pair = dispatch.pair_of(here(), member)
            assert pair is not None
            made.append(dispatch.request_sync(here(), pair, Trigger.AD_HOC, discard=discard_changes))
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
    report = replicate.run(here(), run)
    go_on(report)
    return report.model_dump(mode="json")
