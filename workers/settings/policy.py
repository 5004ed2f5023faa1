"""What is done with VMs, and when: groups, schedules, what is different for one VM."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from workers.models import Model, Provisioning
from workers.settings.values import Cron, Interval, Zone


class Schedule(Model):
    """When something is due: every so often, or by cron in a time zone. Each VM's own fixed jitter spreads the load."""

    every: Interval | None = None
    cron: Cron | None = None
    timezone: Zone = "UTC"
    #: up to this much later, a fixed amount per VM; "auto" = a tenth of the interval, at most 10 minutes
    jitter: Interval | Literal["auto", "none"] = "auto"

    @model_validator(mode="after")
    def _one_of(self) -> Schedule:
        if (self.every is None) == (self.cron is None):
            raise ValueError("either 'every' or 'cron', exactly one")
        return self


class ReplicateWhen(Model):
    """When replication is due: after each backup (the default), on a schedule, or both."""

    after_backup: bool = True
    schedule: Schedule | None = None


class ReplicaOverride(Model):
    """What is different for one VM's replica. What is not given is as the recovery target says."""

    name: str | None = None
    datastore: str | None = None
    datastores: dict[str, str] = Field(default_factory=dict)
    compute: str | None = None
    pool: str | None = None
    folder: str | None = None
    #: labels or ids
    excluded_disks: tuple[str, ...] = ()
    networks: dict[str, str] = Field(default_factory=dict)
    provisioning: Provisioning | None = None
    keep_macs: bool | None = None
    #: a VM that is there (name or instance UUID) becomes the replica: every block is compared, its content is lost
    existing: str | None = None
    #: that `existing` loses its content is meant so
    overwrite_existing: bool = False
    #: the replica is built around disks that somebody copied there: "[datastore] folder"
    seed: str | None = None
    #: for `existing` and `seed`: a source disk (label or id) -> that VM's disk (label or id), or the seed's file
    disks: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_beginning(self) -> ReplicaOverride:
        if self.existing is not None and self.seed is not None:
            raise ValueError("either 'existing' (a VM) or 'seed' (a folder of disks), not both")
        return self


class VmOverride(ReplicaOverride):
    """What is different for one VM of a group."""

    #: recovery target -> what is different there alone, where the group has several
    targets: dict[str, ReplicaOverride] = Field(default_factory=dict)


class Group(Model):
    """Pairs with one policy."""

    source: str
    #: VM names or patterns (*, ?) at the source site
    vms: tuple[str, ...]
    store: str
    #: recovery target, or several; without one the VMs are backed up only
    target: str | tuple[str, ...] | None = None
    quiesce: bool = True
    backup: Schedule | None = None
    replicate: ReplicateWhen = ReplicateWhen()
    #: retention: restore points kept per VM, besides those that a replica or a pin needs
    keep_last: int = Field(default=14, ge=1)
    overrides: dict[str, VmOverride] = Field(default_factory=dict)

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(name, str) for name in several):
            raise ValueError("a recovery target's name, or a list of them")
        return tuple(value) if isinstance(value, list) else value

    @property
    def targets(self) -> tuple[str, ...]:
        """The recovery targets, however they are written."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(dict.fromkeys(self.target))

    def covers(self, site: str, vm: str) -> bool:
        return site == self.source and any(fnmatchcase(vm, pattern) for pattern in self.vms)
