"""What holds between any two runs, however the last one ended."""

from __future__ import annotations

import re
from collections import Counter

from pyVmomi import vim

from tests.integration.world import World
from workers import plan, snapshot_point
from workers.errors import NotFound
from workers.models import Cursor, Run, RunKind, RunState, VmState
from workers.replica import CURSOR


def assert_sentence(text: str | None) -> None:
    """For people: words, no traceback, no bare name of an exception, no end in the middle."""
    assert text, "a failure without words"
    assert len(text.split()) >= 4 and text == text.strip(), text
    assert "Traceback" not in text and not re.search(r"\bunexpected\b", text), text  # PostgreSQL says "unexpectedly"
    assert not re.search(r"(^|\W)\[Errno|object at 0x|None\b", text), text


def replica_of(world: World, name: str) -> VmState | None:
    try:
        return world.state(world.pair(name).replica_name, "dr")
    except NotFound:
        return None


def cursor_of(world: World, name: str) -> Cursor | None:
    found = replica_of(world, name)
    return Cursor.model_validate_json(found.notes[CURSOR]) if found is not None else None


def live_run(world: World, name: str, kind: RunKind) -> Run | None:
    found = [run for run in world.catalogue.live_runs() if run.vm == name and run.kind is kind]
    assert len(found) <= 1, found
    return found[0] if found else None


def check(world: World, name: str) -> None:
    """One VM between runs: some may be live (their worker died), none is at work."""
    targets = Counter(run.target for run in world.catalogue.live_runs())
    assert not targets or max(targets.values()) == 1, targets
    for run in world.catalogue.runs(vm=name, limit=2):
        for reason in run.reasons:
            assert_sentence(reason)
        if run.error is not None:
            assert_sentence(run.error)
    for failure in world.catalogue.failures(vm=name, limit=2):
        assert_sentence(failure.message)
    _source(world, name)
    _replica(world, name)


def _source(world: World, name: str) -> None:
    ours = [node.name for node in world.state(name).snapshots if node.name.startswith("understudy")]
    run = live_run(world, name, RunKind.BACKUP)
    allowed = set() if run is None else {snapshot_point.snapshot_name(world.catalogue.realm, run.id)}
    if run is not None:
        allowed.add("understudy: enable change tracking")
    assert set(ours) <= allowed and len(ours) <= 1, (ours, allowed)
    for left in world.store.runs():
        assert world.catalogue.run(left).live, f"{left} has ended and still keeps prune waiting"


def _replica(world: World, name: str) -> None:
    found, cursor = replica_of(world, name), cursor_of(world, name)
    if found is None or cursor is None:
        return
    pair, uuid = world.pair(name), world.state(name).identity.instance_uuid
    snapshots = [node.name for node in found.snapshots]
    assert len(snapshots) <= 1, snapshots
    pins = world.store.pins(uuid)
    needed = {point for point in (cursor.base, *cursor.targets) if point is not None}
    there = {point.id for point in world.store.points(uuid)}
    assert needed <= there, f"the cursor names {needed - there}, which the store does not hold any more"
    holder = f"{world.catalogue.realm}:{pair.id}"
    held = {point for point, holders in pins.items() if holder in holders}
    assert needed <= held, f"{needed - held} is not pinned"
    if live_run(world, name, RunKind.SYNC) is None and cursor.state == "committed":
        last = next(r for r in world.catalogue.runs(vm=name, kind=RunKind.SYNC))
        if last.state in (RunState.SUCCEEDED, RunState.NOTHING_NEW):
            _in_sync(world, name, found, cursor, held)


def _in_sync(world: World, name: str, found: VmState, cursor: Cursor, held: set[str]) -> None:
    """The last sync has ended well: every record says the same."""
    pair = world.pair(name)
    assert cursor.base is not None
    point = world.catalogue.sync_point(pair.id)
    assert point is not None and (point.point, point.fence) == (cursor.base, cursor.fence)
    assert [n.name for n in found.snapshots] == [plan.seal_name(cursor.realm, cursor.pair, cursor.base)]
    assert f"base={cursor.base}" in found.witness
    assert f"fence={cursor.fence} " in found.witness
    assert held == {cursor.base}, f"pins of {held}, the cursor is at {cursor.base}"


def remove_snapshot(world: World, name: str, snapshot: str) -> None:
    """As somebody in vSphere's client does."""
    node = next(s for s in world.state(name).snapshots if s.name == snapshot)
    found = world.source.object(vim.vm.Snapshot, node.moref)
    world.source.wait(found.RemoveSnapshot_Task(removeChildren=False))
