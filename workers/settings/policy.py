"""What is done with VMs, and when: groups, schedules, what is different for one VM."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from workers.models import Model, Provisioning
from workers.settings.rules import Rule
from workers.settings.values import Cron, Interval, Size, Zone, one_of


class Schedule(Model):
    """When something is due: every so often, or by cron in a time zone. Each VM's own fixed jitter spreads the load."""

    model_config = ConfigDict(json_schema_extra=one_of("every", "cron"))

    #: so often: 15m, 4h, 1d
    every: Interval | None = None
    #: or by a cron line of five fields
    cron: Cron | None = None
    #: whose clock the cron line means
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

    #: as soon as there is a new restore point
    after_backup: bool = True
    #: and, or instead, by a schedule of its own
    schedule: Schedule | None = None


class Keep(Model):
    """Retention: which restore points of a VM are kept, besides the newest and those that a replica or a pin needs.

    `last` counts points. The others keep the newest point of each of the last so many hours, days, ISO weeks, months
    or years that have one, as the calendar of `timezone` has them. A point that any of them keeps stays.
    """

    #: the newest so many points
    last: int = Field(default=0, ge=0)
    #: the newest point of each of the last so many hours that have one
    hourly: int = Field(default=0, ge=0)
    #: of each of so many days
    daily: int = Field(default=0, ge=0)
    #: of each of so many ISO weeks
    weekly: int = Field(default=0, ge=0)
    #: of each of so many months
    monthly: int = Field(default=0, ge=0)
    #: of each of so many years
    yearly: int = Field(default=0, ge=0)
    #: whose days and hours these are, e.g. Europe/Berlin
    timezone: Zone = "UTC"

    @model_validator(mode="after")
    def _something(self) -> Keep:
        if not any((self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)):
            raise ValueError(
                "at least one of last, hourly, daily, weekly, monthly and yearly above 0, e.g. { last = 14, daily = 9 }"
            )
        return self


class CopyTo(Model):
    """Restore points are copied to a second store: after each backup (the default), on a schedule, or both."""

    #: that store
    to: str
    #: as soon as there is a new restore point
    after_backup: bool = True
    #: and, or instead, by a schedule of its own
    schedule: Schedule | None = None
    #: which copies are kept; without it, the group's `keep`
    keep: Keep | None = None


class ReplicaOverride(Model):
    """What is different for one VM's replica. What is not given is as the recovery target says."""

    #: of its replica
    name: str | None = None
    #: instead of the recovery target's
    datastore: str | None = None
    #: source datastore -> datastore there, joined with the recovery target's
    datastores: dict[str, str] = Field(default_factory=dict)
    #: a host's or a cluster's name, instead of the recovery target's
    compute: str | None = None
    #: a resource pool, instead of the recovery target's
    pool: str | None = None
    #: a VM folder, instead of the recovery target's
    folder: str | None = None
    #: labels or ids of disks that are not replicated
    excluded_disks: tuple[str, ...] = ()
    #: source network -> network at the recovery site, before the recovery target's
    networks: dict[str, str] = Field(default_factory=dict)
    #: instead of the recovery target's
    provisioning: Provisioning | None = None
    #: instead of the recovery target's
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

    #: the site of the VMs
    source: str
    #: VM names or patterns (*, ?) at the source site: short for members = { name = [...] }
    vms: tuple[str, ...] | None = None
    #: or a rule; exactly one of the two
    members: Rule | None = None
    #: how long all restore points of a VM are kept that has left the group; without it, the `grace` of the whole
    grace: Interval | None = None
    #: where their restore points go
    store: str
    #: stores that replicas are brought up from, the preferred one first; without it, `store`
    sources: tuple[str, ...] = ()
    #: recovery target, or several; without one the VMs are backed up only
    target: str | tuple[str, ...] | None = None
    #: have VMware Tools bring the guest to rest; a guest that cannot be gives a crash-consistent point and a note
    quiesce: bool = True
    #: when backups are due; without it they are made on request only
    backup: Schedule | None = None
    #: when replication is due
    replicate: ReplicateWhen = ReplicateWhen()
    #: retention: which restore points are kept per VM
    keep: Keep = Keep(last=14)
    #: a second store for copies of them, and when they are due
    copying: CopyTo | None = Field(default=None, alias="copy")
    #: the age that the data may reach: of the replica, or without one of the newest restore point
    rpo: Interval | None = None
    #: whether everything may be read or compared again: by itself, once a person approves, or never
    full: Literal["allow", "ask", "never"] = "allow"
    #: more bytes than this are never read or compared in full without approval, not even the first time
    full_budget: Size | None = None
    #: share of each replica that is compared with its sync point a day: 0.02 = all of it in 50 days; 0 = never
    scrub: float = Field(default=0.02, ge=0, le=1)
    #: whether what such a comparison finds is mended by itself
    scrub_repair: bool = False
    #: what is different for one VM, by its name
    overrides: dict[str, VmOverride] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "keep_last" in data:
            raise ValueError(f"keep_last is written keep = {{ last = {data['keep_last']} }} now")
        return data

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(name, str) for name in several):
            raise ValueError("a recovery target's name, or a list of them")
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_rule(self) -> Group:
        if (self.vms is None) == (self.members is None):
            raise ValueError("either 'vms' (names) or 'members' (a rule), exactly one")
        return self

    @property
    def rule(self) -> Rule:
        # An empty `vms` is allowed and names nobody, which a rule cannot say: so it is not validated again.
        return self.members if self.members is not None else Rule.model_construct({"name"}, name=self.vms or ())

    def kept_in(self, store: str) -> list[Keep]:
        """What the group keeps in a store: of its restore points, of their copies."""
        found = [self.keep] if store == self.store else []
        if self.copying is not None and self.copying.to == store:
            found.append(self.copying.keep or self.keep)
        return found

    @property
    def targets(self) -> tuple[str, ...]:
        """The recovery targets, however they are written."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(dict.fromkeys(self.target))
