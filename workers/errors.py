"""What can go wrong, grouped by what the caller does next.

UnderstudyError                 a sentence for people: what, where, what to do next
├── Transient                   try again later, nothing to mend (the run stays live)
│   ├── VcenterUnreachable      no answer, a dropped connection, a session that could not be renewed
│   ├── TaskStillRunning        vCenter works on it; come back with its moref
│   ├── DiskBusy                somebody holds a lock on a disk's range
│   │   └── DiskLocked          a host holds it: for some time also after whoever had it is gone
│   ├── CarrierFailed           VMware's library, or the host that it talks to, failed or fell silent
│   ├── TargetBusy              the replica is being compared; that ends first
│   ├── BrokerUnreachable       Redis does not answer
│   ├── StoreUnreachable        the bucket of a store does not answer
│   └── CatalogueUnreachable    the catalogue's database does not answer
├── NeedsCompare                what changed is not known: read and compare, never skip
│   └── ChangeTrackingUnusable  CBT is off, was reset, or contradicts itself
├── NeedsPerson                 stop and ask: going on could destroy something
│   ├── Touched                 the replica was powered on or written by somebody else
│   ├── Foreign                 a VM, cursor or store that is not ours (or of another realm)
│   ├── Refused                 a rule of the protocol forbids it in this state
│   ├── ApprovalNeeded          much would be read or compared again: the policy wants to be asked
│   ├── StoreDamaged            what is read back is not what was written
│   ├── ValidationFailed        a replica is not what its sync point says, and nobody wrote to it
│   └── StoreTooNew             written by a newer format than this program reads
├── FencedOut                   a newer run owns the target: stop at once, write nothing
├── SnapshotLost                the run's snapshot is gone: the run starts again from a new one
├── Stopped                     a person ended the run: at a checkpoint, nothing is wrong
├── WorkerLost                  its workers died once too often: somebody must look why
├── SliceFailed                 a part of a disk failed too often, or another worker of the run met what ends it
├── Conflict                    a compare-and-set lost: read again, decide again
└── BadInput                    what was asked or configured cannot be
    ├── ConfigError             a key, its value, what is allowed
    ├── NotFound                no such VM, point, run, datastore, ...
    ├── LoginFailed             wrong user, password, certificate
    ├── WrongKey                a store's key is missing, is another one, or is not wanted
    └── NoSpace                 store, datastore or catalogue is full
"""

from __future__ import annotations


class UnderstudyError(Exception):
    """A sentence for people. `str(error)` is the whole of it and fit to print."""

    #: the word that lands in the catalogue's failure rows and in dashboards
    family = "error"


class Transient(UnderstudyError):
    family = "transient"


class VcenterUnreachable(Transient):
    family = "vcenter unreachable"


class TaskStillRunning(Transient):
    """A vCenter task outlived the time that one slice may wait; `task` is its moref, for the ledger."""

    family = "vcenter task running"

    def __init__(self, message: str, task: str) -> None:
        super().__init__(message)
        self.task = task


class DiskBusy(Transient):
    family = "disk busy"


class DiskLocked(DiskBusy):
    family = "disk locked"


class CarrierFailed(Transient):
    family = "carrier"


class TargetBusy(Transient):
    family = "target busy"


class BrokerUnreachable(Transient):
    family = "broker unreachable"


class StoreUnreachable(Transient):
    family = "store unreachable"


class CatalogueUnreachable(Transient):
    family = "catalogue unreachable"


class NeedsCompare(UnderstudyError):
    family = "needs compare"


class ChangeTrackingUnusable(NeedsCompare):
    family = "change tracking"


class NeedsPerson(UnderstudyError):
    family = "needs a person"


class Touched(NeedsPerson):
    family = "touched"


class Foreign(NeedsPerson):
    family = "foreign"


class Refused(NeedsPerson):
    family = "refused"


class ApprovalNeeded(NeedsPerson):
    """`bytes` would be read, or compared, again."""

    family = "approval needed"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.bytes = size


class StoreDamaged(NeedsPerson):
    family = "store damaged"


class ValidationFailed(NeedsPerson):
    family = "validation failed"


class StoreTooNew(NeedsPerson):
    family = "store too new"


class FencedOut(UnderstudyError):
    family = "fenced out"


class SnapshotLost(UnderstudyError):
    family = "snapshot lost"


class Stopped(UnderstudyError):
    family = "stopped"


class WorkerLost(UnderstudyError):
    family = "worker lost"

    def __init__(self, times: int) -> None:
        super().__init__(
            f"its worker was lost {times} times in a row (killed, out of memory, or its machine went down); "
            "look at the workers' logs, then start it again"
        )


class SliceFailed(UnderstudyError):
    """`family` is that of what ends the run, where it has one."""

    family = "slice failed"

    def __init__(self, message: str, family: str = family) -> None:
        super().__init__(message)
        self.family = family


class Conflict(UnderstudyError):
    family = "conflict"


class BadInput(UnderstudyError):
    family = "bad input"


class ConfigError(BadInput):
    family = "configuration"


class NotFound(BadInput):
    family = "not found"


class LoginFailed(BadInput):
    family = "login failed"


class WrongKey(BadInput):
    family = "wrong key"


class NoSpace(BadInput):
    family = "no space"
