"""One login at one vCenter: reading properties, and waiting for vCenter's tasks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from pyVmomi import vim, vmodl

from workers.errors import ConfigError, Conflict, LoginFailed, TaskStillRunning, UnderstudyError, VcenterUnreachable
from workers.settings import Site
from workers.vsphere.refusals import as_error, refused_to
from workers.vsphere.transport import Stub, Wire

#: How long a call waits for a vCenter task unless it is told: below a slice's time (tuning.vcenter_wait).
WAIT = 120.0

#: Objects per page of a property read. vCenter's own clients use 100; a page of 100 VMs is about 200 KB.
PAGE = 100

#: Seconds that one WaitForUpdatesEx may hang: well below ANSWER_TIMEOUT and the idle limits of proxies.
UPDATE_WAIT = 20

#: The custom attribute that mirrors fence and failover state: a revert of the VM does not touch it.
WITNESS = "understudy"

_collector = vmodl.query.PropertyCollector
_RUNNING = ("queued", "running")
_TASK_PATHS = ["info.state", "info.error", "info.result"]


class Found(NamedTuple):
    """An object and those of its asked properties that are set."""

    ref: Any
    values: dict[str, Any]


class _PageLost(VcenterUnreachable):
    """A page's token is good for one use in its own session: the read has to begin again."""


class Session:
    """A login, usable by several threads. It renews itself; it holds no password."""

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        #: for what pyVmomi does not speak
        self.wire = Wire(name, site)
        self._stub = Stub(self.wire, self.wire.version(), self._login)
        service: Any = vim.ServiceInstance("ServiceInstance", self._stub)
        self.content: Any = service.RetrieveContent()
        #: about.instanceUuid
        self.vcenter = str(self.content.about.instanceUuid or "")
        if not self.vcenter:
            raise ConfigError(
                f"{self} has no instance UUID: it is a single ESXi host; give the vCenter that manages it"
            )
        self._stub.login()
        self._local = threading.local()

    def __str__(self) -> str:
        return str(self.wire)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Log out. vCenter ends a session that could not be logged out by itself after its idle time."""
        with contextlib.suppress(UnderstudyError, vmodl.MethodFault):
            self.content.sessionManager.Logout()
        self._stub.DropConnections()

    def _login(self, stub: Stub) -> None:
        manager = vim.SessionManager(self.content.sessionManager._GetMoId(), stub)
        user = self.site.user
        try:
            manager.Login(user, self.site.password(), None)
        except vim.fault.InvalidLogin:
            # `from None`: the fault's traceback would keep the call's arguments in reach of whoever prints frames.
            raise LoginFailed(
                f"{self} does not accept the password of {user}; check sites.{self.name}.user and its password"
            ) from None
        except vmodl.MethodFault as err:
            raise as_error(err, f"log {user} in at {self}") from None

    # --- objects and properties ----------------------------------------------------------------------------------

    def object(self, kind: Any, moref: str) -> Any:
        """A managed object by its moref; nothing is asked of vCenter."""
        return kind(moref, self._stub)

    def vm(self, moref: str) -> Any:
        return self.object(vim.VirtualMachine, moref)

    def task(self, moref: str) -> Any:
        """A task that an earlier slice has left behind (`TaskStillRunning.task`)."""
        return self.object(vim.Task, moref)

    def read(self, ref: Any, *paths: str) -> dict[str, Any]:
        """These properties of one object, as of one moment; unset ones are absent.

        Raises vmodl's ManagedObjectNotFound when the object is gone, like pyVmomi's own property access.
        """
        found = self.retrieve([_collector.ObjectSpec(obj=ref)], {type(ref): paths})
        return found[0].values if found else {}

    def read_each(self, refs: Iterable[Any], *paths: str) -> list[Found]:
        """These properties of several objects of one kind, in one read."""
        refs = list(refs)
        return self.retrieve([_collector.ObjectSpec(obj=r) for r in refs], {type(refs[0]): paths}) if refs else []

    def read_all(self, paths: Mapping[Any, Sequence[str]], root: Any = None) -> list[Found]:
        """These properties of every object of these kinds below `root` (default: everywhere): all, or an error."""
        for last in (False, True):
            view = self.content.viewManager.CreateContainerView(root or self.content.rootFolder, list(paths), True)
            walk = _collector.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
            try:
                return self.retrieve([_collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])], paths)
            except vmodl.fault.ManagedObjectNotFound as err:
                # The view went with its session, which was renewed in between.
                if last or err.obj is None or err.obj._GetMoId() != view._GetMoId():
                    raise
            finally:
                with contextlib.suppress(UnderstudyError, vmodl.MethodFault):
                    view.Destroy()
        raise AssertionError("unreachable")

    def retrieve(self, objects: Sequence[Any], paths: Mapping[Any, Sequence[str]]) -> list[Found]:
        """A paged property read. A page that cannot be had, or a property that was refused, is an error."""
        spec = _collector.FilterSpec(
            objectSet=list(objects),
            propSet=[_collector.PropertySpec(type=kind, pathSet=list(p), all=False) for kind, p in paths.items()],
            reportMissingObjectsInResults=False,
        )
        try:
            return self._pages(spec)
        except _PageLost:
            return self._pages(spec)

    def _pages(self, spec: Any) -> list[Found]:
        collector = self.content.propertyCollector
        seen = self._stub.logins
        found: dict[str, Found] = {}
        page = collector.RetrievePropertiesEx([spec], _collector.RetrieveOptions(maxObjects=PAGE))
        while page is not None:
            for item in page.objects:
                for missing in item.missingSet or ():
                    if isinstance(missing.fault, vim.fault.NotAuthenticated):
                        self._stub.login(seen)
                        raise _PageLost(f"{self} ended the session while it was read") from missing.fault
                    raise missing.fault
                found[str(item.obj)] = Found(item.obj, {p.name: p.val for p in item.propSet if p.val is not None})
            try:
                page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
            except (VcenterUnreachable, vmodl.fault.InvalidArgument) as err:
                raise _PageLost(f"{self} did not give the next page of what was read: {err}") from err
        return list(found.values())

    # --- tasks ---------------------------------------------------------------------------------------------------

    def run(self, doing: str, start: Callable[[], Any], wait: float = WAIT) -> Any:
        """Start a task, wait for it, give its result. `doing` completes "vCenter refused to ..."."""
        with refused_to(f"{doing} ({self})"):
            return self.wait(start(), wait)

    def wait(self, task: Any, timeout: float = WAIT) -> Any:
        """The task's result; its fault is raised as it is. `TaskStillRunning` carries its moref.

        A task that vCenter has forgotten (it keeps them for some ten minutes) is a `Conflict`: look at what it was for.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                info = self.read(task, *_TASK_PATHS)
            except vmodl.fault.ManagedObjectNotFound as err:
                raise Conflict(f"{self} no longer knows the task {task._GetMoId()}: look whether it was done") from err
            if info["info.state"] not in _RUNNING:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise TaskStillRunning(
                    f"{self} still works on the task {task._GetMoId()}; it is looked at again later", task._GetMoId()
                )
            self._until_changed(task, left)
        if info["info.state"] == "error":
            raise info["info.error"]
        return info.get("info.result")

    def _until_changed(self, task: Any, seconds: float) -> None:
        """Return when the task may have ended, or the time is over. Only a hint: the caller reads the truth.

        vCenter tells at once, at the cost of one open call, where polling would be slow or a load.
        """
        if seconds < 1:
            # WaitForUpdatesEx counts in whole seconds.
            time.sleep(min(0.05, seconds))
            return
        deadline = time.monotonic() + seconds
        try:
            collector = self._own_collector()
            watch = collector.CreateFilter(
                _collector.FilterSpec(
                    objectSet=[_collector.ObjectSpec(obj=task)],
                    propSet=[_collector.PropertySpec(type=vim.Task, pathSet=["info.state"], all=False)],
                ),
                partialUpdates=False,
            )
            try:
                version = ""
                while (left := deadline - time.monotonic()) >= 1:
                    hang = _collector.WaitOptions(maxWaitSeconds=min(UPDATE_WAIT, int(left)))
                    update = collector.WaitForUpdatesEx(version, hang)
                    if update is None:
                        return
                    if any(c.val not in _RUNNING for c in _changes(update)):
                        return
                    version = update.version
            finally:
                with contextlib.suppress(UnderstudyError, vmodl.MethodFault):
                    watch.Destroy()
        except vmodl.MethodFault:
            # The collector went with its session, or updates do not work here: look again, not in a busy loop.
            self._local.collector = None
            time.sleep(min(0.2, seconds))

    def _own_collector(self) -> Any:
        """WaitForUpdatesEx may run once at a time per collector: each thread has its own."""
        held = getattr(self._local, "collector", None)
        if held is None:
            held = self._local.collector = self.content.propertyCollector.CreatePropertyCollector()
        return held

    def settle(self, ref: Any, timeout: float = WAIT) -> list[Any]:
        """Wait until vCenter works on nothing that was asked of this object before; what was begun is then visible.

        For whoever has lost an answer, or goes on in a dead worker's place. Gives the faults of what it waited for.
        """
        tasks = self.read(ref, "recentTask").get("recentTask") or []
        try:
            states = self.read_each(tasks, "info.state")
        except vmodl.fault.ManagedObjectNotFound:
            states = [Found(task, {}) for task in tasks]  # one was forgotten between the two reads: ask each
        faults = []
        for task, values in states:
            if values.get("info.state", "running") in _RUNNING:
                try:
                    self.wait(task, timeout)
                except vmodl.MethodFault as err:
                    faults.append(err)
                except Conflict:
                    continue  # forgotten, so it ended long ago
        return faults


def _changes(update: Any) -> list[Any]:
    return [c for f in update.filterSet for o in f.objectSet for c in o.changeSet if c.val is not None]


_lock = threading.Lock()
#: One lock per site: a vCenter that does not answer must not hold up the others.
_connecting: dict[str, threading.Lock] = {}
_sessions: dict[str, Session] = {}


def connect(name: str, site: Site) -> Session:
    """The session of this process for a site, made on first use; made anew when the configuration has changed."""
    with _lock:
        mine = _connecting.setdefault(name, threading.Lock())
    with mine:
        held = _sessions.get(name)
        if held is None or held.site != site:
            if held is not None:
                held.close()
            held = _sessions[name] = Session(name, site)
        return held


_inherited: list[dict[str, Session]] = []


def _forget() -> None:
    """In a forked child: the parent's sockets are not ours to use, nor its login to end."""
    global _lock, _connecting, _sessions
    _inherited.append(_sessions)
    _lock, _connecting, _sessions = threading.Lock(), {}, {}


os.register_at_fork(after_in_child=_forget)
