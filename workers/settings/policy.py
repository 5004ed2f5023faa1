"""What is done with VMs, and when: groups, schedules, what is different for one VM."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from workers.models import Model
from workers.settings.values import Cron, Interval, Size, Zone


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


class VmOverride(Model):
    """What is different for one VM of a group."""

    name: str | None = None
    datastore: str | None = None
    excluded_disks: tuple[str, ...] = ()
    networks: dict[str, str] = Field(default_factory=dict)


class Group(Model):
    """Pairs with one policy."""

    source: str
    #: VM names or patterns (*, ?) at the source site
    vms: tuple[str, ...]
    store: str
    #: recovery target; without one the VMs are backed up only
    target: str | None = None
    quiesce: bool = True
    backup: Schedule | None = None
    replicate: ReplicateWhen = ReplicateWhen()
    #: retention: restore points kept per VM, besides those that a replica or a pin needs
    keep_last: int = Field(default=14, ge=1)
    #: the age that the data may reach: of the replica, or without one of the newest restore point
    rpo: Interval | None = None
    #: whether everything may be read or compared again: by itself, once a person approves, or never
    full: Literal["allow", "ask", "never"] = "allow"
    #: more bytes than this are never read or compared in full without approval, not even the first time
    full_budget: Size | None = None
    overrides: dict[str, VmOverride] = Field(default_factory=dict)

    def covers(self, site: str, vm: str) -> bool:
        return site == self.source and any(fnmatchcase(vm, pattern) for pattern in self.vms)
