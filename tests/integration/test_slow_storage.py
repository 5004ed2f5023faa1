"""Storage, or a link, over which a slice takes longer than a message may: the run comes forward all the same."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.integration.test_verify import grown
from tests.integration.world import MIB, World, flat
from workers import backup, dispatch, replicate, verify
from workers.disks.file import FileReader
from workers.extents import Extents
from workers.models import Run, RunReport, RunState, Trigger


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts of disks of which was asked what is allocated there."""
    found: list[tuple[int, int]] = []
    real = FileReader.allocated

    def allocated(reader: FileReader, start: int = 0, end: int | None = None) -> Extents:
        found.append((start, reader.size if end is None else end))  # it is only counted
        return real(reader, start, end)

    monkeypatch.setattr(FileReader, "allocated", allocated)
    return found


def test_what_is_allocated_is_asked_for_as_a_whole_once_and_then_by_slice(
    world: World, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    """Of 10 TiB it takes 10,240 calls by VMware's library, and a full backup has hundreds of messages."""
    gib, size = 1 << 30, 2 * (1 << 30) + 8 * MIB
    world.make_vm("large", size)
    for offset in (0, gib - MIB, 2 * gib + 7 * MIB):
        world.write("large", offset, b"some" * 200_000)
    with monkeypatch.context() as slow:
        slow.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
        run = world.request_backup("large")
        reports = messages(world, run)
    assert reports[-1].outcome == "succeeded" and len(reports) > 1, reports
    assert asked[0] == (0, size) and asked.count((0, size)) == 1
    assert all(end - start <= gib for start, end in asked[1:]) and len(asked) > 2
    assert reports[-1].point is not None
    point = world.store.point(world.state("large").identity.instance_uuid, reports[-1].point)
    with open(flat(world.prod, world.disks("large")[0].file), "rb") as disk:
        for piece in world.store.reader(point, point.disks[0].disk.id).read([(gib - MIB, 2 * MIB), (2 * gib, 8 * MIB)]):
            assert bytes(piece.data or bytes(piece.length)) == os.pread(disk.fileno(), piece.length, piece.offset)
    assert reports[-1].read < 8 * MIB, "what is not allocated is not read"


def test_a_comparison_of_a_replica_asks_for_as_a_whole_once_and_then_by_slice(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    world = make_world(tuning={"slice_size": "2MiB"})
    world.make_vm("compared", 8 * MIB)
    world.write("compared", 0, bytes(range(1, 252)) * (6 * MIB // 251))
    world.backup("compared")
    world.sync("compared")
    asked.clear()
    run, _ = verify.request(world.here, world.pair("compared"))
    monkeypatch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
    found = [verify.run(world.here, run.id)]
    while found[-1].outcome == "continues":
        found.append(verify.run(world.here, run.id))
        assert len(found) < 20
    assert world.catalogue.run(run.id).state is RunState.SUCCEEDED and len(found) > 2, found
    assert asked[0] == (0, 8 * MIB) and len(asked) > 3
    assert all(end - start <= 2 * MIB for start, end in asked[1:])


def test_who_compares_a_replica_gives_way_as_who_writes_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery sites have production, too. Here all storage counts as overloaded."""
    grown(world, "busy")
    for name, value in (("LEAST", 0.0), ("SLOWER", 0.0), ("APART", 1), ("LONGEST", 0.01)):
        monkeypatch.setattr(f"workers.disks.gentle.{name}", value)
    compared, _ = verify.request(world.here, world.pair("busy"))
    verify.run(world.here, compared.id)
    synced, _ = dispatch.request_sync(world.here, world.pair("busy"), Trigger.AD_HOC, full="a doubt")
    replicate.run(world.here, synced.id)
    for run in (compared, synced):
        ended = world.catalogue.run(run.id)
        assert ended.state is RunState.SUCCEEDED
        assert any("less was read at a time" in reason for reason in ended.reasons), ended.reasons
