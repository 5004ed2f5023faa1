"""Requests to a bucket that need not wait for each other do not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.store.conftest import objects
from tests.store.disks import VM, MemoryDisk, backup, noise
from tests.store.objects import ObjectPath
from workers.errors import Refused
from workers.store import Store

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four VMs with two restore points each."""
    made = Store.create(objects(tmp_path))
    for number in range(4):
        disk = MemoryDisk(MIB)
        for seed in range(2):
            disk.put(0, noise(8192, seed))
            backup(made, disk, vm=f"vm-{number}", threads=1)
    made.close()
    return made


def test_many_are_asked_for_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer waits for another request: one after the other would never end."""
    real, two = ObjectPath.read_bytes, threading.Barrier(2)

    def read(self: ObjectPath) -> bytes:
        if "/points/" in f"/{self.key}":
            two.wait(60)
        return real(self)

    monkeypatch.setattr(ObjectPath, "read_bytes", read)
    assert store.vms() == [f"vm-{number}" for number in range(4)]
    assert [point.seq for point in store.points("vm-1")] == [1, 2]
    monkeypatch.undo()
    store.close()


def test_a_retirement_looks_for_a_newer_point_and_no_further(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk(MIB)
    for seed in range(6):
        disk.put(0, noise(8192, seed))
        backup(store, disk, threads=1)
    real, asked = ObjectPath.read_bytes, list[str]()

    def read(self: ObjectPath) -> bytes:
        asked.append(self.name)
        return real(self)

    first, *_, last = store.points(VM)
    monkeypatch.setattr(ObjectPath, "read_bytes", read)
    store.retire(VM, first.id)
    assert set(asked) == {"00000001.json", "00000006.json"}
    with pytest.raises(Refused, match="newest"):
        store.retire(VM, last.id)
    monkeypatch.undo()
    store.close()
