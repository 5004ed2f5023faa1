"""Replication as tasks: `understudy.sync` is what people enqueue, `understudy.sync.run` does a run's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import go_on, only_known, send_requested
from workers import dispatch, replicate
from workers.errors import BadInput
from workers.models import Trigger


@app.task(name="understudy.sync", throws=(BadInput,))
def request(
    vm: Any = None, discard_changes: Any = False, full: Any = None, *more: Any, **unknown: Any
) -> list[dict[str, Any]]:
    """Bring this VM's replicas up to the newest restore point now, or join the syncs that are running."""
    takes = "vm (a VM's name), discard_changes (true or false) and full (why every block is compared)"
    only_known(f"understudy.sync takes {takes}", more, unknown)
    if not isinstance(discard_changes, bool):  # "false" is true to Python, and would give up what others wrote
        raise BadInput(f"discard_changes is true or false, not {discard_changes!r}; nothing was requested")
    if full is not None and (not isinstance(full, str) or not full):
        raise BadInput(f"full is a sentence that says why every block is compared, not {full!r}; nothing was requested")
    return send_requested(request_runs(vm, discard_changes=discard_changes, full=full))


def request_runs(
    vm: str, *, discard_changes: bool = False, full: str | None = None, targets: Sequence[str] = ()
) -> list[Any]:
    """`targets`: only the replicas at these recovery targets."""
    pairs = [pair for member in dispatch.find(here(), vm) if (pair := dispatch.pair_of(here(), member)) is not None]
    meant = [pair for pair in pairs if not targets or pair.recovery_target in targets]
    if pairs and not meant:
        at = ", ".join(sorted({pair.recovery_target for pair in pairs}))
        raise BadInput(f"the VM {vm} is not replicated to {', '.join(targets)}, but to: {at}")
    made = [dispatch.request_sync(here(), pair, Trigger.AD_HOC, discard=discard_changes, full=full) for pair in meant]
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
