"""A VM that is being restored: marked as half done, unmarked, made a template or a VM again. All may be repeated."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from pyVmomi import vim

from workers import faults
from workers.errors import Refused
from workers.models import VmConfig, VmState
from workers.vsphere.building import DISKS, disk_places, options, place_of
from workers.vsphere.inventory import vm_state
from workers.vsphere.refusals import refused_to
from workers.vsphere.session import WAIT, Session

#: On a VM that is half restored: by which run, to which point. Whoever sees it must neither start nor back up the VM.
MARKER = "understudy.restore"

#: On a VM that was written over: the last run that did. Change tracking does not see what is written past the
#: hypervisor, so a backup that finds another one here than in its parent point compares.
RESTORED = "understudy.restored"

#: Begins the annotation of a half restored VM, for whoever looks at it in vSphere's client.
SIGN = "UNDERSTUDY IS RESTORING THIS VM: leave it off until this line is gone."


def without_sign(annotation: str) -> str:
    return annotation.removeprefix(SIGN).lstrip("\n") if annotation.startswith(SIGN) else annotation


def take_over(s: Session, state: VmState, run: str, known: Container[str], *, wait: float = WAIT) -> None:
    """Before an original VM is written: a sign for people, change tracking off (its history is void), and the places of
    its disks that the restore point knows by their ids. What a restore that died has added is in the list already.
    """
    annotation = f"{SIGN}\n{without_sign(state.config.annotation)}"
    shared = {d.id: place_of(d, state.config.controllers) for d in state.config.disks if d.id in known}
    notes = {RESTORED: run, DISKS: disk_places({**json.loads(state.notes.get(DISKS, "{}")), **shared})}
    if not state.change_tracking and state.config.annotation == annotation and notes.items() <= state.notes.items():
        return
    spec = vim.vm.ConfigSpec(
        changeVersion=state.change_version,
        annotation=annotation,
        extraConfig=options(notes),
        changeTrackingEnabled=False,
    )
    _reconfigure(s, state, f"mark {state.identity.name} as being restored", spec, wait)
    faults.at("restore.marked")


def release(s: Session, state: VmState, *, annotation: str, hardware: VmConfig | None, wait: float = WAIT) -> None:
    """All is written: the marks go, in one step; CPUs and memory become those of `hardware`."""
    gone = {key: "" for key in state.notes if key != RESTORED}
    spec = vim.vm.ConfigSpec(
        changeVersion=state.change_version,
        annotation=annotation,
        numCPUs=hardware.cpus if hardware is not None else None,
        numCoresPerSocket=hardware.cores_per_socket if hardware is not None else None,
        memoryMB=hardware.memory_mib if hardware is not None else None,
        extraConfig=options(gone),
    )
    _reconfigure(s, state, f"unmark {state.identity.name}, which is restored", spec, wait)


def _reconfigure(s: Session, state: VmState, doing: str, spec: Any, wait: float) -> None:
    s.run(f"{doing} ({s})", lambda: s.vm(state.identity.moref).ReconfigVM_Task(spec), wait)


def make_template(s: Session, moref: str) -> None:
    with refused_to(f"make a template of the VM {moref} ({s})"):
        if not vm_state(s, moref).config.template:
            s.vm(moref).MarkAsTemplate()


def make_vm(s: Session, moref: str) -> None:
    """On the host where it is registered, in the topmost pool there."""
    with refused_to(f"make a VM of the template {moref} ({s})"):
        if not vm_state(s, moref).config.template:
            return
        host = s.read(s.vm(moref), "runtime.host").get("runtime.host")
        parent = s.read(host, "parent").get("parent") if host is not None else None
        if parent is None:
            raise Refused(f"vCenter does not say on which host the template {moref} is registered ({s})")
        s.vm(moref).MarkAsVirtualMachine(pool=s.read(parent, "resourcePool")["resourcePool"], host=host)
