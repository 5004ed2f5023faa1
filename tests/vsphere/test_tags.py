"""The tags of VMs, from the REST API: all of them, or an error. The simulator speaks both of vCenter's dialects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vsphere.conftest import PASSWORD, Simulator, site_of
from tests.vsphere.tagging import Tagging
from workers.errors import BadInput, LoginFailed, Transient, UnderstudyError, VcenterUnreachable
from workers.models import VmSummary
from workers.vsphere import inventory, tags
from workers.vsphere.session import Session


@pytest.fixture(scope="module")
def tagging(simulator: Simulator) -> Tagging:
    return Tagging(simulator.address, f"user:{PASSWORD}")


@pytest.fixture
def tagged(session: Session, make_vm: Any, tagging: Tagging) -> list[VmSummary]:
    for name in ("one", "two", "three", "none"):
        moref = make_vm(name)
        if name != "none":
            tagging.attach(f"number:{name}", moref)
            tagging.attach("all:of them", moref)
    return inventory.list_vms(session)


EXPECTED = {
    "one": ("all:of them", "number:one"),
    "two": ("all:of them", "number:two"),
    "three": ("all:of them", "number:three"),
    "none": (),
}


def read(session: Session, vms: list[VmSummary]) -> dict[str, tuple[str, ...] | None]:
    return {vm.identity.name: vm.tags for vm in tags.with_tags(session, vms)}


@pytest.mark.parametrize("rest_only", [False, True], ids=["api", "rest"])
@pytest.mark.parametrize("batch", [500, 1])
def test_the_tags_of_all_vms(
    simulator: Simulator,
    session: Session,
    tagged: list[VmSummary],
    monkeypatch: pytest.MonkeyPatch,
    rest_only: bool,
    batch: int,
) -> None:
    monkeypatch.setattr(tags, "BATCH", batch)  # 1: as many requests as VMs
    simulator.control(Clear=True, RestOnly=rest_only)
    assert [vm.tags for vm in tagged] == [None] * 4  # not asked is not the same as none
    assert read(session, tagged) == EXPECTED
    calls = simulator.calls()
    assert calls["rest.session"] == 2  # login and logout
    assert calls["rest.tag-association"] == (2 if batch == 500 else 8)
    assert calls["rest.category"] == 2


def test_nothing_is_asked_without_vms(simulator: Simulator, session: Session) -> None:
    simulator.control(Clear=True)
    assert tags.with_tags(session, []) == []
    assert not [call for call in simulator.calls() if call.startswith("rest.")]


def test_a_vcenter_without_any_tag(session: Session, simulator: Simulator) -> None:
    with Session("prod", site_of(simulator)) as s:
        vm = VmSummary.model_validate(
            {
                "identity": {
                    **dict.fromkeys(("site", "vcenter", "instance_uuid", "bios_uuid", "name"), "x"),
                    "moref": "vm-0",
                },
                "power": "poweredOff",
                "template": False,
                "folder": "",
            }
        )
        assert read(s, [vm]) == {"x": ()}


CALLS = ["rest.session", "rest.tag-association", "rest.tag", "rest.category"]


FAULTS: list[tuple[dict[str, Any], type[UnderstudyError]]] = [
    ({"Drop": True}, VcenterUnreachable),
    ({"DropAfter": True}, VcenterUnreachable),
    ({"HTTP": 500}, Transient),
    ({"HTTP": 503}, Transient),
    ({"HTTP": 403}, BadInput),
    ({"HTTP": 401}, LoginFailed),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_is_an_error(
    simulator: Simulator, session: Session, tagged: list[VmSummary], call: str
) -> None:
    for fault, error in FAULTS:
        simulator.rule(call, **fault)
        with pytest.raises(error):
            tags.with_tags(session, tagged)
        assert read(session, tagged) == EXPECTED  # and the next reading is none the worse


def test_each_call_may_be_the_one_that_fails(simulator: Simulator, session: Session, tagged: list[VmSummary]) -> None:
    simulator.control(Clear=True)
    read(session, tagged)
    made = simulator.calls()
    assert sum(made[call] for call in CALLS[1:]) == 9  # the list of tags, four tags, two categories, two associations
    for call in CALLS[1:]:
        for skip in range(made[call]):
            simulator.control(Clear=True)
            simulator.rule(call, Skip=skip, HTTP=500)
            with pytest.raises(Transient, match="did not answer a question about tags"):
                tags.with_tags(session, tagged)


@pytest.mark.parametrize("rest_only", [False, True], ids=["api", "rest"])
@pytest.mark.parametrize("action", ["list-attached-tags-on-objects", "list-attached-objects-on-tags"])
def test_half_of_an_answer_is_found_out(
    simulator: Simulator, session: Session, tagged: list[VmSummary], action: str, rest_only: bool
) -> None:
    """Every second line is missing, and what is there looks whole."""
    simulator.control(Clear=True, RestOnly=rest_only)
    simulator.rule("rest.tag-association", Object=action, Halve=True, Count=2)
    with pytest.raises(Transient, match=r"contradicts itself about the tags of \d VMs .* no tag is believed"):
        tags.with_tags(session, tagged)
    simulator.rule("rest.tag-association", Object=action, Halve=True, Count=1)
    assert read(session, tagged) == EXPECTED  # asked again, as for somebody who tags at that moment


def test_half_of_the_list_of_tags_is_found_out(simulator: Simulator, session: Session, tagged: list[VmSummary]) -> None:
    simulator.rule("rest.tag", Halve=True, Count=2)
    with pytest.raises(UnderstudyError):
        tags.with_tags(session, tagged)


def test_a_tag_that_vanishes_while_it_is_asked_for(
    simulator: Simulator, session: Session, tagged: list[VmSummary]
) -> None:
    simulator.rule("rest.category", HTTP=404)
    with pytest.raises(Transient, match="that it named just now"):
        tags.with_tags(session, tagged)


def test_a_wrong_password_is_a_sentence(
    simulator: Simulator, session: Session, tagged: list[VmSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_VCENTER_PASSWORD", "wrong")
    with pytest.raises(LoginFailed, match=r"does not let user read tags.*check sites\.prod\.user") as caught:
        tags.with_tags(session, tagged)
    assert "wrong" not in str(caught.value)


def test_a_vcenter_without_rest(simulator: Simulator, session: Session, tagged: list[VmSummary]) -> None:
    simulator.rule("rest.session", HTTP=404, Count=2)
    with pytest.raises(BadInput, match="neither /api nor /rest"):
        tags.with_tags(session, tagged)
