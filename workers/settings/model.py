"""The whole configuration as one model."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from workers.errors import ConfigError
from workers.models import Model
from workers.settings.places import Flower, RecoveryTarget, Site, StoreSettings
from workers.settings.policy import Group
from workers.settings.values import Interval


class Tuning(Model):
    """Rarely changed. Each default has its reason in docs/operations.md."""

    #: threads per run that read, check and write
    threads: int = Field(default=2, ge=1, le=64)
    #: how long a task works on a run before it checkpoints and queues the rest
    slice_time: Interval = "4m"
    #: a run's lease; renewed every third of it, so a dead worker's run goes on after at most this
    lease: Interval = "30s"
    #: how often Beat's ticks come
    dispatch_every: Interval = "10s"
    reap_every: Interval = "15s"
    inventory_every: Interval = "5m"
    prune_every: Interval = "1h"
    #: tries of one run, with growing pauses, before it counts as failed
    attempts: int = Field(default=5, ge=1)
    retry_pause: Interval = "5s"
    #: runs of a VM that fail in a row before it is quarantined, and how often it is tried again then
    quarantine_after: int = Field(default=3, ge=1)
    probe_every: Interval = "1h"
    #: how long ended runs, failures and old sync points stay on record
    keep_history: Interval = "90d"
    #: how long to wait for a lock on a disk before giving way
    lock_wait: Interval = "20s"
    #: how long one call waits for a vCenter task before it comes back later
    vcenter_wait: Interval = "2m"
    #: part of the disk outside change tracking's answer that each incremental backup compares all the same
    sample: float = Field(default=0.001, ge=0, le=1)


class Settings(Model):
    """The whole configuration."""

    #: Redis: the broker
    redis: str
    #: catalogue: sqlite:///path (one control host) or postgresql+psycopg://... (many)
    catalogue: str
    sites: dict[str, Site]
    stores: dict[str, StoreSettings]
    targets: dict[str, RecoveryTarget] = Field(default_factory=dict)
    groups: dict[str, Group] = Field(default_factory=dict)
    flower: Flower | None = None
    tuning: Tuning = Tuning()

    def site(self, name: str) -> Site:
        """Of a run or a pair, which may be older than the configuration."""
        if name not in self.sites:
            raise ConfigError(_gone("site", f"sites.{name}", self.sites))
        return self.sites[name]

    def store(self, name: str) -> StoreSettings:
        if name not in self.stores:
            raise ConfigError(_gone("store", f"stores.{name}", self.stores))
        return self.stores[name]

    def groups_of(self, site: str, vm: str) -> list[Group]:
        """The groups whose policy covers a VM of a site."""
        return [group for group in self.groups.values() if group.covers(site, vm)]

    @model_validator(mode="after")
    def _names(self) -> Settings:
        for name, group in self.groups.items():
            _known(f"groups.{name}.source", group.source, self.sites)
            _known(f"groups.{name}.store", group.store, self.stores)
            if group.target is not None:
                _known(f"groups.{name}.target", group.target, self.targets)
        for name, target in self.targets.items():
            _known(f"targets.{name}.site", target.site, self.sites)
        return self


def _gone(kind: str, key: str, known: dict[str, Any]) -> str:
    return (
        f"the {kind} {key.partition('.')[2]} is not in the configuration any more; "
        f"add {key} again (configured: {', '.join(sorted(known)) or 'none'})"
    )


def _known(key: str, value: str, known: dict[str, Any]) -> None:
    if value not in known:
        raise ValueError(
            f"{key} = {value!r} names nothing that is configured; allowed: {', '.join(sorted(known)) or '(none yet)'}"
        )
