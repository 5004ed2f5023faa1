"""Switching a VM on and off. Both are safe to repeat: what is already so is fine."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from workers.vsphere.refusals import as_error, refused_to
from workers.vsphere.session import WAIT, Session


def power_on(s: Session, moref: str, *, wait: float = WAIT) -> None:
    _switch(s, moref, "poweredOn", wait)


def power_off(s: Session, moref: str, *, wait: float = WAIT) -> None:
    """Hard: the guest is not asked. Its data is then as after a power cut."""
    _switch(s, moref, "poweredOff", wait)


def state(s: Session, moref: str) -> str:
    with refused_to(f"read the power state of the VM {moref} ({s})"):
        return str(s.read(s.vm(moref), "runtime.powerState")["runtime.powerState"])


def _switch(s: Session, moref: str, wanted: str, wait: float) -> None:
    vm = s.vm(moref)
    if state(s, moref) == wanted:
        return
    doing = f"switch the VM {moref} {'on' if wanted == 'poweredOn' else 'off'} ({s})"
    try:
        s.wait(vm.PowerOnVM_Task() if wanted == "poweredOn" else vm.PowerOffVM_Task(), wait)
    except vim.fault.InvalidPowerState as err:
        # An earlier call whose answer was lost may have come first.
        if state(s, moref) != wanted:
            raise as_error(err, doing) from err
    except vmodl.MethodFault as err:
        raise as_error(err, doing) from err
