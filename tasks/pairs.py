"""Adopting and forgetting as tasks: what the command asks for, done by a worker of the replica's site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task

from tasks.app import app, here
from tasks.dispatch import done
from workers import adopt, dispatch, forget
from workers.errors import BadInput
from workers.models import Pair, RunKind


def pairs_of(vm: str, targets: Sequence[str]) -> list[Pair]:
    """The pairs of a VM, also of one whose policy is gone. Raises `NotFound`, and `BadInput` when it has none."""
    known = here().catalogue.pairs(vm)
    if not known:
        members = dispatch.find(here(), vm)
        known = [pair for member in members if (pair := dispatch.pair_of(here(), member)) is not None]
    meant = [pair for pair in known if not targets or pair.recovery_target in targets]
    if not meant:
        at = ", ".join(sorted({pair.recovery_target for pair in known})) or "nowhere"
        raise BadInput(f"the VM {vm} has no replica there: it is replicated to {at}")
    return meant


def one_pair(vm: str, targets: Sequence[str]) -> Pair:
    """The one that is meant. Raises `BadInput` where it could be several."""
    found = pairs_of(vm, targets)
    if len(sources := {pair.source for pair in found}) > 1:
        raise BadInput(f"several VMs are called {vm}; say which by its instance UUID: {', '.join(sorted(sources))}")
    if len(found) > 1:
        at = ", ".join(pair.recovery_target for pair in found)
        raise BadInput(f"the VM {vm} has replicas at several recovery targets ({at}): say which, with --target")
    return found[0]


def request_runs(pair: Pair, kind: RunKind, memory: Mapping[str, str]) -> list[Any]:
    return [dispatch.request_care(here(), pair, kind, memory=memory)]


@app.task(name="understudy.adopt.run", bind=True)
def work_adopt(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, an adoption."""
    return done(adopt.run(here(), run))


@app.task(name="understudy.forget.run", bind=True)
def work_forget(self: Task, run: str, vm: str | None = None) -> dict[str, Any]:
    """Do, or go on with, the forgetting of a pair."""
    return done(forget.run(here(), run))
