"""Verification as tasks: `understudy.verify` is what people enqueue, `understudy.verify.run` does a run's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import done, only_known, send_requested
from tasks.pairs import pairs_of
from workers import verify
from workers.errors import BadInput


@app.task(name="understudy.verify", throws=(BadInput,))
def request(
    vm: Any = None, repair: Any = False, target: Any = None, *more: Any, **unknown: Any
) -> list[dict[str, Any]]:
    """Compare all of this VM's replicas with their sync points now; with repair also mend what differs."""
    takes = "vm (a VM's name), repair (true or false) and target (a recovery target)"
    only_known(f"understudy.verify takes {takes}", more, unknown)
    for name, value in (("vm", vm), ("target", target)):
        if not isinstance(value, str) and (name == "vm" or value is not None):
            raise BadInput(f"{name} is a text, not {value!r}; nothing was requested")
    if not isinstance(repair, bool):  # "false" is true to Python, and would write
        raise BadInput(f"repair is true or false, not {repair!r}; nothing was requested")
    return send_requested(request_runs(vm, repair=repair, targets=() if target is None else (target,)))


def request_runs(vm: str, *, repair: bool, targets: Sequence[str] = ()) -> list[Any]:
    """One run per replica, of those at `targets` or of all."""
    return [verify.request(here(), pair, repair=repair) for pair in pairs_of(vm, targets)]


@app.task(name="understudy.verify.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    return done(verify.run(here(), run))
