"""Copies, restores and rollbacks on request: shown before, requested, sent, and followed if somebody waits."""

from __future__ import annotations

from collections.abc import Sequence

from tasks import copy as copy_tasks
from tasks import show, tables
from tasks.app import here
from tasks.ask import request
from workers import restore as restoring
from workers import rollback as rolling
from workers.restore_order import Wish
from workers.undo import SYNC_POINT


def copy(vms: Sequence[str], source: str, to: str, point: str, *, wait: bool, as_json: bool) -> None:
    request(vms, lambda vm: copy_tasks.request_runs(vm, source, to, point), wait=wait, as_json=as_json)


def plan_copy(vms: Sequence[str], source: str, to: str, point: str, *, as_json: bool) -> None:
    plans = [copy_tasks.plan(vm, source, to, point) for vm in dict.fromkeys(vms)]
    if as_json:
        return show.as_json([{**made.model_dump(mode="json"), "bytes": made.bytes} for made in plans])
    for made in plans:
        show.say(f"{made.vm}, {made.source} -> {made.to}: {made.reason}")
        if made.nothing_new:
            continue
        show.say(f"the restore point {made.point}, {made.where}; {show.size(made.bytes)} differ from what is there")
        rows = show.table("disk", "mode", "differs", right=("differs",))
        for disk in made.disks:
            rows.add_row(disk.label, disk.mode, show.size(disk.bytes))
        show.console().print(rows)


def restore(wish: Wish, *, wait: bool, as_json: bool) -> None:
    request([wish.vm], lambda _: [restoring.request(here(), wish)], wait=wait, as_json=as_json)


def plan_restore(wish: Wish, *, as_json: bool) -> None:
    made = restoring.preview(here(), wish)
    if as_json:
        return show.as_json(made)
    show.say(f"{made.vm}: {made.what}, {made.where}, from the restore point {made.point}")
    rows = show.table("disk", "size", "data", right=("size", "data"))
    for disk in made.disks:
        rows.add_row(disk.label, show.size(disk.capacity), show.size(disk.bytes))
    show.console().print(rows)
    if made.left_out:
        show.say(f"not restored: {', '.join(made.left_out)}")
    for objection in made.objections:
        show.say(f"it would be refused now: {objection}")


def rollback(vm: str, to: str | None, target: str | None, *, full: str | None, wait: bool, as_json: bool) -> None:
    pair = rolling.pair_of(here(), vm, target)
    goal = rolling.goal_of(here(), pair, to)
    request([vm], lambda _: [rolling.request(here(), pair, goal.id, full=full)], wait=wait, as_json=as_json)


def undo(vm: str, target: str | None, *, wait: bool, as_json: bool) -> None:
    pair = rolling.pair_of(here(), vm, target)
    request([vm], lambda _: [rolling.request(here(), pair, SYNC_POINT)], wait=wait, as_json=as_json)


def plan_rollback(vm: str, to: str | None, target: str | None, *, full: str | None, as_json: bool) -> None:
    pair = rolling.pair_of(here(), vm, target)
    made = rolling.preview(here(), pair, rolling.goal_of(here(), pair, to).id, full=full)
    name = f"{pair.site}/{pair.replica_name}"
    if as_json:
        return show.as_json([{"replica": name, **made.model_dump(mode="json")}])
    tables.plan(made, name)
