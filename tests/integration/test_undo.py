"""A sync that stops half way is undone from the recovery site alone, or completed. Judged byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.child import work
from tests.integration.world import MIB, Vcenter, World, flat
from workers import dispatch, replicate, rollback
from workers.disks.undo_file import UndoFile
from workers.errors import NoSpace, Refused, UnderstudyError
from workers.extents import Extents
from workers.models import Run, RunKind, RunState, Trigger
from workers.run import Here
from workers.settings import Settings
from workers.status import half_applied, overview
from workers.undo import SYNC_POINT


@pytest.fixture(scope="module")
def world(vcenters: tuple[Vcenter, Vcenter], tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all: the store stands at the site of production."""
    return World(tmp_path_factory.mktemp("undo"), *vcenters, store=['site = "prod"'])


@contextmanager
def disaster(world: World) -> Iterator[None]:
    """The site of production burns: no source, no store."""
    away = world.store.path.with_name("away")
    world.store.path.rename(away)
    try:
        yield
    finally:
        away.rename(world.store.path)


def half(world: World, name: str, step: str = "commit.before") -> tuple[str, str]:
    """A replica that holds some of B, and B adds a disk, drops another one, and writes; then (A, B)."""
    world.make_vm(name, 4 * MIB, 2 * MIB)
    world.scribble(name, 1)
    before = str(world.backup(name).point)
    world.sync(name)
    world.add_disk(name, 2 * MIB)
    world.remove_disk(name, 1)
    world.scribble(name, 2)
    after = str(world.backup(name).point)
    run = world.request_sync(name)
    world.killed_at(run, step)
    world.give_up(run.id)
    return before, after


def back(world: World, name: str, here: Here | None = None) -> Run:
    run, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    report = replicate.run(here or world.here, run.id)
    assert report.outcome in ("succeeded", RunState.NOTHING_NEW), report
    return world.catalogue.run(run.id)


def forward(world: World, name: str) -> None:
    world.catalogue.pause(world.pair(name).id, None)
    world.sync(name)


def left(world: World, name: str) -> list[str]:
    """Files of ours beside the replica's disks, and disks that it has not."""
    folder = flat(world.dr, next(iter(world.replica_disks(name).values())).file).parent
    used = {Path(file).name for d in world.replica_disks(name).values() for file in (d.file, d.parent or d.file)}
    stray = [p.name for p in folder.glob("*.vmdk") if "-flat" not in p.name and p.name not in used]
    return stray + [p.name for p in world.dr.datastores.rglob("understudy-undo-*") if p.parent == folder]


STEPS = [
    *("undo.begun", "cursor.applying", "unseal.after", "own.before", "disks-removed", "hardware.after", "own.renewed"),
    *("undo.reserved", "undo.written", "undo.synced", "undo.saved", "slice.written", "slice.synced", "commit.before"),
]
ALSO_SHORT = {"undo.saved"}


@pytest.mark.parametrize("step", [pytest.param(s, marks=() if s in ALSO_SHORT else (pytest.mark.slow,)) for s in STEPS])
def test_killed_at_a_step_undone_without_the_store_then_completed(world: World, step: str) -> None:
    name = f"un-{step.replace('.', '-')}"
    before, after = half(world, name, step)
    with disaster(world):
        run = back(world, name)
        world.assert_replica_is(name, before)
        assert world.cursor(name).state == "committed" and world.cursor(name).base == before
        assert world.catalogue.sync_point(world.pair(name).id).point == before
        if step == "undo.begun":  # it never became half-applied
            assert run.state is RunState.NOTHING_NEW and world.pair(name).paused is None
        else:
            assert run.state is RunState.SUCCEEDED and "rolled back to" in (world.pair(name).paused or "")
            assert len(world.state(world.pair(name).replica_name, "dr").snapshots) == 1
            assert left(world, name) == []
    forward(world, name)
    world.assert_replica_is(name, after)
    assert left(world, name) == []


BACK_STEPS = [
    *("rollback.paused", "cursor.applying", "own.before", "disks-removed", "hardware.after", "own.renewed"),
    *("undo.restored", "slice.synced", "checkpoint.after", "commit.before", "commit.after", "seal.before"),
    *("undo.clearing", "undo.cleared", "catalogue.after"),
]


@pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=() if s == "undo.clearing" else (pytest.mark.slow,)) for s in BACK_STEPS],
)
def test_a_rollback_killed_at_a_step_is_gone_on_with(world: World, step: str) -> None:
    name = f"back-{step.replace('.', '-')}"
    before, after = half(world, name)
    run, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    with disaster(world):
        world.killed_at(run, step)
        replicate.run(world.here, run.id)
        world.assert_replica_is(name, before)
        assert left(world, name) == []
    forward(world, name)
    world.assert_replica_is(name, after)


@pytest.mark.parametrize("step", ["undo.restored", pytest.param("hardware.after", marks=pytest.mark.slow)])
def test_a_rollback_that_is_given_up_leaves_what_can_be_completed(world: World, step: str) -> None:
    name = f"gone-{step.replace('.', '-')}"
    _, after = half(world, name)
    run, _ = rollback.request(world.here, world.pair(name), SYNC_POINT)
    with disaster(world):
        world.killed_at(run, step)
        world.give_up(run.id)
    forward(world, name)
    world.assert_replica_is(name, after)
    assert left(world, name) == []


def test_hole_4_two_half_syncs_are_undone_to_what_was_before_the_first(world: World) -> None:
    """The second one meets blocks that the first overwrote: it must not keep those as what was there before."""
    name = "h4"
    before, _ = half(world, name)
    world.scribble(name, 3)
    world.backup(name)
    second = world.request_sync(name)
    world.killed_at(second, "commit.before")
    world.give_up(second.id)
    assert len(world.cursor(name).targets) == 2
    (line,) = overview(world.here, [name])
    assert line.half_applied is not None and line.half_applied.base == before
    (said,) = (trouble for trouble in line.troubles if trouble.startswith("replica: half-applied since"))
    assert f"rollback {name} --to-sync-point` brings it back to {before}, by what was kept" in said
    assert half_applied(world.here, name) != []
    with disaster(world):
        with pytest.raises(UnderstudyError, match="no store at"):
            world.sync(name)
        back(world, name)
        world.assert_replica_is(name, before)
    assert overview(world.here, [name])[0].half_applied is None and half_applied(world.here, name) == []


def test_a_full_datastore_stops_the_sync_before_anything_is_lost(world: World) -> None:
    """The replica's datastore is a small one; its old content does not compress, and has no room a second time."""
    name, small = "full", world.dr.datastores / "ds2"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    try:
        here = Here(with_(world.settings, target={"datastore": "ds2"}), world.catalogue)
        world.make_vm(name, 4 * MIB)
        world.write(name, 0, random.Random(1).randbytes(4 * MIB))
        before = str(world.backup(name).point)
        replicate.run(here, world.request_sync(name).id)
        world.write(name, 0, random.Random(2).randbytes(4 * MIB))
        after = str(world.backup(name).point)
        run = world.request_sync(name)
        world.killed_at(run, "unseal.after")  # the simulator's seal is a copy of the disk
        subprocess.run(["mount", "-o", "remount,size=6m", str(small)], check=True)
        with pytest.raises(NoSpace, match="to keep what the replica holds before it is overwritten; nothing of"):
            replicate.run(here, run.id)
        assert world.replica_bytes(name) == world.held[before], "it is half-applied by name only"
        subprocess.run(["mount", "-o", "remount,size=32m", str(small)], check=True)
        replicate.run(here, world.request_sync(name).id)
        world.assert_replica_is(name, after)
        world.target.wait(world.vm(world.pair(name).replica_name, "dr").Destroy_Task())
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_hole_21_a_grown_disk_keeps_its_size_and_says_so_or_comes_back_from_the_store(world: World) -> None:
    name = "h21"
    world.make_vm(name, 2 * MIB)
    world.scribble(name, 1)
    before = str(world.backup(name).point)
    world.sync(name)
    for way in ("undo", "store"):
        world.grow_disk(name, 0, 4 * MIB) if way == "undo" else None
        world.write(name, 0, way.encode() * 1000)
        world.write(name, 3 * MIB, b"beyond" * 1000)
        after = str(world.backup(name).point)
        run = world.request_sync(name)
        world.killed_at(run, "commit.before")
        world.give_up(run.id)
        if way == "undo":
            with disaster(world):
                ended = back(world, name)
            ((key, found),) = world.replica_bytes(name).items()
            assert found == world.held[before][key] + bytes(2 * MIB)
            assert any("can not be made smaller" in reason for reason in ended.reasons)
            forward(world, name)
            world.assert_replica_is(name, after)
            before = after
        else:
            here = Here(with_(world.settings, store={"site": ""}), world.catalogue)
            assert any("by the store" in reason for reason in back(world, name, here).reasons)
            world.assert_replica_is(name, before)


def with_(settings: Settings, *, store: dict[str, str] | None = None, target: dict[str, str] | None = None) -> Settings:
    """The configuration with some keys changed, as after an edit of its file."""
    return settings.model_copy(
        update={
            "stores": {"main": settings.stores["main"].model_copy(update=store or {})},
            "targets": {"recovery": settings.targets["recovery"].model_copy(update=target or {})},
        }
    )


@pytest.mark.parametrize(
    ("store", "target", "kept"),
    [("", "auto", False), ("dr", "auto", False), ("dr", "always", True), ("prod", "never", False)],
)
def test_when_old_content_is_kept(world: World, store: str, target: str, kept: bool) -> None:
    name = f"when-{store}-{target}"
    world.make_vm(name, 2 * MIB)
    world.backup(name)
    here = Here(with_(world.settings, store={"site": store}, target={"undo": target}), world.catalogue)
    first = world.request_sync(name)
    replicate.run(here, first.id)
    assert not any("kept" in reason for reason in world.catalogue.run(first.id).reasons), "there is nothing before it"
    world.write(name, 0, b"B" * 8192)
    point = str(world.backup(name).point)
    run = world.request_sync(name)
    replicate.run(here, run.id)
    reasons = " ".join(world.catalogue.run(run.id).reasons)
    assert ("is kept beside the replica's disks until the commit" in reasons) == kept
    assert ("older content is removed" in reasons) == kept
    world.assert_replica_is(name, point)
    assert left(world, name) == []


def test_what_can_not_be_undone_is_a_sentence_and_a_damaged_undo_gives_way_to_the_store(world: World) -> None:
    name = "cannot"
    world.make_vm(name, 2 * MIB)
    world.write(name, 0, b"A" * 65536)
    world.backup(name)
    first = world.request_sync(name)
    world.killed_at(first, "slice.synced")
    world.give_up(first.id)
    with pytest.raises(Refused, match="never committed, so there is nothing to go back to"):
        back(world, name)
    assert world.pair(name).paused is None, "what is refused changes nothing"
    forward(world, name)
    assert "nothing half-applied" in " ".join(back(world, name).reasons)
    before = world.cursor(name).base
    assert before is not None
    world.write(name, 0, b"B" * 65536)
    world.backup(name)
    run = world.request_sync(name)
    world.killed_at(run, "slice.synced")
    world.give_up(run.id)
    (undo,) = world.dr.datastores.rglob("understudy-undo-*.undo")
    with open(undo, "r+b") as file:
        file.seek(4096 + 20)
        file.write(b"\xff")
    with disaster(world), pytest.raises(Refused, match=r"damaged at byte 4096.*the store main can not give it"):
        back(world, name)
    back(world, name)
    world.assert_replica_is(name, before)
    assert left(world, name) == []


def test_a_compare_keeps_only_what_differs(world: World) -> None:
    name = "compared"
    world.make_vm(name, 4 * MIB)
    world.scribble(name, 1)
    before = str(world.backup(name).point)
    world.sync(name)
    world.write(name, MIB, b"B" * 8192)
    world.backup(name)
    run, _ = dispatch.request_sync(world.here, world.pair(name), Trigger.AD_HOC, full="the test wants to know")
    world.killed_at(run, "commit.before")
    world.give_up(run.id)
    (file,) = world.dr.datastores.rglob("understudy-undo-*.undo")
    with closing(UndoFile(file)) as undo:
        assert undo.covered == Extents.of([(MIB, 8192)])
    with disaster(world):
        back(world, name)
        world.assert_replica_is(name, before)


def test_a_sync_completes_the_replica_though_what_was_kept_is_gone(world: World) -> None:
    name = "without"
    _, after = half(world, name)
    for file in world.dr.datastores.rglob("understudy-undo-*.json"):
        os.unlink(file)
    report = world.sync(name)
    assert any("is given up: what was kept" in reason for reason in world.catalogue.run(report.run).reasons)
    world.assert_replica_is(name, after)
    assert left(world, name) != [], "which disk was taken off is not known any more: its files stay"


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False])
def test_nothing_is_kept_of_a_replica_that_is_forgotten(world: World, whole: bool) -> None:
    """Set free, it keeps every disk that it ever had; removed with its disks, nothing stays."""
    name = f"forgotten-{whole:d}"
    half(world, name)
    folder = flat(world.dr, next(iter(world.replica_disks(name).values())).file).parent
    pair = world.pair(name)
    run, _ = world.catalogue.request_run(
        RunKind.FORGET,
        f"pair:{pair.id}",
        vm=name,
        site="dr",
        trigger=Trigger.AD_HOC,
        memory={"who": "ann", "reason": "sold", **({"with_replica": "yes"} if whole else {})},
    )
    assert work(world.here, run.id).outcome == "succeeded"
    files = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
    assert not any(file.startswith("understudy-undo-") for file in files)
    assert len([file for file in files if file.endswith("-flat.vmdk")]) == (0 if whole else 3), files
    stays = [reason for reason in world.catalogue.run(run.id).reasons if "they are left to you" in reason]
    assert len(stays) == (0 if whole else 1) and half_applied(world.here, name) == []
