"""What a pair followed or stood on is exchanged, or gone for good: its store, its site."""

from __future__ import annotations

import pytest

from tests.command import forgetting, run
from tests.integration.world import MIB, World
from workers import backup, dispatch, forget, replicate, rollback
from workers.catalogue import HoldKind
from workers.errors import NotFound, Refused
from workers.models import RunKind, RunState, Trigger
from workers.run import Here
from workers.settings import StoreSettings, load
from workers.status import overview
from workers.store import Store


def holders(store: Store, uuid: str) -> set[str]:
    return {holder for several in store.pins(uuid).values() for holder in several}


def made(world: World, name: str) -> str:
    world.make_vm(name, 4 * MIB)
    world.scribble(name, 1)
    world.backup(name)
    world.sync(name)
    return world.state(name).identity.instance_uuid


def test_a_store_that_was_exchanged_is_not_held_any_more(world: World) -> None:
    """The pin in the store before stayed for ever, and with it the restore point."""
    uuid = made(world, "moved")
    holder = f"{world.catalogue.realm}:{world.pair('moved').id}"
    assert holders(world.store, uuid) == {holder}
    second = Store.create(world.folder / "second")
    group = world.settings.groups["all"].model_copy(update={"store": "second"})
    again = {"again": StoreSettings(path=world.folder / "second")}  # the same store under another name
    stores = {**world.settings.stores, "second": StoreSettings(path=world.folder / "second"), **again}
    here = Here(world.settings.model_copy(update={"stores": stores, "groups": {"all": group}}), world.catalogue)
    (member,) = dispatch.find(here, "moved")
    report = backup.run(here, dispatch.request_backup(here, member, Trigger.AD_HOC)[0].id)
    world.keep("moved", report)
    pair = dispatch.pair_of(here, member)
    assert pair is not None and pair.store == "second"
    run_ = dispatch.request_sync(here, pair, Trigger.AD_HOC)[0]
    assert replicate.run(here, run_.id).outcome == "succeeded"
    world.assert_replica_is("moved", str(report.point))
    assert holders(second, uuid) == {holder} and holders(world.store, uuid) == set()


def test_a_store_that_was_renamed_is_the_same_store(world: World) -> None:
    """Known by what is in it, not by its name: no new chain, no compare, no pin left behind, nothing shown twice."""
    uuid = made(world, "renamed")
    world.scribble("renamed", 2)
    (first,) = world.store.points(uuid)
    group = world.settings.groups["all"].model_copy(update={"store": "archive"})
    stores = {"archive": world.settings.stores["main"]}
    here = Here(world.settings.model_copy(update={"stores": stores, "groups": {"all": group}}), world.catalogue)
    (member,) = dispatch.find(here, "renamed")
    pair = dispatch.pair_of(here, member)
    assert pair is not None and pair.store == "archive"
    nothing = dispatch.request_sync(here, pair, Trigger.AD_HOC)[0]
    assert replicate.run(here, nothing.id).outcome == RunState.NOTHING_NEW, "before any backup under the new name"
    report = backup.run(here, dispatch.request_backup(here, member, Trigger.AD_HOC)[0].id)
    world.keep("renamed", report)
    newest = world.store.newest(uuid)
    assert newest is not None and newest.parent == first.id and {d.mode for d in newest.disks} == {"delta"}
    again = dispatch.request_sync(here, pair, Trigger.AD_HOC)[0]
    assert replicate.run(here, again.id).outcome == "succeeded"
    assert any("delta" in reason for reason in world.catalogue.run(again.id).reasons)
    assert set(world.store.pins(uuid)) == {newest.id}
    assert {(p.store, p.id) for p in world.catalogue.points(uuid)} == {("archive", first.id), ("archive", newest.id)}
    assert [line.store for line in overview(here, ["renamed"])] == ["archive"]
    world.assert_replica_is("renamed", str(report.point))
    pair = dispatch.pair_of(here, member)  # the look at it was by the configuration before
    assert pair is not None
    back, _ = rollback.request(here, pair, first.id)
    assert replicate.run(here, back.id).outcome == "succeeded"
    world.assert_replica_is("renamed", first.id)


def test_a_store_that_is_not_mounted_is_said_before_the_replica_is_touched(world: World) -> None:
    """The replica was removed, and then the pair could not be forgotten."""
    uuid = made(world, "away")
    pair = world.pair("away")
    path = world.settings.stores["main"].path
    path.rename(world.folder / "elsewhere")
    asked = dispatch.request_care(world.here, pair, RunKind.FORGET, memory={"who": "ann", "with_replica": "yes"})[0]
    with pytest.raises(NotFound, match="check the path and that it is mounted"):
        forget.run(world.here, asked.id)
    (world.folder / "elsewhere").rename(path)
    assert "understudy.cursor" in world.state(pair.replica_name, "dr").notes
    asked = dispatch.request_care(world.here, pair, RunKind.FORGET, memory={"who": "ann", "with_replica": "yes"})[0]
    assert forget.run(world.here, asked.id).outcome == "succeeded"
    assert holders(world.store, uuid) == set()


def test_a_pair_whose_site_is_gone_for_good_can_be_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No worker takes messages of such a site, so that its pins could never go."""
    uuid = made(world, "burned")
    pair = world.pair("burned")
    whole = world.config.read_text()
    before, _, rest = whole.partition("[sites.dr]")
    _, stores, after = rest.partition("[stores.main]")
    targets, groups, policy = after.partition("[groups.all]")
    gone = before + stores + targets.partition("[targets.recovery]")[0] + groups + policy
    world.config.write_text(gone.replace('target = "recovery"\n', ""))
    here = Here(load(world.config), world.catalogue)
    run_, _ = dispatch.request_care(here, pair, RunKind.FORGET, memory={"who": "ann", "with_replica": "yes"})
    with pytest.raises(Refused, match=r"site dr .*without --with-replica"):
        forget.run(here, run_.id)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(world.config))
    with forgetting():
        assert run("forget", "burned", "--with-replica", "--yes") == 1
        assert run("forget", "burned", "--reason", "it burned", "--yes") == 0
    said = capsys.readouterr()
    assert "without --with-replica" in said.err and "Traceback" not in said.err
    assert "the site dr is not in the configuration any more" in said.out
    assert holders(world.store, uuid) == set()
    assert HoldKind.FORGOTTEN in world.catalogue.holds(f"pair:{pair.id}")[f"pair:{pair.id}"]
    assert world.catalogue.runs("burned", kind=RunKind.FORGET)[0].state is RunState.SUCCEEDED
