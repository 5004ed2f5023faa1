"""What administrators do to VMs and this program never does."""

from __future__ import annotations

from workers.vsphere import power
from workers.vsphere.session import Session


def power_off(s: Session, moref: str) -> None:
    """Hard, unless it is off already."""
    if power.state(s, moref) != "poweredOff":
        s.wait(s.vm(moref).PowerOffVM_Task())
