"""Things that tests put into a catalogue."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from workers.catalogue import Catalogue
from workers.models import (
    Disk,
    Failure,
    Pair,
    PointDisk,
    RestorePoint,
    Run,
    RunKind,
    SyncPoint,
    Trigger,
    VmConfig,
    VmIdentity,
    VmSummary,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG = 3600.0


def request(catalogue: Catalogue, target: str = "chain:main:vm-1", **more: Any) -> tuple[Run, bool]:
    given: dict[str, Any] = {"vm": "web-01", "site": "prod", "trigger": Trigger.SCHEDULE}
    return catalogue.request_run(more.pop("kind", RunKind.BACKUP), target, **(given | more))


def claimed(catalogue: Catalogue, target: str = "chain:main:vm-1", owner: str = "a", **more: Any) -> Run:
    run = catalogue.claim(request(catalogue, target, **more)[0].id, owner, LONG)
    assert run is not None
    return run


def pair(catalogue: Catalogue, source: str = "uuid-1", **more: Any) -> Pair:
    given: dict[str, Any] = {
        "source_site": "prod",
        "source": source,
        "vm": "web-01",
        "store": "main",
        "recovery_target": "dr",
        "site": "dr-site",
        "replica_name": "web-01_replica",
    }
    return catalogue.ensure_pair(**(given | more))


def syncing(catalogue: Catalogue, owner: str = "a", **more: Any) -> tuple[Pair, Run]:
    """A pair and its claimed run."""
    made = pair(catalogue)
    return made, claimed(catalogue, f"pair:{made.id}", owner, kind=RunKind.SYNC, pair=made.id, **more)


def sync_point(pair: Pair, run: Run, **more: Any) -> SyncPoint:
    given: dict[str, Any] = {
        "run": run.id,
        "pair": pair.id,
        "vm": pair.vm,
        "replica": "uuid-replica",
        "point": "00000001-abc",
        "parent": None,
        "fence": run.fence,
        "data_time": NOON,
        "committed": NOON,
        "mode": "full",
        "change_ids": {"disk-1": "52 aa/7", "disk-2": None},
        "written": 4096,
        "reasons": ("the first sync of this pair reads everything",),
    }
    return SyncPoint(**(given | more))


def identity(number: int = 1, **more: Any) -> VmIdentity:
    given: dict[str, Any] = {
        "site": "prod",
        "vcenter": "vc-1",
        "instance_uuid": f"uuid-{number}",
        "bios_uuid": f"bios-{number}",
        "moref": f"vm-{number}",
        "name": f"web-{number:02}",
    }
    return VmIdentity(**(given | more))


def vm(number: int = 1, **more: Any) -> VmSummary:
    return VmSummary(identity=identity(number, **more), power="poweredOn", template=False, folder="/dc/vm")


def restore_point(seq: int, number: int = 1) -> RestorePoint:
    disk = Disk(id="d", key=2000, label="Hard disk 1", capacity=1 << 30, controller=1000, unit=0, file="[ds] a/a.vmdk")
    return RestorePoint(
        realm="r",
        id=f"{seq:08d}-abc",
        seq=seq,
        parent=f"{seq - 1:08d}-abc" if seq > 1 else None,
        vm=identity(number),
        run="run",
        fence=seq,
        created=NOON,
        data_time=NOON,
        consistency="quiesced",
        snapshot="snapshot-1",
        config=VmConfig(name="web", guest_id="g", hardware_version="vmx-19", cpus=1, memory_mib=512),
        disks=(
            PointDisk(
                disk=disk, segments=("",), segment_size=1 << 30, mode="full", reason="", read=5, changed=3, stored=2
            ),
        ),
    )


def failure(message: str = "it broke", **more: Any) -> Failure:
    given: dict[str, Any] = {
        "at": NOON,
        "run": None,
        "task": None,
        "vm": "web-01",
        "kind": "backup",
        "family": "error",
        "message": message,
    }
    return Failure(**(given | more))
