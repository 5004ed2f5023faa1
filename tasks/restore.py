"""Restores and rollbacks as tasks: the requests that people enqueue, and a restore run's work."""

from __future__ import annotations

from typing import Any

from celery import Task
from pydantic import ValidationError

from tasks.app import app, here
from tasks.dispatch import done, only_known, send_requested, with_helpers
from workers import restore, rollback
from workers.errors import BadInput
from workers.restore_order import Wish
from workers.undo import SYNC_POINT


@app.task(name="understudy.restore", throws=(BadInput,))
def request(vm: Any = None, *more: Any, yes: Any = False, **wish: Any) -> list[dict[str, Any]]:
    """Restore this VM. The same words as the command's options, e.g. point, to, over_original (then also yes=true)."""
    only_known("understudy.restore takes vm (a VM's name) and the options of the command by name", more, {})
    try:
        wished = Wish.model_validate({"vm": vm, **wish})
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"understudy.restore: {where}: {first['msg']}; nothing was requested") from err
    if wished.over_original and yes is not True:
        raise BadInput(f"this writes over {wished.vm}: say yes=true as well; nothing was requested")
    return send_requested([restore.request(here(), wished)])


@app.task(name="understudy.restore.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    return done(restore.run(with_helpers(), run))


@app.task(name="understudy.restore.slice", bind=True)
def help_out(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Work on free slices of the run, beside other workers. Without any it does nothing."""
    return done(restore.help_out(with_helpers(), run))


@app.task(name="understudy.rollback", throws=(BadInput,))
def roll_back(
    vm: Any = None, to: Any = None, target: Any = None, to_sync_point: Any = False, *more: Any, **unknown: Any
) -> list[dict[str, Any]]:
    """Bring this VM's replica to a restore point (without one to that before the present one), and pause the pair.

    `to_sync_point`: to what it held before a sync stopped half way.
    """
    takes = "vm, to (a restore point), target (a recovery target) and to_sync_point (true or false)"
    only_known(f"understudy.rollback takes {takes}", more, unknown)
    for name, value in (("vm", vm), ("to", to), ("target", target)):
        if not isinstance(value, str) and (name == "vm" or value is not None):
            raise BadInput(f"{name} is a text, not {value!r}; nothing was requested")
    if not isinstance(to_sync_point, bool) or (to_sync_point and to is not None):
        raise BadInput(f"to_sync_point is true or false, and goes without to; not {to_sync_point!r}, {to!r}")
    pair = rollback.pair_of(here(), vm, target)
    if to_sync_point:
        return send_requested([rollback.request(here(), pair, SYNC_POINT)])
    return send_requested([rollback.request(here(), pair, rollback.goal_of(here(), pair, to).id)])
