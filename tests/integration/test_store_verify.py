"""A damaged store: found in its turn by the scrub, never written to a replica, made up for by the next backup."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.realm import ASKED_ONLY, LOOK, Realm
from tests.integration.test_verify import base, rot
from tests.integration.world import MIB, World
from workers import backup, dispatch, replicate, store_scrub, verify
from workers.errors import StoreDamaged
from workers.models import RunKind, RunState
from workers.store import Store


def spoil(world: World, pack: Path) -> int:
    """Bits of every blob of a pack, its end left alone: where the first begins."""
    found = Store.open(world.store.path)._packs.get(int(pack.stem, 16))
    data = bytearray(pack.read_bytes())
    for offset in found.offsets.tolist():
        data[offset + 8] ^= 1
    pack.write_bytes(data)
    return int(found.offsets[0])


def packs(world: World) -> set[Path]:
    return set((world.store.path / "packs").iterdir())


def test_damage_is_never_synced_and_the_next_backup_makes_up_for_it(make_world: Callable[..., World]) -> None:
    world = make_world(scrub=1)
    name = "eaten"
    world.make_vm(name, 8 * MIB)
    world.scribble(name, 1)
    first = str(world.backup(name).point)
    world.sync(name)
    world.scribble(name, 2)
    before = packs(world)
    second = str(world.backup(name).point)
    (pack,) = packs(world) - before
    offset = spoil(world, pack)

    held = world.replica_bytes(name)
    run = world.request_sync(name)
    with pytest.raises(StoreDamaged, match=f"{pack.name} is damaged: blob .* at byte {offset} "):
        replicate.run(world.here, run.id)
    failed = world.catalogue.run(run.id)
    assert (failed.state, failed.family) == (RunState.FAILED, "store damaged") and pack.name in str(failed.error)
    for key, data in world.replica_bytes(name).items():
        assert data == held[key], "nothing of it was written"

    now = world.catalogue.now()
    (found,) = [r for r in dispatch.dispatch(world.here, now + timedelta(days=1)) if r.target == "store:main"]
    assert found.kind is RunKind.VERIFY
    with pytest.raises(StoreDamaged, match=pack.name):
        verify.run(world.here, found.id)
    (sentence,) = store_scrub.concerns(world.here)
    assert pack.name in sentence and second in sentence and first not in sentence.replace(second, "")
    assert world.catalogue.scrubs("store:main")["store:main"].whole_ended is not None

    third = world.backup(name)
    assert "damaged in the store" in str(world.catalogue.run(third.run).reasons)
    world.assert_point_is_readable(name, str(third.point))
    world.sync(name)
    world.assert_replica_is(name, str(third.point))
    world.scribble(name, 3)
    fourth = world.backup(name)
    assert "change tracking since" in str(world.catalogue.run(fourth.run).reasons), "incremental again"
    world.sync(name)
    world.assert_replica_is(name, str(fourth.point))


@pytest.mark.slow
def test_as_a_person_does_it(make_realm: Callable[..., Realm]) -> None:
    """By the commands, with workers: exit codes, sentences, and what `status` says."""
    realm = make_realm(group=ASKED_ONLY)
    world = realm.world
    realm.workers(None, "prod", "dr")
    world.make_vm("web-01", 8 * MIB)
    world.scribble("web-01", 1)
    point = str(world.backup("web-01").point)
    world.sync("web-01")
    assert "succeeded" in realm.command("verify", "web-01", "--wait").stdout
    rot(base(world, "web-01"), 5 * MIB)
    failed = realm.command("verify", "web-01", "--wait", code=1).stderr
    assert f"bytes {5 * MIB} to {5 * MIB + 4096}" in failed and point in failed
    (line,) = json.loads(realm.command("status", "--name", "web-01", "--json").stdout)
    assert line["state"] == "validation failed" and line["damages"][0]["start"] == 5 * MIB
    realm.command("verify", "web-01", "--repair", "--wait")
    world.assert_replica_is("web-01", point)
    assert json.loads(realm.command("status", "--name", "web-01", "--json").stdout)[0]["state"] == "in sync"
    assert realm.ask("understudy.verify", vm="web-01", repair=False).get(**LOOK)[0]["kind"] == "verify"

    assert "succeeded" in realm.command("store", "verify", "main", "--deep", "--on-worker", "--wait").stdout
    (pack,) = packs(world)
    spoil(world, pack)
    assert pack.name in realm.command("store", "verify", "main", "--deep", "--on-worker", "--wait", code=1).stderr
    assert pack.name in realm.command("status", "--fail-on", "problems", code=1).stderr


def test_a_verification_of_a_whole_store_goes_on_after_its_worker_died(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        world.make_vm(f"many-{number}", 4 * MIB)
        world.scribble(f"many-{number}", number)
        backup.run(world.here, world.request_backup(f"many-{number}").id)
    run, made = store_scrub.request(world.here, "main")
    assert made and run.site == "prod"
    world.killed_at(run, "scrub.read")
    assert world.catalogue.run(run.id).memory["at"].startswith("maps ")
    # time is up at once, and no setting may say so
    monkeypatch.setattr("workers.run.seconds", lambda text: -1 if text == world.settings.tuning.slice_time else 5)
    messages = 0
    while world.catalogue.run(run.id).live:
        report = verify.run(world.here, run.id)
        messages += 1
    assert report.outcome == "verified" and messages == 6, (
        "one of six parts was done before; the sixth message has the end"
    )
    known = world.catalogue.scrubs("store:main")["store:main"]
    assert known.whole_began == run.created and known.covered == known.total > 0
    assert store_scrub.concerns(world.here) == []
