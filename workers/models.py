"""What crosses a border: frozen models of VMs, points, cursors and runs. Sizes are bytes, times are aware UTC."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Frozen, and an unknown key is an error: a typing mistake must not be kept silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class VmIdentity(Model):
    """Which VM. `instance_uuid` is the identity; moref and name are how to reach and how to call it today."""

    site: str
    #: about.instanceUuid of the vCenter
    vcenter: str
    instance_uuid: str
    bios_uuid: str
    moref: str
    name: str


class Controller(Model):
    kind: Literal["pvscsi", "lsilogic", "lsilogic-sas", "buslogic", "ide", "sata", "nvme"]
    key: int
    bus: int


#: how a new disk takes its space: as on the source; when written; at once; at once and zeroed
Provisioning = Literal["original", "thin", "thick", "eager"]


class Disk(Model):
    """A virtual disk as configured. `id` is backing.uuid where vCenter gives one, else `key-<device key>`."""

    id: str
    key: int
    label: str
    capacity: int
    controller: int
    unit: int
    #: vSphere's diskMode: persistent, independent_persistent, ...
    mode: str = "persistent"
    thin: bool = True
    eager: bool = False  # thick, and zeroed when it was made
    #: "[datastore] folder/file.vmdk" of the disk described (live, or frozen in a snapshot)
    file: str
    #: backing.contentId: same id and not being written = same data (vSphere API, FlatVer2 backing)
    content_id: str = ""
    #: "[datastore] ..." of the parent when this is a delta of a snapshot
    parent: str | None = None
    #: backing.changeId, on a disk of a snapshot whose VM has change tracking in effect
    change_id: str | None = None
    #: a sentence when this disk can not be protected (RDM, independent, shared bus), else None
    unprotected: str | None = None


class Nic(Model):
    kind: Literal["vmxnet3", "e1000", "e1000e", "vmxnet2", "pcnet32", "sriov"]
    key: int
    network: str
    mac: str
    connected: bool = True


class VmConfig(Model):
    """What is needed to build the VM again: an allow-list. What was left out is a sentence in `dropped`."""

    name: str
    guest_id: str
    hardware_version: str
    cpus: int
    cores_per_socket: int = 1
    memory_mib: int
    firmware: Literal["bios", "efi"] = "bios"
    secure_boot: bool = False
    annotation: str = ""
    template: bool = False
    controllers: tuple[Controller, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    extra_config: dict[str, str] = Field(default_factory=dict)
    dropped: tuple[str, ...] = ()


class SnapshotNode(Model):
    moref: str
    name: str
    description: str = ""
    parent: str | None = None


class VmState(Model):
    """One consistent reading of a VM, enough for every decision before we write to it."""

    identity: VmIdentity
    config: VmConfig
    power: Literal["poweredOff", "poweredOn", "suspended"]
    #: config.changeVersion, for the compare-and-set of every cursor write
    change_version: str
    change_tracking: bool
    consolidation_needed: bool
    #: the whole tree, parents before children
    snapshots: tuple[SnapshotNode, ...] = ()
    #: every extraConfig key that starts with "understudy."
    notes: dict[str, str] = Field(default_factory=dict)
    #: our custom attribute, "" when unset
    witness: str = ""
    host: str = ""
    host_build: str = ""
    vmx: str = ""


class VmSummary(Model):
    """A line of the inventory. None: not asked, or vCenter did not say; that is not the same as none."""

    identity: VmIdentity
    power: str
    template: bool
    folder: str
    datastores: tuple[str, ...] | None = None
    cluster: str | None = None
    #: "category:name" each
    tags: tuple[str, ...] | None = None


# --- points and cursors -----------------------------------------------------------------------------------------


Consistency = Literal["quiesced", "crash-consistent", "powered-off"]
BackupMode = Literal["full", "delta", "compare"]


class PointDisk(Model):
    """One disk of a restore point: `segments` name its map in the store."""

    disk: Disk
    #: map segment names, one per `segment_size` bytes of disk; "" = nothing but zeroes
    segments: tuple[str, ...]
    segment_size: int
    mode: BackupMode
    reason: str
    #: bytes read from the source, bytes that differ from the parent point, bytes added to the store
    read: int = 0
    changed: int = 0
    stored: int = 0


class RestorePoint(Model):
    """One backup of one VM in a store, complete in itself. Ordered by `seq` and `parent`, never by a clock."""

    format: int = 1
    realm: str
    #: "<seq>-<nonce>": the nonce keeps a lost and a new point of the same number apart
    id: str
    seq: int
    parent: str | None
    vm: VmIdentity
    run: str
    fence: int
    created: datetime
    #: when the source's disks held this data
    data_time: datetime
    consistency: Consistency
    snapshot: str
    #: plan.tree_fingerprint of the source at that time
    tree: str = ""
    #: the restore run that last wrote to the source's disks past its change tracking
    restored: str = ""
    host_build: str = ""
    config: VmConfig
    nvram: str | None = None  # base64, where it could be read
    disks: tuple[PointDisk, ...]
    notes: tuple[str, ...] = ()
    copied_from: str = ""  # the id of the store that it was copied from; "" = it was made in this one


class Cursor(Model):
    """What a replica's disks hold, as stored on the replica (extraConfig `understudy.cursor`, below 4 KiB).

    `committed`: the disks hold `base`. `applying`: some blocks may hold any of `targets`, all that was begun since.
    """

    v: Literal[1] = 1
    realm: str
    pair: str
    fence: int
    state: Literal["committed", "applying"]
    base: str | None
    targets: tuple[str, ...] = ()
    run: str
    #: fresh for each write, so that a read back proves which write won
    nonce: str
    store: str
    #: instance UUID of the source VM
    source: str
    #: the binding: a clone's or restored VM's cursor has other values here
    vcenter: str
    vm: str
    disks: str
    #: digest of the disks' contentIds that our own writing left or began with; "" while we change them
    content: str = ""
    #: while `content` is "": what the disks' content ids were and will be (plan.taking), so that a touch still shows
    taking: str = ""
    #: disks of the source that were added to the replica since `base`: their blocks began as zeroes
    fresh: tuple[str, ...] = ()
    #: why nothing may be concluded from `base` and `targets`: only a compare of every block may end this
    compare: str = ""
    #: while applying: VMware's library writes the disks, and while it does they have content ids of its own choice
    library: bool = False
    #: while applying: "[datastore] folder/file" that says what is kept of `base` (undo_kept.py); "" = nothing
    undo: str = ""
    data_time: datetime | None = None


class SyncPoint(Model):
    """What a replica holds, committed. What `commit_sync` returns, and what the result backend keeps."""

    run: str
    pair: str
    vm: str
    replica: str
    point: str
    parent: str | None
    fence: int
    data_time: datetime
    committed: datetime
    mode: str
    #: disk id on the source -> change id of the point
    change_ids: dict[str, str | None]
    written: int
    reasons: tuple[str, ...] = ()


class DiskPlan(Model):
    """What one disk needs, and why, in words. The extents themselves are not part of it."""

    disk: str
    label: str
    mode: Literal["full", "delta", "compare", "nothing"]
    reason: str
    bytes: int
    ranges: int = 0


class HardwareChange(Model):
    kind: Literal["add disk", "remove disk", "grow disk"]
    disk: str
    label: str
    capacity: int


class SyncPlan(Model):
    vm: str
    point: str | None
    base: str | None
    targets: tuple[str, ...] = ()
    nothing_new: bool
    reason: str
    build_replica: bool = False
    disks: tuple[DiskPlan, ...] = ()
    hardware: tuple[HardwareChange, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(disk.bytes for disk in self.disks)


class RunKind(StrEnum):
    BACKUP = "backup"
    SYNC = "sync"
    RESTORE = "restore"
    VERIFY = "verify"
    COPY = "copy"
    ADOPT = "adopt"
    FORGET = "forget"


class RunState(StrEnum):
    # the first two are live: at most one live run per target
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    NOTHING_NEW = "nothing new"
    NEEDS_APPROVAL = "approval needed"
    STOPPED = "stopped"
    FAILED = "failed"


class Trigger(StrEnum):
    SCHEDULE = "schedule"
    AFTER_BACKUP = "after backup"
    PROBE = "probe"
    AD_HOC = "ad hoc"


class Run(Model):
    id: str
    kind: RunKind
    #: what is written and fenced: "chain:<store>:<vm uuid>" or "pair:<pair id>"
    target: str
    vm: str
    #: where its disk work is done: queue data.<site>
    site: str
    trigger: Trigger
    slot: str | None
    state: RunState
    fence: int
    attempts: int
    errors: int = 0  # the tries in a row that ended with one; a lost worker is an attempt, and no error
    #: what a resumed run must know, e.g. the snapshot's moref
    memory: dict[str, str] = Field(default_factory=dict)
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    owner: str | None = None
    lease_until: datetime | None = None
    not_before: datetime | None = None
    point: str | None = None
    read: int = 0
    written: int = 0
    stored: int = 0
    reasons: tuple[str, ...] = ()
    error: str | None = None
    family: str | None = None  # of its failure, see errors.py

    @property
    def live(self) -> bool:
        return self.state in (RunState.QUEUED, RunState.RUNNING)


class Slice(Model):
    """A bounded part of a run's disk work: a range of one disk. All below `done` is on stable storage."""

    run: str
    disk: str
    start: int
    end: int
    done: int
    #: what the slice made, e.g. the name of a map segment
    made: str = ""
    read: int = 0
    written: int = 0
    stored: int = 0

    @property
    def finished(self) -> bool:
        return self.done >= self.end


class Pair(Model):
    """One source VM and one replica VM. `replica` is its instance UUID once it has been built."""

    id: str
    source_site: str
    #: instance UUID of the source
    source: str
    vm: str
    store: str
    recovery_target: str
    site: str
    replica: str | None = None
    replica_name: str
    generation: int = 1
    failover: str = "none"
    #: why it is paused; kept with the other holds
    paused: str | None = None
    created: datetime | None = None


class Failure(Model):
    at: datetime
    run: str | None
    task: str | None
    vm: str | None
    kind: str
    family: str
    message: str


class RunReport(Model):
    """What a task returns and Flower shows."""

    run: str
    vm: str
    outcome: str
    reason: str
    point: str | None = None
    read: int = 0
    written: int = 0
    stored: int = 0
    sync_point: SyncPoint | None = None
