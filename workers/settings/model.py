"""The whole configuration as one model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from workers.errors import ConfigError
from workers.models import Model
from workers.settings import secrets
from workers.settings.places import Flower, Limits, Link, RecoveryTarget, Site, StoreSettings
from workers.settings.policy import Group
from workers.settings.values import Interval, Size, one_of, seconds


class Tuning(Model):
    """Rarely changed. Each default has its reason in docs/operations.md."""

    #: threads per run that read, check and write
    threads: int = Field(default=3, ge=1, le=64)
    #: how long a task works on a run before it checkpoints and queues the rest
    slice_time: Interval = "4m"
    #: workers that are at one run at once at most; 1 = each run has one
    spread: int = Field(default=4, ge=1, le=64)
    #: disk work between two checkpoints of a sync or restore: what a worker that dies repeats at most
    slice_size: Size = "1GiB"
    #: a run's lease; renewed every third of it, so a dead worker's run goes on after at most this
    lease: Interval = "30s"
    #: how often Beat's ticks come
    dispatch_every: Interval = "10s"
    #: how often lost messages and dead workers are looked for
    reap_every: Interval = "15s"
    #: how often the inventories are read
    inventory_every: Interval = "5m"
    #: an inventory that is older is said so, with the reason
    inventory_stale: Interval = "30m"
    #: more than this part of a group (and at least five VMs) leaves it only when a person agrees
    exodus: float = Field(default=0.5, ge=0, le=1)
    #: how often the stores are pruned
    prune_every: Interval = "1h"
    #: tries of one run, with growing pauses, before it counts as failed
    attempts: int = Field(default=5, ge=1)
    #: the first pause between tries; doubled each time
    retry_pause: Interval = "5s"
    #: runs of a VM that fail in a row before it is quarantined
    quarantine_after: int = Field(default=3, ge=1)
    #: how often what is quarantined is tried again, doubled up to eightfold
    probe_every: Interval = "1h"
    #: how long ended runs, failures and old sync points stay on record
    keep_history: Interval = "90d"
    #: how long to wait for a lock on a disk before giving way
    lock_wait: Interval = "20s"
    #: how long one call waits for a vCenter task before it comes back later
    vcenter_wait: Interval = "2m"
    #: part of the disk outside change tracking's answer that each incremental backup compares all the same
    sample: float = Field(default=0.001, ge=0, le=1)

    @field_validator("lease")
    @classmethod
    def _not_for_hours(cls, text: str) -> str:
        """A lease that ends more than two hours from now was written by a clock that is wrong, to the catalogue."""
        if seconds(text) > 3600:
            raise ValueError("an hour at most: as long nobody goes on with what a dead worker had")
        return text


class Mistakes(ValueError):
    """All that is wrong between the parts of a configuration: (key, sentence)."""

    def __init__(self, found: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in found))
        self.found = found


class Settings(Model):
    """The whole configuration."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [one_of(key, f"{key}_file", f"{key}_env") for key in ("redis", "catalogue")],
        }
    )

    # An address may hold a password: these two have no `repr`, and nothing that shows a configuration shows them whole.

    #: Redis, the broker: redis://[:password@]host:port/db, or rediss:// for TLS
    redis_given: str | None = Field(default=None, alias="redis", repr=False)
    #: or the first line of this file, which is for the address with a password
    redis_file: Path | None = None
    #: or this environment variable
    redis_env: str | None = None
    #: the catalogue: sqlite:///path (one control host) or postgresql+psycopg://user@host/database (many)
    catalogue_given: str | None = Field(default=None, alias="catalogue", repr=False)
    #: or the first line of this file, which is for the address with a password
    catalogue_file: Path | None = None
    #: or this environment variable
    catalogue_env: str | None = None
    #: vCenters by name
    sites: dict[str, Site]
    #: where restore points are kept, by name
    stores: dict[str, StoreSettings]
    #: ways between sites that are not to be filled, by name
    links: dict[str, Link] = Field(default_factory=dict)
    #: workers that are at one host, datastore or vCenter at once
    limits: Limits = Limits()
    #: recovery targets, where replicas go, by name
    targets: dict[str, RecoveryTarget] = Field(default_factory=dict)
    #: VMs with one policy, by the group's name
    groups: dict[str, Group] = Field(default_factory=dict)
    #: how long all that is kept of a VM stays that left a group which does not say it, or which is gone
    grace: Interval = "30d"
    #: the login of Flower; without one Flower only shows
    flower: Flower | None = None
    #: rarely changed
    tuning: Tuning = Tuning()

    @property
    def redis(self) -> str:
        """The broker's address. Raises `ConfigError` when it is to come from elsewhere and is not there."""
        if self.redis_given is not None:
            return self.redis_given
        text = secrets.read(self.redis_file, self.redis_env, "Redis' address")
        try:
            return secrets.redis_address(text)
        except ValueError as err:
            raise ConfigError(f"{_named('redis', self.redis_file, self.redis_env)} should hold {err}") from None

    @property
    def catalogue(self) -> str:
        """The catalogue's address. Raises `ConfigError` when it is to come from elsewhere and is not there."""
        if self.catalogue_given is not None:
            return self.catalogue_given
        text = secrets.read(self.catalogue_file, self.catalogue_env, "the catalogue's address")
        whence = _named("catalogue", self.catalogue_file, self.catalogue_env)
        try:
            address = secrets.catalogue_address(text)
        except ValueError as err:
            raise ConfigError(f"{whence} should hold {err}") from None
        if address.startswith("sqlite:") and not address.startswith("sqlite:////"):
            raise ConfigError(f"{whence} should hold an absolute path: sqlite:////path/to/catalogue.db")
        return address

    def site(self, name: str) -> Site:
        """Of a run or a pair, which may be older than the configuration."""
        if name not in self.sites:
            raise ConfigError(_gone("site", f"sites.{name}", self.sites))
        return self.sites[name]

    def store(self, name: str) -> StoreSettings:
        if name not in self.stores:
            raise ConfigError(_gone("store", f"stores.{name}", self.stores))
        return self.stores[name]

    @field_validator("redis_given")
    @classmethod
    def _redis(cls, text: str | None) -> str | None:
        return None if text is None else secrets.redis_address(text)

    @field_validator("catalogue_given")
    @classmethod
    def _catalogue(cls, text: str | None) -> str | None:
        return None if text is None else secrets.catalogue_address(text)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        found = [*self._addresses(), *self._names()]
        if found:
            raise Mistakes(found)
        return self

    def _addresses(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for key in ("redis", "catalogue"):
            given = [name for name in (f"{key}_given", f"{key}_file", f"{key}_env") if getattr(self, name) is not None]
            if len(given) != 1:
                what = "is missing" if not given else "has several origins"
                yield (key,), f"{key} {what}: give '{key}', '{key}_file' or '{key}_env', exactly one"

    def _names(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name, group in self.groups.items():
            yield from _known(("groups", name, "source"), group.source, self.sites)
            yield from _known(("groups", name, "store"), group.store, self.stores)
            for aim in group.targets:
                yield from _known(("groups", name, "target"), aim, self.targets)
            for source in group.sources:
                yield from _known(("groups", name, "sources"), source, self.stores)
            if group.copying is not None:
                to = ("groups", name, "copy", "to")
                yield from _known(to, group.copying.to, self.stores)
                if group.copying.to == group.store:
                    yield to, f"{'.'.join(to)} = {group.store!r} is the group's own store: a copy goes to another one"
            for vm, override in group.overrides.items():
                for aim in override.targets:
                    key = ("groups", name, "overrides", vm, "targets")
                    yield from _known(key, aim, dict.fromkeys(group.targets))
        for name, target in self.targets.items():
            yield from _known(("targets", name, "site"), target.site, self.sites)
        for name, site in self.sites.items():
            if site.link is not None:
                yield from _known(("sites", name, "link"), site.link, self.links)
        for name, store in self.stores.items():
            if store.link is not None:
                yield from _known(("stores", name, "link"), store.link, self.links)
            if store.site:
                yield from _known(("stores", name, "site"), store.site, self.sites)


def _named(key: str, file: Path | None, variable: str | None) -> str:
    return f"the file {file} ({key}_file)" if file is not None else f"the environment variable {variable} ({key}_env)"


def _gone(kind: str, key: str, known: dict[str, Any]) -> str:
    return (
        f"the {kind} {key.partition('.')[2]} is not in the configuration any more; "
        f"add {key} again (configured: {', '.join(sorted(known)) or 'none'})"
    )


def _known(key: tuple[str, ...], value: str, known: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    if value not in known:
        allowed = ", ".join(sorted(known)) or "(none yet)"
        yield key, f"{'.'.join(key)} = {value!r} names nothing that is configured; allowed: {allowed}"
