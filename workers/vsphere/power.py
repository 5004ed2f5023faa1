"""Switching a VM on. Safe to repeat: a VM that is on already is fine."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from workers.vsphere.refusals import as_error, refused_to
from workers.vsphere.session import WAIT, Session


def power_on(s: Session, moref: str, *, wait: float = WAIT) -> None:
    vm = s.vm(moref)
    if state(s, moref) == "poweredOn":
        return
    doing = f"switch the VM {moref} on ({s})"
    try:
        s.wait(vm.PowerOnVM_Task(), wait)
    except vim.fault.InvalidPowerState as err:
        # An earlier call whose answer was lost may have come first.
        if state(s, moref) != "poweredOn":
            raise as_error(err, doing) from err
    except vmodl.MethodFault as err:
        raise as_error(err, doing) from err


def state(s: Session, moref: str) -> str:
    with refused_to(f"read the power state of the VM {moref} ({s})"):
        return str(s.read(s.vm(moref), "runtime.powerState")["runtime.powerState"])
