"""Backups as tasks: `understudy.backup` is what people enqueue, `understudy.backup.run` does a run's work."""

from __future__ import annotations

from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import done, only_known, send_requested, with_helpers
from workers import backup, dispatch, left_behind
from workers.errors import BadInput
from workers.models import Trigger


@app.task(name="understudy.backup", throws=(BadInput,))
def request(vm: Any = None, full: Any = None, *more: Any, **unknown: Any) -> list[dict[str, Any]]:
    """Back this VM up now, or join the backup that is running. On the control queue; ends at once."""
    only_known("understudy.backup takes vm (a VM's name) and full (why every block is compared)", more, unknown)
    if full is not None and (not isinstance(full, str) or not full):
        raise BadInput(f"full is a sentence that says why every block is compared, not {full!r}; nothing was requested")
    return send_requested(request_runs(vm, full=full))


def request_runs(vm: str, *, full: str | None = None) -> list[Any]:
    """One run per store, however many groups and recovery targets the VM has."""
    chains = {member.group.store: member for member in dispatch.find(here(), vm)}
    return [dispatch.request_backup(here(), member, Trigger.AD_HOC, full=full) for member in chains.values()]


@app.task(name="understudy.backup.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    return done(backup.run(with_helpers(), run))


@app.task(name="understudy.backup.slice", bind=True)
def help_out(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Work on free slices of the run, beside other workers. Without any it does nothing."""
    return done(backup.help_out(with_helpers(), run))


@app.task(name="understudy.backup.clean", ignore_result=True)
def clean(run: str, vm: str | None = None) -> None:
    """Remove what a failed run left in vCenter and in the store."""
    left_behind.clean_up(here(), run)
