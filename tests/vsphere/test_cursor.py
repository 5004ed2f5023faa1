"""The cursor and the witness on the replica: compare-and-set, and what a revert does to each."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import MIB, Simulator
from tests.vsphere.switching import power_off
from workers.errors import BadInput, Conflict, NotFound, VcenterUnreachable
from workers.vsphere import inventory, power, replica, snapshots
from workers.vsphere.session import Session


def write(session: Session, moref: str, text: str, version: str) -> str:
    return replica.write_cursor(session, moref, "understudy.cursor", text, version)


def test_cursor_writes_follow_each_other(session: Session, make_vm: Any) -> None:
    moref = make_vm("cursor")
    version = inventory.vm_state(session, moref).change_version
    for n in range(3):
        version = write(session, moref, f'{{"nonce": "{n}"}}', version)
        state = inventory.vm_state(session, moref)
        assert (state.notes["understudy.cursor"], state.change_version) == (f'{{"nonce": "{n}"}}', version)
    assert write(session, moref, "", version) != version
    assert "understudy.cursor" not in inventory.vm_state(session, moref).notes


def test_a_stale_cursor_write_loses(session: Session, make_vm: Any) -> None:
    moref = make_vm("stale")
    version = inventory.vm_state(session, moref).change_version
    write(session, moref, "winner", version)
    with pytest.raises(Conflict, match=r"understudy\.cursor"):
        write(session, moref, "zombie", version)
    assert inventory.vm_state(session, moref).notes["understudy.cursor"] == "winner"


def test_anything_that_happened_to_the_vm_stops_a_cursor_write(session: Session, make_vm: Any) -> None:
    moref = make_vm("touched")
    version = inventory.vm_state(session, moref).change_version
    power.power_on(session, moref)
    power_off(session, moref)
    with pytest.raises(Conflict):
        write(session, moref, "late", version)


def test_of_many_writers_one_wins(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("race")
    version = inventory.vm_state(session, moref).change_version
    won: list[str] = []

    def attempt(text: str) -> None:
        try:
            write(session, moref, text, version)
            won.append(text)
        except Conflict:
            pass

    threads = [threading.Thread(target=attempt, args=(f"writer-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and inventory.vm_state(session, moref).notes["understudy.cursor"] == won[0]


def test_the_same_write_again_is_known_by_its_nonce(session: Session, make_vm: Any) -> None:
    moref = make_vm("nonce")
    version = inventory.vm_state(session, moref).change_version
    after = write(session, moref, "nonce-1", version)
    assert write(session, moref, "nonce-1", version) == after


def test_a_cursor_write_whose_answer_was_lost(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("lost")
    version = inventory.vm_state(session, moref).change_version
    simulator.rule("ReconfigVM_Task", DropAfter=True)
    version = write(session, moref, "carried out", version)
    simulator.rule("ReconfigVM_Task", DropAfter=True, TaskMs=600)
    version = write(session, moref, "carried out later", version)
    simulator.rule("ReconfigVM_Task", Drop=True)
    with pytest.raises(VcenterUnreachable, match="look before repeating"):
        write(session, moref, "never arrived", version)
    assert inventory.vm_state(session, moref).notes["understudy.cursor"] == "carried out later"
    write(session, moref, "never arrived", version)


@pytest.mark.parametrize(("key", "text"), [("guestinfo.x", "a"), ("understudy.cursor", "x" * 4097)])
def test_what_is_no_cursor(session: Session, make_vm: Any, key: str, text: str) -> None:
    with pytest.raises(BadInput):
        replica.write_cursor(session, "vm-1", key, text, "1")


def test_a_cursor_of_a_vm_that_is_gone(session: Session) -> None:
    with pytest.raises(NotFound):
        write(session, "vm-4711", "a", "1")


def test_evidence_of_the_content(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("evidence", 4 * MIB, 8 * MIB)
    before = inventory.vm_state(session, moref)
    evidence, binding = replica.content_evidence(before), replica.disk_binding(before)
    write(session, moref, "a cursor", before.change_version)
    assert replica.content_evidence(inventory.vm_state(session, moref)) == evidence != ""
    simulator.control(GuestWrite={"VM": "evidence", "Disk": 1, "Offset": 0, "Hex": "00", "Force": True})
    after = inventory.vm_state(session, moref)
    assert replica.content_evidence(after) not in (evidence, "")
    assert replica.disk_binding(after) == binding
    unknown = after.config.disks[0].model_copy(update={"content_id": ""})
    silent = after.model_copy(update={"config": after.config.model_copy(update={"disks": (unknown,)})})
    assert replica.content_evidence(silent) == ""


def test_a_revert_turns_the_cursor_back_but_not_the_witness(session: Session, make_vm: Any) -> None:
    """Hole 5: this is why the fence never lives in extraConfig alone."""
    moref = make_vm("reverted")
    version = write(session, moref, "A", inventory.vm_state(session, moref).change_version)
    replica.set_witness(session, moref, "fence 1")
    taken = snapshots.create(session, moref, "A", quiesce=False).moref
    before = inventory.vm_state(session, moref).change_version
    write(session, moref, "B", before)
    replica.set_witness(session, moref, "fence 2")
    session.wait(session.object(vim.vm.Snapshot, taken).RevertToSnapshot_Task())
    state = inventory.vm_state(session, moref)
    assert (state.notes["understudy.cursor"], state.witness) == ("A", "fence 2")
    for stale in (version, before):
        with pytest.raises(Conflict):
            write(session, moref, "C", stale)


def test_the_witness_is_made_once_by_many(simulator: Simulator, session: Session, make_vm: Any) -> None:
    manager = session.content.customFieldsManager
    for field in session.read(manager, "field").get("field") or ():
        manager.RemoveCustomFieldDef(field.key)
    morefs = [make_vm(f"witness{n}") for n in range(4)]
    threads = [threading.Thread(target=replica.set_witness, args=(session, moref, moref)) for moref in morefs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [inventory.vm_state(session, moref).witness for moref in morefs] == morefs
    assert [f.name for f in session.read(manager, "field")["field"]] == ["understudy"]
    with pytest.raises(BadInput, match="255 characters"):
        replica.set_witness(session, morefs[0], "x" * 256)
