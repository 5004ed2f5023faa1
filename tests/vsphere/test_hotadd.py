"""Several processes of one worker attach disks to its VM at once.

Without a vCenter: the simulator lets two devices have one place, which a host refuses.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pyVmomi import vim

from workers.errors import DiskBusy, Refused
from workers.vsphere.hotadd import OwnVm

device = vim.vm.device


class Crowded(OwnVm):
    """A worker's VM with one controller; `others` are places that another process takes as soon as they are found."""

    devices: ClassVar[list[Any]]
    others: int

    def __init__(self, others: int, refuses: bool = False) -> None:
        super().__init__(None, "vm-1", "[ds1] vm/disk.vmdk")  # type: ignore[arg-type]
        type(self).devices = [device.ParaVirtualSCSIController(key=1000, busNumber=0)]
        self.others = others
        self._refuses = refuses

    def _devices(self) -> list[Any]:
        return list(self.devices)

    def _put(self, unit: int, file: str) -> None:
        backing = device.VirtualDisk.FlatVer2BackingInfo(fileName=file, uuid=f"uuid of {file}")
        self.devices.append(device.VirtualDisk(key=2000 + unit, controllerKey=1000, unitNumber=unit, backing=backing))

    def _free_place(self) -> tuple[int, int]:
        place = super()._free_place()
        if self.others:
            self.others -= 1
            self._put(place[1], f"[ds1] other/{self.others}.vmdk")
        return place

    def _reconfigure(self, doing: str, change: Any) -> None:
        unit = change.device.unitNumber
        if self._refuses or (1000, unit) in self._taken(self.devices):
            raise Refused("Invalid configuration for device '0'")
        self._put(unit, change.device.backing.fileName)


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_place_that_another_process_took_is_not_the_only_one(others: int) -> None:
    mine = Crowded(others)
    assert mine.attach(write=False) == f"uuid of {mine.file}"
    assert [d.unitNumber for d in mine.devices[1:]] == list(range(others + 1))


def test_no_place_is_left() -> None:
    with pytest.raises(DiskBusy, match="no free place"):
        Crowded(15).attach(write=True)


def test_what_is_refused_for_another_reason_is_told() -> None:
    with pytest.raises(Refused, match="Invalid configuration"):
        Crowded(0, refuses=True).attach(write=True)
