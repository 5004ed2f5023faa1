"""A replica that is brought up from copies, and from the first store where there are none: by differences."""

from __future__ import annotations

from tests.integration import places
from tests.integration.test_copy import copied, far, uuid_of, with_far
from tests.integration.world import MIB, World
from workers import dispatch, replicate, rollback
from workers.models import RunKind, Trigger
from workers.restore_order import Wish, order_of
from workers.run import Here
from workers.undo import SYNC_POINT


def said(here: Here, run: str) -> str:
    return "\n".join(here.catalogue.run(run).reasons)


def test_copies_come_first_and_either_store_will_do(world: World) -> None:
    world.make_vm("pref", 8 * MIB)
    world.scribble("pref", 1)
    here = with_far(world, sources=["far", "main"])
    uuid, pair = uuid_of(world, "pref"), places.pair(here, "pref")
    folder, away = here.settings.stores["far"].path, world.folder / "away"
    first = world.backup("pref").point
    copied(world, here, "pref")
    report = places.sync(here, pair)
    assert here.catalogue.run(report.run).memory["source"] == "far"
    world.assert_replica_is("pref", first or "")
    pairs_pin = f"{here.catalogue.realm}:{pair.id}"
    # Held where it was read, and where the next difference may be asked for.
    assert far(here).pins(uuid) == world.store.pins(uuid) == {first: {pairs_pin}}

    world.write("pref", MIB, b"two" * 9000)
    second = world.backup("pref").point
    assert places.sync(here, pair).outcome == "nothing new"  # it is not copied yet
    assert [run.kind for run in dispatch.dispatch(here, here.catalogue.now()) if run.vm == "pref"] == [RunKind.COPY]
    run = here.catalogue.live_runs()[0]
    here.catalogue.ask_to_stop(run.id, "the test has seen it")

    folder.rename(away)  # the recovery site's file server is down
    report = places.sync(here, pair)
    assert report.point == second and "far can not be read" in said(here, report.run)
    assert report.sync_point is not None and report.sync_point.mode == "delta"
    world.assert_replica_is("pref", second or "")
    away.rename(folder)

    world.write("pref", 2 * MIB, b"three" * 9000)
    third = world.backup("pref").point
    copied(world, here, "pref")
    (due,) = [run for run in dispatch.after_backup(here, uuid, "far", third or "") if run.kind is RunKind.SYNC]
    report = replicate.run(here, due.id)
    # The point that it held was never copied: so far cannot give the difference to it.
    assert report.point == third
    world.assert_replica_is("pref", third or "")
    assert far(here).pins(uuid) == {third: {pairs_pin}}
    # A restore takes the point from the store that can be read, the one beside the new VM first.
    wish = Wish(vm="pref", to="new", target="recovery")
    assert order_of(here, wish).store == "far"
    folder.rename(away)
    assert order_of(here, wish).store == "main"
    away.rename(folder)


def test_a_half_applied_replica_goes_back_by_the_copy(world: World) -> None:
    world.make_vm("half", 8 * MIB)
    world.scribble("half", 1)
    here = with_far(world, sources=["far", "main"])
    pair = places.pair(here, "half")
    first = world.backup("half").point
    copied(world, here, "half")
    places.sync(here, pair)
    world.scribble("half", 2)
    world.backup("half")
    copied(world, here, "half")
    run, _ = dispatch.request_sync(here, here.catalogue.pair(pair.id), Trigger.AD_HOC)
    world.killed_at(run, "slice.synced", here)
    world.give_up(run.id)
    world.settings.stores["main"].path.rename(world.folder / "burnt")
    back, _ = rollback.request(here, here.catalogue.pair(pair.id), SYNC_POINT)
    report = replicate.run(here, back.id)
    assert report.outcome == "succeeded" and f"back to {first} by the store far" in said(here, back.id)
    world.assert_replica_is("half", first or "")
