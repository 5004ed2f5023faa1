from __future__ import annotations

import os
import socket
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.conftest import PASSWORD, Simulator, site_of, until
from tests.vsphere.switching import power_off
from workers.errors import ConfigError, Conflict, LoginFailed, NotFound, TaskStillRunning, VcenterUnreachable
from workers.vsphere import inventory, power, snapshots, transport
from workers.vsphere import session as module
from workers.vsphere.session import Session


@pytest.mark.parametrize(
    ("vcenter", "expected"),
    [
        ("vc.example", ("vc.example", 443, "/sdk")),
        ("vc.example:8443", ("vc.example", 8443, "/sdk")),
        ("https://vc.example", ("vc.example", 443, "/sdk")),
        ("https://vc.example:8443/sdk", ("vc.example", 8443, "/sdk")),
        ("[2001:db8::1]:444", ("2001:db8::1", 444, "/sdk")),
    ],
)
def test_how_a_vcenter_may_be_written(vcenter: str, expected: tuple[str, int, str]) -> None:
    assert transport.address(vcenter) == expected


@pytest.mark.parametrize("vcenter", ["http://vc.example", "vc.example:port", "https://"])
def test_what_is_no_address(vcenter: str) -> None:
    with pytest.raises(ConfigError, match="vcenter = "):
        transport.address(vcenter)


@pytest.mark.parametrize("written", ["AA:BB", "aabb", ""])
def test_colons_and_case_of_a_thumbprint_do_not_matter(simulator: Simulator, written: str) -> None:
    digits = simulator.about["thumbprintSha256"].replace(":", "")
    text = {"AA:BB": ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper(), "aabb": digits.lower()}.get(
        written, digits
    )
    with Session("prod", site_of(simulator, thumbprint=text)) as s:
        assert s.vcenter == simulator.about["instanceUuid"]


def test_another_certificate_than_the_pinned_one_is_refused_before_the_password_is_sent(simulator: Simulator) -> None:
    before = simulator.calls().get("Login", 0)
    with pytest.raises(LoginFailed, match=r"sites\.prod\.thumbprint"):
        Session("prod", site_of(simulator, thumbprint="ab" * 32))
    assert simulator.calls().get("Login", 0) == before


def test_a_pin_holds_even_where_a_ca_vouches_for_the_certificate(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(simulator.folder / "cert.pem"))
    with pytest.raises(LoginFailed, match="not the configured one"):
        Session("prod", site_of(simulator, thumbprint="ab" * 32))


def test_a_certificate_of_no_known_ca_says_what_to_set(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(LoginFailed, match=r"sites\.prod\.ca_file .* or sites\.prod\.thumbprint"):
        Session("prod", site_of(simulator, ca_file=None))


def test_insecure_is_a_choice(simulator: Simulator) -> None:
    with Session("prod", site_of(simulator, insecure=True)) as s:
        assert s.vcenter


def test_a_ca_file_that_is_none(simulator: Simulator, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigError, match="ca_file = "):
            Session("prod", site_of(simulator, ca_file=tmp_path / file))
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        Session("prod", site_of(simulator, thumbprint="aa:bb"))


def test_proxies_of_the_environment_are_not_asked(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    with Session("prod", site_of(simulator)) as s:
        assert s.vcenter


def test_a_wrong_password_is_a_sentence_without_the_password(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_VCENTER_PASSWORD", "wr0ng-secret")
    with pytest.raises(LoginFailed, match="does not accept the password of user") as caught:
        Session("prod", site_of(simulator))
    assert "wr0ng-secret" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_session_holds_no_password(session: Session) -> None:
    assert PASSWORD not in repr(vars(session)) + repr(vars(session._stub)) + repr(session.site)


def test_nobody_listens_there(simulator: Simulator) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(VcenterUnreachable, match="cannot be reached"):
        Session("prod", site_of(simulator).model_copy(update={"vcenter": address}))


def test_something_listens_that_never_answers(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.2)  # seconds
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(VcenterUnreachable, match="timed out"):
            Session("prod", site_of(simulator).model_copy(update={"vcenter": address}))


def test_an_answer_that_never_comes_is_given_up(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_TIMEOUT", 0.2)  # minutes
    with Session("prod", site_of(simulator)) as s:
        simulator.rule("RetrievePropertiesEx", DelayMs=1500, Count=2)
        with pytest.raises(VcenterUnreachable, match="lost twice"):
            inventory.list_vms(s)


@pytest.mark.parametrize("how", [{"Drop": True}, {"DropAfter": True}, {"HTTP": 503}], ids=["drop", "answer", "503"])
def test_a_read_is_repeated_once(simulator: Simulator, session: Session, how: dict[str, Any]) -> None:
    expected = inventory.list_vms(session)
    simulator.rule("RetrievePropertiesEx", **how)
    assert inventory.list_vms(session) == expected
    simulator.rule("RetrievePropertiesEx", **{**how, "Count": 2})
    with pytest.raises(VcenterUnreachable, match="twice"):
        inventory.list_vms(session)
    assert inventory.list_vms(session) == expected


def test_a_changing_call_is_never_repeated_by_itself(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("mutating")
    simulator.control(Clear=True)
    simulator.rule("PowerOnVM_Task", Drop=True)
    with pytest.raises(VcenterUnreachable, match=r"PowerOnVM_Task .* whether it was carried out is not known"):
        power.power_on(session, moref)
    assert simulator.calls()["PowerOnVM_Task"] == 1


def test_an_expired_session_is_renewed_once_for_all_threads(
    simulator: Simulator, session: Session, make_vm: Any
) -> None:
    moref = make_vm("renewed")
    simulator.control(Clear=True, ExpireSessions=True)
    power.power_on(session, moref)  # a changing call too: it was refused, not lost
    assert power.state(session, moref) == "poweredOn"
    power_off(session, moref)
    assert simulator.calls()["Login"] == 1

    simulator.control(Clear=True, ExpireSessions=True)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(inventory.vm_state(session, moref))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(state.identity.moref == moref for state in results)
    assert simulator.calls()["Login"] == 1


def test_a_session_that_cannot_be_renewed(
    simulator: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_VCENTER_PASSWORD", "changed meanwhile")
    simulator.control(ExpireSessions=True)
    with pytest.raises(LoginFailed):
        inventory.list_vms(session)
    monkeypatch.setenv("TEST_VCENTER_PASSWORD", PASSWORD)
    assert inventory.list_vms(session) == []


def test_threads_work_at_once(session: Session, make_vm: Any) -> None:
    morefs = [make_vm(f"thread{n}") for n in range(4)]
    problems: list[BaseException] = []

    def work(moref: str) -> None:
        try:
            for turn in range(5):
                taken = snapshots.create(session, moref, f"s{turn}", quiesce=False)
                assert inventory.vm_state(session, moref).snapshots[0].moref == taken.moref
                snapshots.remove(session, moref, taken.moref)
        except BaseException as err:
            problems.append(err)

    threads = [threading.Thread(target=work, args=(moref,)) for moref in morefs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_connection_closed_while_idle_costs_a_changing_call_nothing(
    simulator: Simulator, session: Session, make_vm: Any
) -> None:
    moref = make_vm("idle")
    pooled = [connection for connection, _ in session._stub.pool]
    assert pooled
    for connection in pooled:
        connection.sock.shutdown(socket.SHUT_WR)  # the server answers by closing, as it does after its keep-alive
        until(lambda c=connection: transport._closed(c))
    power.power_on(session, moref)
    assert power.state(session, moref) == "poweredOn"


# --- tasks --------------------------------------------------------------------------------------------------------


def test_a_slow_task_is_waited_for(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("slow")
    simulator.rule("PowerOnVM_Task", TaskMs=700)
    before = simulator.calls()
    power.power_on(session, moref)
    assert power.state(session, moref) == "poweredOn"
    after = simulator.calls()
    # By updates: a look at the start, one at the end, and no polling in between.
    assert after["RetrievePropertiesEx"] - before["RetrievePropertiesEx"] <= 5


def test_a_task_that_outlives_the_wait_is_picked_up_by_its_moref(
    simulator: Simulator, session: Session, make_vm: Any
) -> None:
    moref = make_vm("longer")
    simulator.rule("CreateSnapshot_Task", TaskMs=1500)
    with pytest.raises(TaskStillRunning) as caught:
        snapshots.create(session, moref, "late", quiesce=False, wait=0.2)
    assert caught.value.task.startswith("task-")
    result = session.wait(session.task(caught.value.task), 20)
    assert result._GetMoId() == snapshots.find(session, moref, "late")


def test_waiting_goes_on_when_updates_do_not_work(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("polled")
    simulator.control(
        Rules=[
            {"Method": "PowerOnVM_Task", "Count": 1, "TaskMs": 600},
            {"Method": "CreateFilter", "Count": -1, "Fault": "NotSupported"},
        ]
    )
    power.power_on(session, moref)
    assert power.state(session, moref) == "poweredOn"


def test_a_session_that_expires_during_a_slow_task(simulator: Simulator, session: Session, make_vm: Any) -> None:
    moref = make_vm("expires")
    simulator.rule("PowerOnVM_Task", TaskMs=1200)
    timer = threading.Timer(0.4, lambda: simulator.control(ExpireSessions=True))
    timer.start()
    power.power_on(session, moref)
    timer.join()
    assert power.state(session, moref) == "poweredOn"


def test_a_forgotten_task_says_look(session: Session) -> None:
    with pytest.raises(Conflict, match="look whether it was done"):
        session.wait(session.task("task-4711"))


def test_an_object_that_is_gone(session: Session) -> None:
    with pytest.raises(NotFound, match="vm-4711"):
        inventory.vm_state(session, "vm-4711")


# --- one per process ----------------------------------------------------------------------------------------------


def test_one_session_per_process_and_site(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sessions", {})  # other tests' are in it
    site = site_of(simulator)
    first = module.connect("prod", site)
    assert module.connect("prod", site) is first
    assert module.connect("dr", site) is not first
    other = module.connect("prod", site_of(simulator, insecure=True))
    assert other is not first and module.connect("prod", other.site) is other
    other.close()


def test_a_forked_child_has_its_own_session(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sessions", {})  # other tests' are in it
    site = site_of(simulator)
    first = module.connect("prod", site)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mine = module.connect("prod", site)
            word = b"own" if mine is not first and inventory.list_vms(mine) == [] else b"shared"
            mine.close()
            os.write(write_end, word)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    assert os.read(read_end, 16) == b"own"
    os.close(read_end)
    assert inventory.list_vms(first) == []  # still logged in
    first.close()


def test_a_closed_session_is_logged_out(simulator: Simulator) -> None:
    s = Session("prod", site_of(simulator))
    simulator.control(Clear=True)
    s.close()
    assert simulator.calls()["Logout"] == 1


def test_reading_in_pages(
    simulator: Simulator, session: Session, make_vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)  # else one page has all of it
    names = sorted(f"page{n}" for n in range(5))
    for name in names:
        make_vm(name)
    found = session.read_all({vim.VirtualMachine: ("name",)})
    assert sorted(f.values["name"] for f in found) == names


def test_latency_is_counted_in_calls(simulator: Simulator, session: Session, make_vm: Any) -> None:
    """A task that is done when it is asked about costs one look: no pause, no update machinery."""
    moref = make_vm("calls")
    simulator.control(Clear=True)
    power.power_on(session, moref)
    assert simulator.calls() == {"RetrievePropertiesEx": 2, "PowerOnVM_Task": 1}
