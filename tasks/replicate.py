"""Replication as tasks: `understudy.sync` is what people enqueue, `understudy.sync.run` does a run's work."""

from __future__ import annotations

from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import go_on, only_known, send_requested
from workers import dispatch, replicate
from workers.errors import BadInput
from workers.models import Trigger


@app.task(name="understudy.sync", throws=(BadInput,))
def request(vm: Any = None, discard_changes: Any = False, *more: Any, **unknown: Any) -> list[dict[str, Any]]:
    """Bring this VM's replicas up to the newest restore point now, or join the syncs that are running."""
    only_known("understudy.sync takes vm (a VM's name) and discard_changes (true or false)", more, unknown)
    if not isinstance(discard_changes, bool):  # "false" is true to Python, and would give up what others wrote
        raise BadInput(f"discard_changes is true or false, not {discard_changes!r}; nothing was requested")
    return send_requested(request_runs(vm, discard_changes=discard_changes))


def request_runs(vm: str, *, discard_changes: bool = False) -> list[Any]:
    made = []
    for member in dispatch.find(here(), vm):
        pair = dispatch.pair_of(here(), member)
        if pair is not None:
            made.append(dispatch.request_sync(here(), pair, Trigger.AD_HOC, discard=discard_changes))
    if not made:
        raise BadInput(
            f"the VM {vm} is backed up but not replicated: its group has no recovery target; set groups.<name>.target"
        )
    return made


@app.task(name="understudy.sync.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    report = replicate.run(here(), run)
    go_on(report)
    return report.model_dump(mode="json")
