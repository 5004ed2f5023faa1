"""VM snapshots: take, find, remove. Each is safe to repeat: the name says which snapshot is meant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from pyVmomi import vim, vmodl

from workers.errors import Refused, Transient
from workers.models import SnapshotNode
from workers.vsphere.hardware import spelled
from workers.vsphere.inventory import snapshot_nodes
from workers.vsphere.refusals import as_error, refused_to, words
from workers.vsphere.session import WAIT, Session

Consistency = Literal["quiesced", "crash-consistent", "powered-off"]

#: What vSphere answers when the guest could not be brought to rest. The second try, without quiescing, shows whether it
#: was that: any other trouble comes again.
_QUIESCE_FAULTS = (
    vim.fault.SnapshotFault,
    vim.fault.ToolsUnavailable,
    vim.fault.GenericVmConfigFault,
    vim.fault.GuestOperationsFault,
    vim.fault.Timedout,
)

#: Ends the description, so that a snapshot found again still says that no guest was running.
_WAS_OFF = " (powered off)"


class Taken(NamedTuple):
    moref: str
    consistency: Consistency
    notes: tuple[str, ...]


def create(s: Session, vm_moref: str, name: str, description: str = "", *, quiesce: bool, wait: float = WAIT) -> Taken:
    """Take a snapshot without memory; if one of this name is there, that one is it.

    A guest that cannot be quiesced gives a crash-consistent snapshot and a note that says why. `Refused` for templates.
    `TaskStillRunning` when vCenter needs longer: call again.
    """
    vm = s.vm(vm_moref)
    notes: tuple[str, ...] = ()
    with refused_to(f"read the VM {vm_moref} before its snapshot ({s})"):
        seen = s.read(vm, "name", "runtime.powerState", "config.template", "snapshot", "recentTask")
        held = _named(seen.get("snapshot"), name)
        if not held and seen.get("recentTask"):
            # Somebody may have asked for this very snapshot and died: what was begun must end before we look.
            notes = tuple(_not_quiesced(f) for f in s.settle(vm, wait) if isinstance(f, _QUIESCE_FAULTS))
            held = _named(s.read(vm, "snapshot").get("snapshot"), name)
    if seen.get("config.template"):
        raise Refused(f"{seen['name']} is a template: vSphere takes no snapshot of templates")
    if held:
        return _taken(held[0], was_off=held[0].description.endswith(_WAS_OFF), quiesce=quiesce)
    off = seen["runtime.powerState"] == "poweredOff"
    doing = f"take the snapshot {name!r} of {seen['name']} ({s})"
    if quiesce and seen["runtime.powerState"] == "poweredOn" and not notes:
        try:
            return _take(s, vm, name, description, off=False, quiesce=True, wait=wait)
        except _QUIESCE_FAULTS as err:
            notes = (_not_quiesced(err),)
        except vmodl.MethodFault as err:
            raise as_error(err, doing) from err
    with refused_to(doing):
        taken = _take(s, vm, name, description, off=off, quiesce=False, wait=wait)
    return taken._replace(notes=notes)


def _not_quiesced(fault: Any) -> str:
    return f"the guest could not be quiesced, the snapshot is crash-consistent: {words(fault)}"


def _take(s: Session, vm: Any, name: str, description: str, *, off: bool, quiesce: bool, wait: float) -> Taken:
    text = description + _WAS_OFF if off else description
    ref = s.wait(vm.CreateSnapshot_Task(name=spelled(name), description=text, memory=False, quiesce=quiesce), wait)
    after = s.read(vm, "snapshot", "runtime.powerState")
    node = next((n for n in _named(after.get("snapshot"), name) if n.snapshot == ref), None)
    if node is None:
        raise Transient(f"{s} took the snapshot {name!r} but does not list it; it is looked for again")
    return _taken(node, was_off=off and after["runtime.powerState"] == "poweredOff", quiesce=quiesce)


def _taken(node: Any, *, was_off: bool, quiesce: bool) -> Taken:
    moref = node.snapshot._GetMoId()
    if was_off:
        return Taken(moref, "powered-off", ())
    if node.quiesced:
        return Taken(moref, "quiesced", ())
    why = "the snapshot is crash-consistent: it was taken without quiescing the guest (are VMware Tools running in it?)"
    return Taken(moref, "crash-consistent", (why,) if quiesce else ())


def _named(tree: Any, name: str) -> list[Any]:
    """Tree nodes of this name, parents before children."""
    waiting = list(tree.rootSnapshotList) if tree is not None else []
    found = []
    while waiting:
        node = waiting.pop(0)
        if unquote(node.name) == name:
            found.append(node)
        waiting += node.childSnapshotList or ()
    return found


def find(s: Session, vm_moref: str, name: str) -> str | None:
    """The moref of the snapshot of this name, None when there is none (then create may go ahead)."""
    with refused_to(f"look for the snapshot {name!r} of the VM {vm_moref} ({s})"):
        return next((node.moref for node in tree(s, vm_moref) if node.name == name), None)


def tree(s: Session, vm_moref: str) -> tuple[SnapshotNode, ...]:
    """All snapshots, parents before children."""
    return tuple(snapshot_nodes(s.read(s.vm(vm_moref), "snapshot").get("snapshot")))


def fingerprint(nodes: Iterable[SnapshotNode]) -> str:
    """Changes whenever a snapshot is taken, removed, renamed, or the tree grows another branch."""
    lines = sorted([node.moref, node.name, node.parent or ""] for node in nodes)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


def remove(s: Session, vm_moref: str, snapshot_moref: str, *, wait: float = WAIT) -> None:
    """Remove one snapshot, keep its children; one that is gone is fine. Ends when nothing is left to consolidate.

    Which files the disks live in afterwards, and whether they still have parents, is for `vm_state` to say.
    """
    vm = s.vm(vm_moref)
    with refused_to(f"remove the snapshot {snapshot_moref} of the VM {vm_moref} ({s})"):
        # A removal whose answer was lost may be under way, with the snapshot already off the list.
        s.settle(vm, wait)
        if any(node.moref == snapshot_moref for node in tree(s, vm_moref)):
            snapshot = s.object(vim.vm.Snapshot, snapshot_moref)
            try:
                s.wait(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True), wait)
            except vmodl.fault.ManagedObjectNotFound:
                tree(s, vm_moref)  # somebody else removed it; if it is the VM that is gone, this is an error
    _consolidate(s, vm, wait)


def _consolidate(s: Session, vm: Any, wait: float) -> None:
    """vSphere may drop a snapshot and leave its delta file behind: then no disk may be written."""
    doing = f"consolidate the disks of the VM {vm._GetMoId()} ({s})"
    with refused_to(doing):
        if not s.read(vm, "runtime.consolidationNeeded").get("runtime.consolidationNeeded"):
            return
        s.wait(vm.ConsolidateVMDisks_Task(), wait)
        if s.read(vm, "runtime.consolidationNeeded").get("runtime.consolidationNeeded"):
            raise Refused(
                f"the disks of the VM {vm._GetMoId()} still need consolidation ({s}); something holds a file of it, "
                "e.g. a backup program: end that, then consolidate them in vCenter"
            )
