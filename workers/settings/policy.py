"""What is done with VMs, and when: groups, schedules, what is different for one VM."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from workers.models import Model
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


class Keep(Model):
    """Retention: which restore points of a VM are kept, besides the newest and those that a replica or a pin needs.

    `last` counts points. The others keep the newest point of each of the last so many hours, days, ISO weeks, months
    or years that have one, as the calendar of `timezone` has them. A point that any of them keeps stays.
    """

    last: int = Field(default=0, ge=0)
    hourly: int = Field(default=0, ge=0)
    daily: int = Field(default=0, ge=0)
    weekly: int = Field(default=0, ge=0)
    monthly: int = Field(default=0, ge=0)
    yearly: int = Field(default=0, ge=0)
    timezone: Zone = "UTC"

    @model_validator(mode="after")
    def _something(self) -> Keep:
        if not any((self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)):
            raise ValueError(
                "at least one of last, hourly, daily, weekly, monthly and yearly above 0, e.g. { last = 14, daily = 9 }"
            )
        return self


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
    #: retention: which restore points are kept per VM
    keep: Keep = Keep(last=14)
    overrides: dict[str, VmOverride] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "keep_last" in data:
            raise ValueError(f"keep_last is written keep = {{ last = {data['keep_last']} }} now")
        return data

    def covers(self, site: str, vm: str) -> bool:
        return site == self.source and any(fnmatchcase(vm, pattern) for pattern in self.vms)
