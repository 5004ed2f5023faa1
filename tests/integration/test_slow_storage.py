"""Storage, or a link, over which a slice takes longer than a message may: the run comes forward all the same."""

from __future__ import annotations

import pytest

from tests.integration.world import MIB, World
from workers import backup
from workers.models import Run, RunReport


def messages(world: World, run: Run, *, killed: str = "") -> list[RunReport]:
    """One after the other, each with time for one batch, until the run has ended."""
    found = [backup.run(world.here, run.id)]
    if killed:
        world.killed_at(run, killed)
    while found[-1].outcome == "continues":
        found.append(backup.run(world.here, run.id))
        assert len(found) < 20
    return found


def test_a_backups_slice_is_a_gib_and_a_message_may_be_too_short_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its process would be killed at the task's time limit, again and again, and nothing would be kept."""
    monkeypatch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
    world.make_vm("slow", 40 * MIB)
    world.write("slow", 0, bytes(range(1, 252)) * (40 * MIB // 251))
    run = world.request_backup("slow")
    reports = messages(world, run, killed="store.packs-synced")
    assert len(reports) > 3 and reports[-1].outcome == "succeeded", reports
    (part,) = world.catalogue.slices(run.id)
    assert part.read == reports[-1].read and 40 * MIB <= part.read + MIB, "nothing is read twice but what was lost"
    assert reports[-1].point is not None
    world.keep("slow", reports[-1])
    world.assert_point_is_readable("slow", reports[-1].point)

    for offset in (5 * MIB, 20 * MIB, 39 * MIB):
        world.write("slow", offset, b"changed" * 20_000)
    monkeypatch.undo()
    world.backup("slow")
    world.assert_point_is_readable("slow", world.store.points(world.state("slow").identity.instance_uuid)[-1].id)
    assert world.store.verify(deep=True) == []
