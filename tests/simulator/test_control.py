"""Tasks, sessions, pages; and the control endpoint that makes calls fail, wait or vanish."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from conftest import MIB, Sim, disks
from pyVmomi import vim, vmodl


def test_a_task_tells_what_it_does_to_whom(sim: Sim) -> None:
    vm = sim.create("x-task")
    task = vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="x"))
    got = sim.read(task, "info.state", "info.entity", "info.entityName", "info.descriptionId", "info.progress")
    assert got == {
        "info.state": "success", "info.entity": vm, "info.entityName": "x-task",
        "info.descriptionId": "VirtualMachine.reconfigure", "info.progress": 100,
    }  # fmt: skip
    assert task.info.state == "success" and task.info.entity == vm  # whole, as some clients read it
    snap = sim.snapshot(vm, "s")
    task = snap.RemoveSnapshot_Task(False)
    assert (task.info.entity, task.info.state) == (vm, "success")
    recent = sim.content.taskManager.recentTask
    assert task in recent and all(t.info.key for t in recent)


def test_a_slow_task_takes_effect_at_its_end(sim: Sim) -> None:
    vm = sim.create("x-slow")
    sim.control(rules=[{"method": "ReconfigVM_Task", "object": "x-slow", "count": 1, "taskMs": 400}])
    task = vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="late"))
    got = sim.read(task, "info.state", "info.progress", "info.entity")
    assert got["info.state"] == "running" and got["info.progress"] < 100 and vm.config.annotation is None
    sim.wait(task)
    assert vm.config.annotation == "late"


def test_a_slow_task_checks_the_version_when_it_runs(sim: Sim) -> None:
    vm = sim.create("x-late")
    sim.control(rules=[{"method": "ReconfigVM_Task", "object": "x-late", "count": 1, "taskMs": 300}])
    version = vm.config.changeVersion
    slow = vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="slow", changeVersion=version))
    sim.reconfigure(vm, annotation="fast", changeVersion=version)
    with pytest.raises(vim.fault.ConcurrentAccess):
        sim.wait(slow)
    assert vm.config.annotation == "fast"


def test_rules_choose_method_object_and_turn(sim: Sim) -> None:
    a, b = sim.create("x-a"), sim.create("x-b")
    sim.control(rules=[
        {"method": "PowerOnVM_Task", "object": "x-a", "skip": 1, "count": 2, "fault": "InsufficientResourcesFault"},
    ])  # fmt: skip
    sim.wait(b.PowerOnVM_Task())
    sim.wait(a.PowerOnVM_Task())
    sim.wait(a.PowerOffVM_Task())
    for _ in range(2):
        with pytest.raises(vim.fault.InsufficientResourcesFault):
            a.PowerOnVM_Task()
    sim.wait(a.PowerOnVM_Task())
    assert sim.control()["calls"]["PowerOnVM_Task"] == 5
    for vm in (a, b):
        sim.wait(vm.PowerOffVM_Task())


def test_a_rule_finds_a_snapshot_by_its_vm_and_a_new_vm_by_its_name(sim: Sim) -> None:
    vm = sim.create("x-owner")
    snap = sim.snapshot(vm, "s")
    sim.control(rules=[
        {"method": "RemoveSnapshot_Task", "object": "x-owner", "count": 1, "fault": "TaskInProgress",
         "asTask": True, "detail": {"task": {"type": "Task", "value": "task-1"}}},
        {"method": "CreateVM_Task", "object": "x-never", "count": -1, "fault": "NoPermission", "message": "not you",
         "detail": {"privilegeId": "VirtualMachine.Inventory.Create"}},
    ])  # fmt: skip
    with pytest.raises(vim.fault.TaskInProgress):
        sim.wait(snap.RemoveSnapshot_Task(False))
    sim.wait(snap.RemoveSnapshot_Task(False))
    for _ in range(2):
        with pytest.raises(vim.fault.NoPermission, match="not you") as err:
            sim.create("x-never")
        assert err.value.privilegeId == "VirtualMachine.Inventory.Create"


@pytest.mark.parametrize(("rule", "done"), [("drop", False), ("dropAfter", True)])
def test_a_lost_answer_says_nothing_about_the_effect(sim: Sim, rule: str, done: bool) -> None:
    vm = sim.create(f"x-{rule}")
    sim.control(rules=[{"method": "ReconfigVM_Task", "count": 1, rule: True}])
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="done"))
    assert (vm.config.annotation == "done") is done


def test_delays_and_http_errors(sim: Sim) -> None:
    sim.control(rules=[{"method": "CurrentTime", "count": 1, "delayMs": 300}])
    began = time.monotonic()
    sim.si.CurrentTime()
    assert time.monotonic() - began >= 0.3
    sim.control(rules=[{"method": "*", "count": 1, "http": 503}])
    with pytest.raises(http.client.HTTPException):
        sim.si.CurrentTime()
    sim.si.CurrentTime()


@pytest.mark.parametrize(
    "order",
    [
        {"rules": [{"method": "NoSuchCall", "count": 1, "drop": True}]},
        {"rules": [{"method": "rest.tags", "count": 1, "drop": True}]},
        {"rules": [{"method": "tag", "count": 1, "drop": True}]},
        {"rules": [{"method": "CurrentTime", "count": 1, "fault": "NoSuchFault"}]},
        {"rules": [{"method": "CurrentTime", "fault": "NotFound"}]},
        {"rules": [{"method": "CurrentTime", "count": 1, "fault": "NoPermission", "detail": {"typo": 1}}]},
        {"misspelt": 1},
        {"guest": {"vm": "nobody", "ip": "1.2.3.4"}},
        {"freeSpace": {"datastore": "nowhere", "bytes": 1}},
        {"cbt": {"vm": "nobody", "reset": True}},
    ],
    ids=str,
)
def test_an_order_that_cannot_work_is_refused(sim: Sim, order: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        sim.control(**order)
    assert sim.control()["rules"] is None


def test_sessions_expire_on_demand(sim: Sim) -> None:
    vm = sim.create("x-session")
    other = sim.login()
    sim.control(expireSessions=True)
    for call in (
        other.CurrentTime,
        vim.VirtualMachine(vm._moId, other._stub).PowerOnVM_Task,
        sim.si.CurrentTime,
        vm.PowerOnVM_Task,
    ):
        with pytest.raises(vim.fault.NotAuthenticated):
            call()
    sim.si = sim.login()
    assert sim.all(vim.VirtualMachine)["x-session"].runtime.powerState == "poweredOff"


def test_sessions_expire_by_idleness(start: Callable[..., Sim]) -> None:
    sim = start("-idle", "300ms")
    for _ in range(5):  # calls keep it alive
        sim.si.CurrentTime()
        time.sleep(0.1)
    time.sleep(0.8)
    with pytest.raises(vim.fault.NotAuthenticated):
        sim.si.CurrentTime()
    sim.si = sim.login()


def test_properties_come_in_pages(sim: Sim) -> None:
    for n in range(5):
        sim.create(f"x-page{n}", sizes=(MIB,))
    view = sim.content.viewManager.CreateContainerView(sim.content.rootFolder, [vim.VirtualMachine], True)
    pc = sim.content.propertyCollector
    query = vmodl.query.PropertyCollector
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[
            query.TraversalSpec(name="v", type=vim.view.ContainerView, path="view", skip=False)])],
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "config.hardware.device"])],
    )  # fmt: skip
    result = pc.RetrievePropertiesEx([spec], query.RetrieveOptions(maxObjects=2))
    names, pages = [], 0
    while True:
        assert len(result.objects) <= 2
        pages += 1
        names += [p.val for o in result.objects for p in o.propSet if p.name == "name"]
        if not result.token:
            break
        token = result.token
        result = pc.ContinueRetrievePropertiesEx(token)
    assert pages > 2 and {f"x-page{n}" for n in range(5)} <= set(names) and len(names) == len(set(names))
    with pytest.raises(vmodl.fault.InvalidArgument):
        pc.ContinueRetrievePropertiesEx(token)
    view.Destroy()


def test_waiting_for_updates(sim: Sim) -> None:
    vm = sim.create("x-wait")
    pc = sim.content.propertyCollector
    query = vmodl.query.PropertyCollector
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=vm)],
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["runtime.powerState"])],
    )
    held = pc.CreateFilter(spec, True)
    first = pc.WaitForUpdatesEx("", query.WaitOptions(maxWaitSeconds=2))
    sim.wait(vm.PowerOnVM_Task())
    second = pc.WaitForUpdatesEx(first.version, query.WaitOptions(maxWaitSeconds=5))
    changes = [c.val for f in second.filterSet for o in f.objectSet for c in o.changeSet]
    assert "poweredOn" in changes
    held.Destroy()
    sim.wait(vm.PowerOffVM_Task())


def test_lookups_and_events(sim: Sim) -> None:
    vm = sim.create("x-find")
    index = sim.content.searchIndex
    assert index.FindByUuid(None, vm.config.instanceUuid, True, True) == vm
    assert index.FindAllByUuid(None, vm.config.uuid, True, False) == [vm]
    assert index.FindByInventoryPath("/DC0/vm/x-find") == vm
    assert index.FindByDatastorePath(sim.dc, "[fast] x-find/x-find.vmx") == vm
    sim.wait(vm.PowerOnVM_Task())
    events = sim.content.eventManager.QueryEvents(vim.event.EventFilterSpec(
        entity=vim.event.EventFilterSpec.ByEntity(entity=vm, recursion="self")))  # fmt: skip
    assert "vim.event.VmPoweredOnEvent" in {type(e).__name__ for e in events}
    sim.wait(vm.PowerOffVM_Task())


def test_the_datastore_browser_and_the_file_manager(sim: Sim) -> None:
    sim.create("x-files")
    browser = sim.all(vim.Datastore)["fast"].browser
    found = sim.wait(browser.SearchDatastore_Task("[fast] x-files", None))
    assert {"x-files.vmx", "x-files.vmdk", "x-files.nvram"} <= {f.path for f in found.file}
    files = sim.content.fileManager
    files.MakeDirectory("[fast] x-dir", sim.dc)
    task = files.CopyDatastoreFile_Task("[fast] x-files/x-files.nvram", sim.dc, "[fast] x-dir/copy.nvram", sim.dc)
    sim.wait(task)
    assert task.info.state == "success"  # whole: its entity is no manager
    assert (sim.folder / "fast/x-dir/copy.nvram").read_bytes() == (
        sim.folder / "fast/x-files/x-files.nvram"
    ).read_bytes()
    with pytest.raises(vim.fault.FileNotFound):
        sim.wait(files.DeleteDatastoreFile_Task("[fast] x-dir/none", sim.dc))


def test_privileges_can_be_missing(sim: Sim) -> None:
    manager = sim.content.authorizationManager
    session = sim.content.sessionManager.currentSession.key
    wanted = ["VirtualMachine.Config.ChangeTracking", "System.View"]

    def granted() -> list[bool]:
        answer = manager.HasPrivilegeOnEntities([sim.dc.vmFolder], session, wanted)
        return [p.isGranted for p in answer[0].privAvailability]

    assert granted() == [True, True]
    sim.control(deny=["VirtualMachine.Config.ChangeTracking"])
    assert granted() == [False, True]


def test_a_failed_call_leaves_its_vm_alone(sim: Sim) -> None:
    vm = sim.create("x-alone")
    sim.control(
        rules=[{"method": "CreateSnapshot_Task", "count": 1, "fault": "ApplicationQuiesceFault", "asTask": True}]
    )
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        sim.snapshot(vm, "s")
    assert vm.snapshot is None and disks(vm)[0].backing.parent is None


def test_unauthenticated_reading_is_refused(sim: Sim) -> None:
    stranger = sim.login()
    vm = vim.VirtualMachine(sim.create("x-private")._moId, stranger._stub)
    stranger.content.sessionManager.Logout()
    for call in (lambda: vm.config, vm.PowerOnVM_Task, lambda: vm.QueryChangedDiskAreas(None, 2000, 0, "*")):
        with pytest.raises((vim.fault.NotAuthenticated, vmodl.fault.SecurityError)):
            call()
    request = urllib.request.Request(f"https://{sim.address}/_ctl")
    with urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=sim.trust)
    ).open(request) as answer:
        assert answer.status == 200  # no login: the control endpoint is the test's own door, on loopback only
