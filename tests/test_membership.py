"""Rules: what they match and why, what they say about what is not known, and who joins, leaves or is asked about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.membership import FEW, Outcome, explain, holds, matches, may_cover, sentence, settle
from workers.models import VmIdentity, VmSummary
from workers.settings import Group, Rule


def vm(name: str = "web-01", **facts: Any) -> VmSummary:
    given: dict[str, Any] = {
        "power": "poweredOn",
        "template": False,
        "folder": "DC0/Production/Web",
        "datastores": ("fast-1", "slow"),
        "cluster": "blue",
        "tags": ("tier:web", "backup:daily"),
    }
    identity = VmIdentity(site="prod", vcenter="v", instance_uuid=name, bios_uuid="b", moref="vm-1", name=name)
    return VmSummary.model_validate({"identity": identity, **given, **facts})


def rule(**keys: Any) -> Rule:
    return Rule.model_validate(keys)


UNKNOWN = {"datastores": None, "cluster": None, "tags": None}


@pytest.mark.parametrize(
    ("keys", "answer", "why"),
    [
        ({"name": "web-01"}, True, "name web-01"),
        ({"name": "web-*"}, True, "name web-01 matches web-*"),
        ({"name": ["db-*", "web-??"]}, True, "name web-01 matches web-??"),
        ({"name": "web"}, False, "name web-01 is not web"),
        ({"name": "WEB-01"}, False, "name web-01 is not WEB-01"),
        ({"folder": "DC0/Production"}, True, "folder DC0/Production/Web matches DC0/Production"),
        ({"folder": "/DC0/Production/Web/"}, True, "folder DC0/Production/Web"),
        ({"folder": "DC?/*/Web"}, True, "matches DC?/*/Web"),
        ({"folder": "Production"}, False, "folder DC0/Production/Web is not Production"),
        ({"folder": "DC0/Prod"}, False, "is not DC0/Prod"),
        ({"tag": "tier:web"}, True, "tag tier:web"),
        ({"tag": "web"}, True, "tag tier:web matches web"),
        ({"tag": "tier:*"}, True, "tag tier:web matches tier:*"),
        ({"tag": ["backup:never", "gold"]}, False, "tag tier:web, backup:daily is not backup:never or gold"),
        ({"datastore": "fast-*"}, True, "datastore fast-1 matches fast-*"),
        ({"datastore": "nvme"}, False, "datastore fast-1, slow is not nvme"),
        ({"cluster": "blue"}, True, "cluster blue"),
        ({"cluster": "red"}, False, "cluster blue is not red"),
        ({"power": "on"}, True, "power on"),
        ({"power": "off"}, False, "power on is not off"),
        ({"template": False}, True, "template no"),
        ({"template": True}, False, "template no is not yes"),
        ({"name": "web-*", "power": "off"}, False, "power on is not off"),
        ({"name": "web-*", "power": "on"}, True, "name web-01 matches web-*; power on"),
        ({"any": [{"name": "db"}, {"cluster": "blue"}]}, True, "cluster blue"),
        ({"any": [{"name": "db"}, {"cluster": "red"}]}, False, "none of: (name web-01 is not db), (cluster blue"),
        ({"all": [{"tag": "web"}, {"tag": "daily"}]}, True, "tag tier:web matches web; tag backup:daily matches daily"),
        ({"all": [{"tag": "web"}, {"tag": "gold"}]}, False, "is not gold"),
        ({"not": {"tag": "web"}}, False, "excluded: tag tier:web matches web"),
        ({"not": {"tag": "gold"}}, True, "is not gold"),
        (
            {"name": "*", "not": {"any": [{"power": "off"}, {"folder": "DC0/Test"}]}},
            True,
            "name web-01 matches *; none",
        ),
        ({"not": {"not": {"name": "web-01"}}}, True, "name web-01"),
    ],
)
def test_what_a_rule_matches_and_why(keys: dict[str, Any], answer: bool, why: str) -> None:
    assert holds(rule(**keys), vm()) is answer
    assert why in explain(rule(**keys), vm())


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        ({"tag": "web"}, None),
        ({"datastore": "*"}, None),
        ({"cluster": "blue"}, None),
        ({"not": {"tag": "web"}}, None),
        ({"name": "web-*", "tag": "web"}, None),
        ({"name": "db-*", "tag": "web"}, False),  # whatever the tags are
        ({"any": [{"name": "web-*"}, {"tag": "web"}]}, True),
        ({"any": [{"name": "db-*"}, {"tag": "web"}]}, None),
        ({"all": [{"name": "web-*"}, {"tag": "web"}]}, None),
    ],
)
def test_what_is_not_known_is_neither_a_match_nor_a_mismatch(keys: dict[str, Any], answer: bool | None) -> None:
    found = vm(**UNKNOWN)
    assert holds(rule(**keys), found) is answer
    if answer is None:
        assert "is not known" in explain(rule(**keys), found)


def test_no_tag_is_not_the_same_as_not_asked() -> None:
    assert holds(rule(tag="web"), vm(tags=())) is False
    assert holds(rule(**{"not": {"tag": "web"}}), vm(tags=())) is True
    assert "tag (none) is not web" in explain(rule(tag="web"), vm(tags=()))


@pytest.mark.parametrize(
    ("keys", "answer"),
    [
        ({"name": "web-*"}, True),
        ({"name": "db-*"}, False),
        ({"name": "web-*", "power": "off", "folder": "x", "template": True, "cluster": "x", "datastore": "x"}, True),
        ({"tag": "gold"}, True),
        ({"not": {"name": "web-*"}}, False),
        ({"not": {"tag": "gold"}}, True),
        ({"any": [{"name": "db-*"}, {"folder": "x"}]}, True),
    ],
)
def test_what_a_name_alone_rules_out(keys: dict[str, Any], answer: bool) -> None:
    assert may_cover(rule(**keys), "web-01") is answer


def test_a_suspended_vm_is_off() -> None:
    assert holds(rule(power="off"), vm(power="suspended")) and not holds(rule(power="on"), vm(power="suspended"))


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        ("web[1]", "web[1]", True),
        ("web[1]", "web1", False),
        ("w.b", "web", False),
        ("w?b", "web", True),
        ("*", "", True),
        ("?", "", False),
        ("a*b", "a\nb", True),
        ("a+", "aa", False),
    ],
)
def test_only_two_letters_of_a_pattern_mean_something(pattern: str, text: str, answer: bool) -> None:
    assert matches(pattern, text) is answer


TEXTS = st.text("ab/:*?[]-", max_size=4)
FACTS = st.fixed_dictionaries(
    {
        "name": st.text("ab-", min_size=1, max_size=3),
        "power": st.sampled_from(["poweredOn", "poweredOff", "suspended"]),
        "template": st.booleans(),
        "folder": st.sampled_from(["", "DC", "DC/a", "DC/a/b"]),
        "datastores": st.none() | st.lists(st.sampled_from("ab"), max_size=2).map(tuple),
        "cluster": st.none() | st.sampled_from("ab"),
        "tags": st.none() | st.lists(st.sampled_from(["a:b", "a:a", "b:b"]), max_size=2).map(tuple),
    }
)
PATTERNS = st.sampled_from(["a", "b", "*", "a*", "?", "DC/*", "DC", "a:b"])
LEAVES = st.one_of(
    st.builds(lambda key, pattern: {key: pattern}, st.sampled_from(["name", "folder", "tag", "datastore"]), PATTERNS),
    st.builds(lambda pattern: {"cluster": [pattern, "b"]}, PATTERNS),
    st.builds(lambda power: {"power": power}, st.sampled_from(["on", "off"])),
    st.builds(lambda template: {"template": template}, st.booleans()),
)
RULES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda rules: {"any": rules}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda rules: {"all": rules}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"not": one}, inner),
        st.builds(lambda one, other: {**one, **other}, inner, inner),
    ),
    max_leaves=6,
).map(lambda keys: Rule.model_validate(keys))


@given(RULES, FACTS, FACTS)
def test_what_a_rule_knows_does_not_change_when_more_is_known(
    one: Rule, facts: dict[str, Any], more: dict[str, Any]
) -> None:
    """An answer that was given without the tags is the answer with them, whatever they are."""
    before = vm(**facts)
    after = vm(**{**facts, **{key: more[key] for key in UNKNOWN if facts[key] is None}})
    answer = holds(one, before)
    if answer is not None:
        assert holds(one, after) is answer
    if None not in (before.datastores, before.cluster, before.tags):
        assert answer is not None


@given(RULES, RULES, FACTS)
def test_and_or_not_are_what_they_are_in_logic(one: Rule, other: Rule, facts: dict[str, Any]) -> None:
    found = vm(**facts)
    a, b = holds(one, found), holds(other, found)
    both = holds(Rule.model_validate({"all": [one, other]}), found)
    either = holds(Rule.model_validate({"any": [one, other]}), found)
    neither = holds(Rule.model_validate({"not": {"any": [one, other]}}), found)
    assert holds(Rule.model_validate({"not": one}), found) is (None if a is None else not a)
    assert both is (False if False in (a, b) else None if None in (a, b) else True)
    assert either is (True if True in (a, b) else None if None in (a, b) else False)
    assert neither is (None if either is None else not either)
    assert explain(one, found) and sentence(one)


@given(RULES)
def test_a_rule_survives_being_shown_as_data(one: Rule) -> None:
    assert Rule.model_validate(one.model_dump(exclude_none=True)) == one


# --- the configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "an empty rule"),
        ({"name": []}, "none of them empty"),
        ({"name": ["web", ""]}, "none of them empty"),
        ({"folder": "/"}, "none of them empty"),
        ({"power": "up"}, "'on' or 'off'"),
        ({"any": []}, "at least 1 item"),
        ({"name": 7}, "valid tuple"),
        ({"nmae": "web"}, "nmae"),
        ({"not": {"not": {}}}, "an empty rule"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(members: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Rule.model_validate(members)


@pytest.mark.parametrize("who", [{}, {"vms": ["a"], "members": {"name": "a"}}])
def test_a_group_has_names_or_a_rule(who: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="either 'vms'"):
        Group.model_validate({"source": "prod", "store": "main", **who})


def test_names_are_a_short_rule() -> None:
    short = Group.model_validate({"source": "prod", "store": "main", "vms": ["web-*", "db"]})
    assert short.rule == rule(name=["web-*", "db"]) and not short.rule.uses_tags
    nobody = Group.model_validate({"source": "prod", "store": "main", "vms": []})
    assert holds(nobody.rule, vm()) is False and sentence(nobody.rule) == "name (nobody)"


@pytest.mark.parametrize(
    ("keys", "uses"),
    [({"tag": "a"}, True), ({"not": {"any": [{"all": [{"tag": "a"}]}]}}, True), ({"any": [{"name": "a"}]}, False)],
)
def test_whether_tags_are_needed(keys: dict[str, Any], uses: bool) -> None:
    assert rule(**keys).uses_tags is uses


# --- who joins, who leaves ---------------------------------------------------------------------------------------


def settled(vms: list[VmSummary], before: set[str], absent: dict[str, str] | None = None, **keys: Any) -> Outcome:
    how = {"exodus": 0.5, **{key: keys.pop(key) for key in ("exodus", "agreed", "asked") if key in keys}}
    known = {found.identity.instance_uuid: found for found in vms}
    return settle(rule(**(keys or {"name": "web-*"})), known, before, absent or {}, **how)


def test_who_matches_joins_and_who_does_not_leaves_with_the_reason() -> None:
    found = settled([vm("web-1"), vm("web-2"), vm("db-1")], {"web-1", "db-1"})
    assert found == Outcome(frozenset({"web-1", "web-2"}), frozenset({"web-2"}), {"db-1": "name db-1 is not web-*"}, {})


def test_who_is_gone_or_absent_leaves_with_that_reason() -> None:
    found = settled([vm("web-1"), vm("web-2")], {"web-1", "web-2", "web-3"}, {"web-2": "it is a template"})
    assert found.inside == {"web-1"}
    assert found.leaving == {"web-2": "it is a template", "web-3": "it is gone from the group's site"}


def test_who_is_not_known_stays_where_it_is() -> None:
    vms = [vm("web-1", tags=None), vm("web-2", tags=None), vm("web-3", tags=("a:b",))]
    found = settled(vms, {"web-1", "web-3"}, tag="gold")
    assert (found.inside, found.joining, set(found.leaving)) == ({"web-1"}, frozenset(), {"web-3"})


@pytest.mark.parametrize(
    ("before", "leaving", "exodus", "held"),
    [
        pytest.param(10, 5, 0.5, False, id="half"),
        pytest.param(10, 6, 0.5, True, id="more than half"),
        pytest.param(4, 4, 0.5, False, id="a small group"),
        pytest.param(5, 5, 0.5, True, id="all of five"),
        pytest.param(100, FEW, 0.0, True, id="as few as are asked about"),
        pytest.param(100, FEW - 1, 0.0, False, id="fewer than are asked about"),
        pytest.param(100, 100, 1.0, False, id="switched off"),
    ],
)
def test_when_many_would_leave_nobody_does_until_somebody_agrees(
    before: int, leaving: int, exodus: float, held: bool
) -> None:
    names = {f"web-{number}" for number in range(before)}
    gone = {f"web-{number}" for number in range(leaving)}
    there = [vm(name) for name in names - gone]
    found = settled([*there, vm("web-new")], names, exodus=exodus)
    assert (set(found.held), set(found.leaving)) == ((gone, set()) if held else (set(), gone))
    assert found.inside == (names if held else names - gone) | {"web-new"} and found.joining == {"web-new"}
    agreed = settled(there, names, exodus=exodus, agreed=True)
    assert not agreed.held and agreed.inside == names - gone


SOME = st.sets(st.sampled_from([f"web-{n}" for n in range(8)] + [f"db-{n}" for n in range(8)]))


@given(SOME, SOME, SOME, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_everybody_is_accounted_for(
    there: set[str], before: set[str], absent: set[str], exodus: float, agreed: bool
) -> None:
    found = settled([vm(name) for name in there], before, dict.fromkeys(absent, "absent"), exodus=exodus, agreed=agreed)
    assert found.joining == found.inside - before
    assert found.leaving.keys() == before - found.inside
    assert found.held.keys() <= before & found.inside and not (agreed and found.held)
    assert all(name in there - absent and name.startswith("web") for name in found.inside - found.held.keys())
    assert all([*found.leaving.values(), *found.held.values()])
    # Once it is recorded there is nothing more to do, whoever is the second to do it.
    again = settled(
        [vm(name) for name in there],
        set(found.inside),
        dict.fromkeys(absent, "absent"),
        exodus=exodus,
        asked=found.held.keys(),
    )
    assert again == Outcome(found.inside, frozenset(), {}, found.held)


def test_who_was_asked_about_waits_however_the_group_grows() -> None:
    names = {f"web-{number}" for number in range(9)}
    there = [vm(f"web-{number}") for number in range(5, 30)]
    asked = {f"web-{number}" for number in range(5)}
    first = settled(there[:4], names)
    assert first.held.keys() == asked
    later = settled(there, names | {f"web-{number}" for number in range(30)}, asked=asked)
    assert later.held.keys() == asked and not later.leaving
    back = settled([*there, vm("web-0")], names | {f"web-{number}" for number in range(30)}, asked=asked)
    assert back.held.keys() == asked - {"web-0"} and "web-0" in back.inside
