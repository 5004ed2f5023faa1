"""Copies as tasks: `understudy.copy` is what people enqueue, `understudy.copy.run` does a run's work."""

from __future__ import annotations

from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import done, only_known, send_requested, with_helpers
from workers import copy, named
from workers.copies import CopyPlan, check_ends
from workers.errors import BadInput, NotFound
from workers.restore_points import choose, uuids_of


@app.task(name="understudy.copy", throws=(BadInput,))
def request(
    vm: Any = None, source: Any = None, to: Any = None, point: Any = None, *more: Any, **unknown: Any
) -> list[dict[str, Any]]:
    """Copy this VM's newest restore point, or the one that is named, from one store to another."""
    takes = "vm (a VM's name), source and to (two stores), and point (a restore point)"
    only_known(f"understudy.copy takes {takes}", more, unknown)
    for name, value in (("vm", vm), ("source", source), ("to", to), ("point", point)):
        if not isinstance(value, str) and (name != "point" or value is not None):
            raise BadInput(f"{name} is a text, not {value!r}; nothing was requested")
    return send_requested(request_runs(vm, source, to, point))


def request_runs(vm: str, source: str, to: str, point: str | None) -> list[Any]:
    uuid, name, chosen = _meant(vm, source, to, point)
    return [copy.request(here(), name, uuid, source, to, point=chosen)]


def plan(vm: str, source: str, to: str, point: str | None) -> CopyPlan:
    uuid, name, chosen = _meant(vm, source, to, point)
    return copy.preview(here(), name, uuid, source, to, chosen)


def _meant(vm: str, source: str, to: str, point: str | None) -> tuple[str, str, str | None]:
    """Instance UUID and name of the VM, and the id of the point that is asked for; None = the newest when it runs."""
    for store in (source, to):
        named.store(here(), store)
    check_ends(here().settings, source, to)
    found = {uuid: here().catalogue.points(uuid, source) for uuid in uuids_of(here(), vm)}
    having = [uuid for uuid, points in found.items() if points]
    if not having:
        raise NotFound(f"there is no restore point of {vm} in {source}; `understudy points {vm}` says where they are")
    if len(having) > 1:
        raise BadInput(f"several VMs were called {vm}: {', '.join(having)}; say which by its instance UUID")
    points = found[having[0]]
    chosen = None if point in (None, "newest") else choose(points, str(point), whose=vm).id
    return having[0], points[-1].name, chosen


@app.task(name="understudy.copy.run", bind=True)
def work(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the run. A doubled or late message finds it done or taken, and does nothing."""
    return done(copy.run(with_helpers(), run))


@app.task(name="understudy.copy.slice", bind=True)
def help_out(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Work on free slices of the run, beside other workers. Without any it does nothing."""
    return done(copy.help_out(with_helpers(), run))
