"""One TOML file and the environment: the only reader of either. The comments are the operator's manual."""

from __future__ import annotations

import difflib
import os
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, ValidationError, model_validator

from workers.errors import ConfigError
from workers.models import Model

#: Where the configuration is looked for, first hit wins: --config, UNDERSTUDY_CONFIG, these.
DEFAULT_PATHS = (Path("understudy.toml"), Path("/etc/understudy/understudy.toml"))

#: For tests only, see workers/faults.py.
FAULT = os.environ.get("UNDERSTUDY_FAULT", "")

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> int:
    """'90s', '15m', '4h', '1d', '1w' -> seconds."""
    if text[:-1].isdigit() and text[-1:] in UNITS and int(text[:-1]) > 0:
        return int(text[:-1]) * UNITS[text[-1]]
    raise ValueError("a number and a unit: 90s, 15m, 4h, 1d or 1w")


def _interval(text: str) -> str:
    seconds(text)
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError) as err:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("a time zone name such as UTC or Europe/Berlin") from err
    return name


def _cron(text: str) -> str:
    from datetime import UTC, datetime

    try:
        CronSim(text, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as err:
        raise ValueError("a cron line of five fields, e.g. '30 1 * * *'") from err
    return text


Interval = Annotated[str, AfterValidator(_interval)]


P = TypeVar("P", "Site", "Flower")


def _one_password(owner: P) -> P:
    if (owner.password_file is None) == (owner.password_env is None):
        raise ValueError("either 'password_file' or 'password_env', exactly one")
    return owner


def _password(file: Path | None, variable: str | None, whose: str) -> str:
    """From where the configuration says; it is never in the configuration itself."""
    if variable is not None:
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(f"the environment variable {variable} is not set; it should hold the password of {whose}")
        return value
    assert file is not None
    try:
        return file.read_text().splitlines()[0]
    except (OSError, IndexError) as err:
        raise ConfigError(
            f"the password file {file} cannot be read; write the password of {whose} into its first line"
        ) from err


class Schedule(Model):
    """When something is due: every so often, or by cron in a time zone. Each VM's own fixed jitter spreads the load."""

    every: Interval | None = None
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
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


class Site(Model):
    """One vCenter, the datastores behind it, the workers that can reach it (queue data.<site>)."""

    vcenter: str
    user: str
    #: the password: from a file (first line) or from an environment variable; never in this file
    password_file: Path | None = None
    password_env: str | None = None
    #: TLS: verified against the system's CAs, this CA file, or this SHA-256 thumbprint; `insecure = true` is off.
    ca_file: Path | None = None
    thumbprint: str | None = None
    insecure: bool = False
    #: datastore name -> where this site's workers have it mounted
    datastores: dict[str, Path] = Field(default_factory=dict)

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return _password(self.password_file, self.password_env, f"{self.user} at {self.vcenter}")


class StoreSettings(Model):
    """Where backups are kept."""

    path: Path


class RecoveryTarget(Model):
    """Where replicas go."""

    site: str
    datastore: str
    #: compute: a host's or a cluster's name; empty = the only cluster of the site
    compute: str = ""
    pool: str = ""
    folder: str = ""
    #: source network -> network at the recovery site; "*" is the default for all others
    networks: dict[str, str] = Field(default_factory=dict)
    prefix: str = ""
    suffix: str = "_replica"
    provisioning: Literal["thin", "thick"] = "thin"


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
    overrides: dict[str, VmOverride] = Field(default_factory=dict)

    def covers(self, site: str, vm: str) -> bool:
        return site == self.source and any(fnmatchcase(vm, pattern) for pattern in self.vms)


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
    #: how long to wait for a lock on a disk before giving way
    lock_wait: Interval = "20s"
    #: how long one call waits for a vCenter task before it comes back later
    vcenter_wait: Interval = "2m"
    #: part of the disk outside change tracking's answer that each incremental backup compares all the same
    sample: float = Field(default=0.001, ge=0, le=1)


class Flower(Model):
    """The login of Flower's page and API. Without one Flower only shows: its API is closed, and it changes nothing."""

    user: str
    password_file: Path | None = None
    password_env: str | None = None

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return _password(self.password_file, self.password_env, f"{self.user} in Flower")


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


def find(path: Path | None = None) -> Path:
    """The configuration file to use. Raises `ConfigError` when there is none."""
    named = path or (Path(os.environ["UNDERSTUDY_CONFIG"]) if os.environ.get("UNDERSTUDY_CONFIG") else None)
    if named is not None:
        return named
    for candidate in DEFAULT_PATHS:
        if candidate.exists():
            return candidate
    raise ConfigError(
        "no configuration found: pass --config FILE, set UNDERSTUDY_CONFIG, or run `understudy init` to write one here"
    )


def load(path: Path | None = None) -> Settings:
    """Read and check the configuration; its relative paths start at its folder.

    Raises `ConfigError`, one sentence per mistake.
    """
    file = find(path)
    try:
        data = tomllib.loads(file.read_text())
    except OSError as err:
        raise ConfigError(f"the configuration {file} cannot be read: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file} is not valid TOML: {err}") from err
    try:
        return Settings.model_validate(_absolute(data, file.resolve().parent))
    except ValidationError as err:
        raise ConfigError("\n".join(f"{file}: {line}" for line in _sentences(err))) from None


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of the file's own folder, made absolute before validation."""

    def fix(table: Any, *keys: str) -> None:
        for key in keys:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = str(folder / table[key])

    for site in _tables(data.get("sites")):
        fix(site, "password_file", "ca_file")
        if isinstance(site.get("datastores"), dict):
            fix(site["datastores"], *site["datastores"])
    fix(data.get("flower"), "password_file")
    for store in _tables(data.get("stores")):
        fix(store, "path")
    url = data.get("catalogue")
    if isinstance(url, str) and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        data["catalogue"] = f"sqlite:///{folder / url.removeprefix('sqlite:///')}"
    return data


def _tables(value: Any) -> list[dict[str, Any]]:
    return [t for t in value.values() if isinstance(t, dict)] if isinstance(value, dict) else []


def _sentences(err: ValidationError) -> list[str]:
    lines = []
    for problem in err.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key} is not a key that is known here{_did_you_mean(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(problem["input"], dict) or not key else f"{key} = {problem['input']!r}: "
            lines.append(f"{shown}{message}" if shown or not key else f"{key}: {message}")
    return lines


def _did_you_mean(loc: tuple[int | str, ...]) -> str:
    model = _model_at(loc[:-1])
    if model is None:
        return ""
    allowed = sorted(model.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f" (allowed: {', '.join(allowed)}){hint}"


def _model_at(loc: tuple[int | str, ...]) -> type[Model] | None:
    tops: dict[str, type[Model]] = {
        "sites": Site,
        "stores": StoreSettings,
        "targets": RecoveryTarget,
        "groups": Group,
    }
    if not loc:
        return Settings
    if loc[0] in ("tuning", "flower"):
        return Tuning if loc[0] == "tuning" else Flower
    inner: dict[str, type[Model]] = {"backup": Schedule, "schedule": Schedule, "replicate": ReplicateWhen}
    if len(loc) >= 3 and loc[2] == "overrides":
        return VmOverride
    return inner.get(str(loc[-1])) or tops.get(str(loc[0]))
