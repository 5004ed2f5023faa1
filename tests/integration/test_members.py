"""Membership by rule against real inventories: who joins, who leaves, and that a query that fails removes nobody."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pyVmomi import vim

from tasks import maintenance
from tests.command import forgetting
from tests.integration.world import MIB, PASSWORD, USER, Vcenter, World
from tests.vsphere.tagging import Tagging
from workers import dispatch, grace, group, prune
from workers.catalogue import schema
from workers.errors import BadInput, NotFound, UnderstudyError
from workers.members import Roll, groups_of, last_groups_of, members_of, settle
from workers.models import RunKind
from workers.run import Here
from workers.settings import Group
from workers.status import overview


@pytest.fixture
def tagging(vcenters: tuple[Vcenter, Vcenter]) -> Tagging:
    return Tagging(vcenters[0].url, f"{USER}:{PASSWORD}")


def moref(world: World, name: str) -> str:
    return world.state(name).identity.moref


def members(world: World, name: str = "all") -> set[str]:
    return {member.vm.identity.name for member in dispatch.members(world.here) if member.name == name}


def tagged(world: World, tagging: Tagging, tag: str, *names: str) -> None:
    for name in names:
        world.make_vm(name, MIB, powered_on=False)
        tagging.attach(tag, moref(world, name))
    look(world)


def look(world: World) -> None:
    """A complete inventory, and the next tick."""
    world.discover()
    settle(world.here)


def concerns(world: World) -> str:
    return "\n".join(Roll(world.here).concerns(world.catalogue.now()))


def test_rules_over_a_real_inventory(make_world: Callable[..., World], tagging: Tagging) -> None:
    world = make_world(
        who='members = { name = "rule-*" }',
        more=[
            f'[groups.{name}]\nsource = "prod"\nstore = "main"\nmembers = {{ name = "rule-*", {members} }}'
            for name, members in (
                ("folder", 'folder = "PROD/Rule/Web"'),
                ("above", 'folder = "PROD/Rule"'),
                ("tag", 'tag = "rule:gold"'),
                ("untagged", 'not = { tag = "gold" }'),
                ("running", 'power = "on"'),
                ("disk", 'datastore = "ds1", cluster = "cluster?"'),
                ("elsewhere", 'datastore = "ds2"'),
                ("either", 'any = [{ power = "on" }, { tag = "gold" }]'),
            )
        ],
    )
    for name, power in (("rule-a", True), ("rule-b", False), ("rule-c", False)):
        world.make_vm(name, MIB, powered_on=power)
    (root,) = [f.values["vmFolder"] for f in world.source.read_all({vim.Datacenter: ("vmFolder",)})]
    deep = root.CreateFolder("Rule").CreateFolder("Web")
    world.source.wait(deep.MoveIntoFolder_Task([world.vm("rule-a")]))
    tagging.attach("rule:gold", moref(world, "rule-b"))
    look(world)
    found = {name: {vm.removeprefix("rule-") for vm in members(world, name)} for name in world.settings.groups}
    assert found == {
        "all": {"a", "b", "c"},
        "folder": {"a"},
        "above": {"a"},
        "tag": {"b"},
        "untagged": {"a", "c"},
        "running": {"a"},
        "disk": {"a", "b", "c"},
        "elsewhere": set(),
        "either": {"a", "b"},
    }
    whole = dispatch.members(world.here)
    for uuid in {member.vm.identity.instance_uuid for member in whole}:  # what a run asks of one VM is the same truth
        assert members_of(world.here, uuid) == [m for m in whole if m.vm.identity.instance_uuid == uuid]
    shown = group.show(world.here, "either")
    assert [(each.vm, each.why) for each in shown.members] == [
        ("rule-a", "name rule-a matches rule-*; power on"),
        ("rule-b", "name rule-b matches rule-*; tag rule:gold matches gold"),
    ]
    assert all(each.since is not None for each in shown.members) and shown.concerns == ()
    answers = {answer.group: answer for answer in group.why(world.here, "rule-c")}
    assert not answers["tag"].inside and answers["tag"].why == "tag (none) is not rule:gold"
    assert answers["untagged"].inside
    with pytest.raises(NotFound, match="near: rule-c"):
        group.why(world.here, "rulec")
    with pytest.raises(NotFound, match=r"no group 'eiter'.*near: either"):
        group.show(world.here, "eiter")


def test_tags_are_asked_for_only_where_a_rule_uses_them(make_world: Callable[..., World], tagging: Tagging) -> None:
    world = make_world(vms=["plain-*"])
    world.prod.control(clear=True)
    world.make_vm("plain-1", MIB, powered_on=False)
    look(world)
    assert not [call for call in world.prod.control()["calls"] if call.startswith("rest.")]
    # A rule that is new uses them: what nobody has asked for yet moves nobody.
    world.here = Here(with_rule(world, tag="x:plain"), world.catalogue)
    settle(world.here)
    assert members(world) == {"plain-1"} and not Roll(world.here).left()
    tagging.attach("x:plain", moref(world, "plain-1"))
    look(world)
    assert members(world) == {"plain-1"}
    assert world.catalogue.inventory()[0].tags is not None


def with_rule(world: World, **rule: Any) -> Any:
    """The settings with another rule for the group; without one, without the group."""
    groups = {name: one for name, one in world.settings.groups.items() if name != "all"}
    if rule:
        known = world.settings.groups["all"].model_dump(exclude={"vms", "members"}, by_alias=True)
        groups["all"] = Group.model_validate({**known, "members": rule})
    return world.settings.model_copy(update={"groups": groups})


#: what may become of a call: each is an error of the whole reading
BROKEN: list[dict[str, Any]] = [{"Drop": True}, {"HTTP": 503}, {"DropAfter": True}]


def test_hole_27_a_tag_query_that_fails_removes_nobody(make_world: Callable[..., World], tagging: Tagging) -> None:
    """Half of the members of a group vanish from an answer; were they removed, prune would take their points."""
    world = make_world(who='members = { tag = "hole:27" }\ngrace = "1s"')
    names = {"h27-a", "h27-b", "h27-c"}
    tagged(world, tagging, "hole:27", *sorted(names))
    held = [world.backup("h27-a").point for _ in range(2)]
    assert members(world) == names
    world.prod.control(clear=True)
    look(world)
    made = {call: count for call, count in world.prod.control()["calls"].items() if call.startswith("rest.")}
    assert set(made) == {"rest.session", "rest.tag", "rest.category", "rest.tag-association"}
    faults = [(call, skip, fault) for call, count in made.items() for skip in range(count) for fault in BROKEN]
    faults = [each for each in faults if each[:2] != ("rest.session", 1)]  # the logout, when all has been read
    halves = [(call, 0, {"Halve": True, "Count": -1}) for call in ("rest.tag", "rest.tag-association")]
    for call, skip, fault in [*faults, *halves]:
        world.prod.control(clear=True, rules=[{"Method": call, "Skip": skip, "Count": 1, **fault}])
        with pytest.raises(UnderstudyError):
            world.discover()
        settle(world.here)
        assert members(world) == names, (call, skip, fault)
        assert "nobody joins or leaves" in concerns(world)
        assert group.show(world.here, "all").concerns != ()
    assert Roll(world.here).left() == []
    told = [failure for failure in world.catalogue.failures() if failure.kind == "inventory"]
    assert told and all("the inventory of prod could not be read" in failure.message for failure in told)
    assert len(told) < len(faults) + len(halves)  # the same reason again is no news
    assert not any(r.points for r in prune.store(world.here, "main", now=world.catalogue.now() + timedelta(days=400)))
    assert [point.id for point in world.store.points(world.state("h27-a").identity.instance_uuid)] == held
    world.prod.control(clear=True)
    look(world)
    assert concerns(world) == "" and members(world) == names
    tagging.detach("hole:27", moref(world, "h27-b"))
    look(world)
    assert members(world) == names - {"h27-b"}


def test_hole_27_an_inventory_query_that_fails_removes_nobody(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.vsphere.session.PAGE", 5)  # else one page has all of it
    world = make_world(vms=["page-*"])
    names = {"page-1", "page-2"}
    for name in sorted(names):
        world.make_vm(name, MIB, powered_on=False)
    settle(world.here)
    world.prod.control(clear=True)
    world.discover()
    made = {call: count for call, count in world.prod.control()["calls"].items() if call != "DestroyView"}
    assert made["ContinueRetrievePropertiesEx"] >= 2 and made["RetrievePropertiesEx"] == 1
    for call, count in made.items():
        for skip in range(count):
            # twice: a reading is begun again once
            fault = {"Method": call, "Skip": skip, "Count": 2 + skip, "Fault": "HostCommunication"}
            world.prod.control(clear=True, rules=[fault])
            with pytest.raises(UnderstudyError):
                world.discover()
            settle(world.here)
            assert members(world) == names, (call, skip)
    assert "last read" in concerns(world) and not Roll(world.here).left()
    world.prod.control(clear=True, rules=[{"Method": "RetrievePropertiesEx", "Count": 1, "DelayMs": 300}])
    look(world)  # slow is not wrong
    assert concerns(world) == "" and members(world) == names


def test_many_leave_only_when_somebody_agrees(make_world: Callable[..., World], tagging: Tagging) -> None:
    """As when the right to read tags is taken from the user: vCenter then leaves them out without a word."""
    world = make_world(who='members = { tag = "mass:yes" }', group=['backup = { every = "1h", jitter = "none" }'])
    names = [f"mass-{number}" for number in range(6)]
    tagged(world, tagging, "mass:yes", *names)
    for name in names[:4]:
        tagging.detach("mass:yes", moref(world, name))
    look(world)
    assert members(world) == {"mass-4", "mass-5"}  # fewer than five
    for name in names[:4]:
        tagging.attach("mass:yes", moref(world, name))
    look(world)
    for name in names[:5]:
        tagging.detach("mass:yes", moref(world, name))
    look(world)
    assert members(world) == set(names)
    said = concerns(world)
    assert "5 VMs would leave the group all (mass-0, mass-1, mass-2, ...; tag (none) is not mass:yes)" in said
    assert {run.vm for run in dispatch.dispatch(world.here, world.catalogue.now())} == set(
        names
    )  # it goes on as it was
    assert {row.vm for row in group.show(world.here, "all").held} == set(names[:5])
    # one comes back, and the others are still asked about, though they are fewer than five now
    tagging.attach("mass:yes", moref(world, "mass-0"))
    look(world)
    assert {row.vm for row in group.show(world.here, "all").held} == set(names[1:5])
    assert {row.vm for row in group.accept(world.here, "all")} == set(names[1:5])
    assert members(world) == {"mass-0", "mass-5"} and concerns(world) == ""
    with pytest.raises(BadInput, match="nobody waits"):
        group.accept(world.here, "all")
    for name in names[1:5]:
        tagging.attach("mass:yes", moref(world, name))
    look(world)
    assert members(world) == set(names) and not Roll(world.here).left()


def age(world: World, days: int) -> None:
    """Who has left, left so many days earlier: the database's clock cannot be put forward."""
    with world.catalogue.write() as conn:
        for row in conn.execute(sa.select(schema.memberships)).all():
            if row.left is not None:
                mine = sa.and_(schema.memberships.c.vm == row.vm, schema.memberships.c.group == row.group)
                left = row.left - timedelta(days=days)
                conn.execute(sa.update(schema.memberships).where(mine).values(left=left))


def pruned(world: World) -> None:
    """What a worker does with the hourly message for a store."""
    with forgetting(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CONFIG", str(world.config))
        maintenance.prune_store("main")


def test_what_is_kept_of_a_vm_that_left_and_that_it_comes_back(
    make_world: Callable[..., World], tagging: Tagging
) -> None:
    world = make_world(who='members = { tag = "stay:yes" }\ngrace = "10d"')
    tagged(world, tagging, "stay:yes", "stays", "leaves")
    world.source.wait(world.vm("leaves").PowerOnVM_Task())
    points = []
    for seed in range(4):
        world.scribble("leaves", seed)
        points.append(world.backup("leaves").point)
        if seed == 1:
            world.sync("leaves")
    uuid = world.state("leaves").identity.instance_uuid

    def kept() -> list[str]:
        return [point.id for point in world.store.points(uuid)]

    def retire(days: int = 400) -> int:
        now = world.catalogue.now() + timedelta(days=days)
        return sum(len(each.points) for each in prune.store(world.here, "main", now=now))

    assert retire() == 0
    tagging.detach("stay:yes", moref(world, "leaves"))
    assert "all" in groups_of(world.here, uuid)  # until the control plane records that it left
    look(world)
    assert members(world) == {"stays"}
    assert groups_of(world.here, uuid) == {} and list(last_groups_of(world.here, uuid)) == ["all"]
    left = Roll(world.here).left()[0]
    until = Roll(world.here).kept_until(left)
    assert left.left is not None and until == left.left + timedelta(days=10)
    (line,) = overview(world.here, ["leaves"])
    assert "no group covers this VM any more: nothing new is made" in line.remark
    assert f"stays until {until:%Y-%m-%d}" in line.remark and "tag (none) is not stay:yes" in line.remark
    (shown,) = group.show(world.here, "all").left
    assert (shown.vm, shown.until) == ("leaves", until)
    with pytest.raises(BadInput, match="`understudy group why leaves`"):
        dispatch.find(world.here, "leaves")
    assert not [r for r in dispatch.dispatch(world.here, world.catalogue.now()) if r.vm == "leaves"]

    assert retire(days=0) == 0
    age(world, 9)
    look(world)
    assert retire(days=0) == 0  # the grace has not ended
    assert retire(days=2) == 0 and kept() == points  # it has, but nobody has looked since: it may be back
    age(world, 1)
    look(world)
    pruned(world)
    assert kept() == [points[1], points[3]]  # what the replica holds, and the newest
    assert [point.id for point in world.catalogue.points(uuid)] == kept()
    assert retire() == 0
    grace.forget_strangers(world.here, world.catalogue.now())
    assert Roll(world.here).left() != []  # something is kept of it

    tagging.attach("stay:yes", moref(world, "leaves"))
    look(world)
    assert members(world) == {"stays", "leaves"} and Roll(world.here).left() == []
    world.scribble("leaves", 9)
    report = world.backup("leaves")
    assert report.reason.startswith("incremental")
    world.sync("leaves")
    world.assert_point_is_readable("leaves", report.point)
    world.assert_replica_is("leaves", report.point)
    assert retire() == 0


def test_a_vm_that_is_gone_and_of_which_nothing_is_kept_is_forgotten(make_world: Callable[..., World]) -> None:
    world = make_world(vms=["brief-*"])
    world.make_vm("brief-1", MIB, powered_on=False)
    look(world)
    world.source.wait(world.vm("brief-1").Destroy_Task())
    look(world)
    (left,) = Roll(world.here).left()
    assert left.why is not None and "gone from its vCenter" in left.why
    grace.forget_strangers(world.here, world.catalogue.now())
    assert len(Roll(world.here).left()) == 1
    age(world, 31)
    look(world)
    grace.forget_strangers(world.here, world.catalogue.now())
    assert Roll(world.here).left() == []


def test_a_group_that_is_gone_from_the_configuration(make_world: Callable[..., World]) -> None:
    world = make_world(vms=["over-*"])
    world.make_vm("over-1", MIB, powered_on=False)
    look(world)
    without = Here(with_rule(world), world.catalogue)
    assert dispatch.dispatch(without, world.catalogue.now()) == []
    (left,) = Roll(without).left()
    assert left.why == "the group is not in the configuration any more"
    assert left.left is not None and Roll(without).kept_until(left) == left.left + timedelta(days=30)
    shown = group.show(without, "all")
    assert (shown.rule, shown.members, [each.vm for each in shown.left]) == ("", (), ["over-1"])
    assert [each.name for each in group.overview(without)] == ["all"]
    settle(world.here)
    assert members(world) == {"over-1"} and not Roll(world.here).left()


def test_new_vms_join_by_themselves_and_are_backed_up(make_world: Callable[..., World]) -> None:
    world = make_world(
        who='members = { name = "new-*", template = false }', group=['backup = { every = "1h", jitter = "none" }']
    )
    assert not [run for run in dispatch.dispatch(world.here, world.catalogue.now()) if run.vm.startswith("new-")]
    world.make_vm("new-1", MIB, powered_on=False)
    (run,) = dispatch.dispatch(world.here, world.catalogue.now())
    assert (run.vm, run.kind) == ("new-1", RunKind.BACKUP)
    world.vm("new-1").MarkAsTemplate()
    look(world)
    assert members(world) == set() and "template" in (Roll(world.here).left()[0].why or "")
