"""Where things are: vCenters and their datastores, stores, where replicas go, the login of Flower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, field_validator, model_validator

from workers.models import Model, Provisioning
from workers.settings import secrets
from workers.settings.values import Size, Zone, one_of, size

P = TypeVar("P", "Site", "Flower")

#: the ways of a disk's bytes
CarrierName = Literal["file", "nbd", "hotadd"]


def _one_password(owner: P) -> P:
    if (owner.password_file is None) == (owner.password_env is None):
        raise ValueError("either 'password_file' or 'password_env', exactly one")
    return owner


class Vddk(Model):
    """VMware's own library (Virtual Disk Development Kit), for the carrier nbd. It is yours to get and to install."""

    #: the folder in which it was unpacked: the one with lib64, or with libvixDiskLib.so itself
    libdir: Path
    #: nbdkit's plugin: its name, or its file with the whole path
    plugin: str = "vddk"
    #: ways to the hosts, in order, as the library names them
    transports: str = "nbdssl:nbd"
    #: what goes over the network is compressed by this; all but none cost CPU at the host
    compression: Literal["none", "zlib", "fastlz", "skipz"] = "none"

    @property
    def to_write(self) -> str:
        """The ways that are left to a replica's disk: VMware's library writes by `san` only under a snapshot."""
        return ":".join(way for way in self.transports.split(":") if way != "san")


class Hotadd(Model):
    """The worker's own VM, for the carrier hotadd: it must be a VM of the same vCenter."""

    #: its BIOS UUID; without it the worker asks its own machine, which only root may
    vm: str | None = None
    #: where this machine names its disks by their ids
    devices: Path = Path("/dev/disk/by-id")


class Site(Model):
    """One vCenter, the datastores behind it, the workers that can reach it (queue data.<site>)."""

    model_config = ConfigDict(json_schema_extra=one_of("password_file", "password_env"))

    #: its host name, with :port where it is not 443
    vcenter: str
    #: who logs in
    user: str
    #: the password: a file's first line; never in this file
    password_file: Path | None = None
    #: or an environment variable
    password_env: str | None = None
    #: the CA of its certificate, where the system's CAs do not know it
    ca_file: Path | None = None
    #: or its certificate's SHA-256 thumbprint
    thumbprint: str | None = None
    #: true checks no certificate: anybody on the way can read the password
    insecure: bool = False
    #: datastore name -> where this site's workers have it mounted
    datastores: dict[str, Path] = Field(default_factory=dict)
    #: ways of the disks' bytes, by preference: of each disk the first that is possible for it
    carriers: tuple[CarrierName, ...] = Field(default=("file", "nbd"), min_length=1)
    #: VMware's own library on this site's workers, for the carrier nbd
    vddk: Vddk | None = None
    #: the worker's own VM, for the carrier hotadd
    hotadd: Hotadd = Hotadd()
    #: bytes a second that each worker process reads from, or writes to, this site's disks at most; none = no limit
    worker_rate: Size | None = None
    #: the link between this site and others
    link: str | None = None

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return secrets.read(self.password_file, self.password_env, f"the password of {self.user} at {self.vcenter}")

    def reaches(self, datastore: str) -> bool:
        """Whether there is any way to the disks on it, as far as the configuration says."""
        nbd = self.vddk is not None and "nbd" in self.carriers and self.vddk.to_write != ""
        return datastore in self.datastores or nbd or "hotadd" in self.carriers

    @property
    def bytes_per_second(self) -> int | None:
        return size(self.worker_rate) if self.worker_rate is not None else None


class AccessKey(NamedTuple):
    """What requests to a bucket are signed with. Not to be shown."""

    key: str
    secret: str
    token: str = ""


class BucketSettings(Model):
    """An S3-compatible bucket that holds a store. Its endpoint must honour conditional writes."""

    #: its name; it must be there
    bucket: str
    #: what the names of the store's objects begin with, so that a bucket can hold several; with or without / at its end
    prefix: str = ""
    #: the server's address, such as https://s3.example.com:9000; none = AWS
    endpoint: str | None = None
    #: the region that the bucket is in; none = as the environment says, and us-east-1 for a server of one's own
    region: str | None = None
    #: the access key: a file with its id in the first line and its secret in the second; never in this file
    access_key_file: Path | None = None
    #: or an environment variable that holds id:secret; neither = as AWS' tools find it (environment, machine's role)
    access_key_env: str | None = None
    #: the CA of the endpoint's certificate, where the system's CAs do not know it
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_key(self) -> BucketSettings:
        if self.access_key_file is not None and self.access_key_env is not None:
            raise ValueError("either 'access_key_file' or 'access_key_env', not both")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("'endpoint' begins with https:// (or, on a network that is yours alone, http://)")
        return self

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def login(self) -> AccessKey | None:
        """None where AWS' own ways find one. Raises `ConfigError`."""
        if self.access_key_file is None and self.access_key_env is None:
            return None
        parts = secrets.parts(
            self.access_key_file, self.access_key_env, f"the access key of {self}", "its id, its secret"
        )
        return AccessKey(*parts)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]|24:00")


class Window(Model):
    """When a link has another limit."""

    #: from this time of the day on, e.g. "08:00"
    since: str = Field(alias="from")
    #: until then; earlier than `from` means the next morning
    to: str
    #: on which days it begins: "mon-fri", "sat,sun"
    days: str = "mon-sun"
    #: bytes a second meanwhile; none = no limit
    rate: Size | None = None
    #: whose days and times these are
    timezone: Zone = "UTC"

    @field_validator("since", "to")
    @classmethod
    def _clock(cls, text: str) -> str:
        if not _CLOCK.fullmatch(text):
            raise ValueError("a time of the day in quotation marks, from 00:00 to 24:00")
        return text

    @field_validator("days")
    @classmethod
    def _of_a_week(cls, text: str) -> str:
        _weekdays(text)
        return text

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.begins == self.ends:
            raise ValueError("'from' and 'to' are the same time; for a whole day write from = '00:00', to = '24:00'")
        return self

    @property
    def begins(self) -> int:
        return _minutes(self.since)

    @property
    def ends(self) -> int:
        return _minutes(self.to)

    @property
    def weekdays(self) -> frozenset[int]:
        """0 = Monday."""
        return _weekdays(self.days)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def _weekdays(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError("days as mon, tue, wed, thu, fri, sat and sun, e.g. 'mon-fri' or 'sat,sun'")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        found.update(day % 7 for day in range(begin, end + 1 if end >= begin else end + 8))
    return frozenset(found)


class Link(Model):
    """A way between sites that is not to be filled: what crosses it is limited, for all workers together."""

    #: bytes a second; none = no limit but in the windows
    rate: Size | None = None
    #: when there is another limit; the first one that is open decides
    windows: tuple[Window, ...] = ()


class Limits(Model):
    """How many workers are at one of these at once at most; 0 = no limit. A worker at a VM counts once for each."""

    # VMware says (VDDK programming guide): a host has 48 MB of NFC buffers, about 1 MB for each connection; 50 disks
    # at once on a host, 52 connections through a vCenter. A worker may have several disks open, and others than we are
    # there, too. Of datastores it says nothing: 8 workers are two VMs at `spread`.
    #: an ESXi host
    host: int = Field(default=8, ge=0)
    #: a datastore
    datastore: int = Field(default=8, ge=0)
    #: a vCenter
    vcenter: int = Field(default=32, ge=0)


class StoreSettings(Model):
    """Where backups are kept."""

    model_config = ConfigDict(json_schema_extra=one_of("path", "s3") | {"not": {"required": ["key_file", "key_env"]}})

    #: a folder on a file system with fsync and hard links (local disks, NFS)
    path: Path | None = None
    #: or an S3-compatible bucket
    s3: BucketSettings | None = None
    #: for a bucket: a folder on each worker for copies of maps, the dedup index, packs' tables; none = below /tmp
    cache: Path | None = None
    #: bytes that these copies take at most
    cache_size: Size = "10GiB"
    #: encrypts it: the file that holds its key (`understudy store key new` writes one); none = it is not encrypted
    key_file: Path | None = None
    #: or an environment variable
    key_env: str | None = None
    #: the site where it stands; empty = it can be read wherever replicas are, whatever else is down
    site: str = ""
    #: the link between it and other sites; without it, its site's
    link: str | None = None
    #: packs of which less than this share is in use are compacted; 0 = never
    compact_below: float = Field(default=0.5, ge=0, le=0.95)
    #: bytes a second that a compaction reads and writes at most; none = no limit
    compact_rate: Size | None = None
    #: share of the store that is read and checked a day: 0.02 = all of it in 50 days; 0 = never
    scrub: float = Field(default=0.02, ge=0, le=1)

    @model_validator(mode="after")
    def _one_place(self) -> StoreSettings:
        if (self.path is None) == (self.s3 is None):
            raise ValueError("either 'path' or 's3', exactly one")
        return self

    @property
    def where(self) -> str:
        """For people."""
        return str(self.path if self.path is not None else self.s3)

    @model_validator(mode="after")
    def _one_key(self) -> StoreSettings:
        if self.key_file is not None and self.key_env is not None:
            raise ValueError("either 'key_file' or 'key_env', not both")
        return self

    def key(self) -> bytes | None:
        """None for a store that is not encrypted. Raises `ConfigError`."""
        if self.key_file is None and self.key_env is None:
            return None
        return secrets.key(self.key_file, self.key_env, f"the key of the store {self.where}")


class RecoveryTarget(Model):
    """Where replicas go."""

    #: the site whose vCenter gets the replicas
    site: str
    #: of the VM's own files, and of each disk for which `datastores` has no other; one of that site's
    datastore: str
    #: source datastore -> datastore here, per disk; "*" is the default for all others
    datastores: dict[str, str] = Field(default_factory=dict)
    #: compute: a host's or a cluster's name; empty = the only cluster of the site
    compute: str = ""
    #: a resource pool, as a path with /; it must be there, empty = the top
    pool: str = ""
    #: a VM folder, as a path with /; empty = the top
    folder: str = ""
    #: source network -> network here; "*" is the default for all others, "" = the card is built disconnected
    networks: dict[str, str] = Field(default_factory=dict)
    #: in front of the source's name
    prefix: str = ""
    #: behind the source's name
    suffix: str = "_replica"
    #: of the replicas' disks
    provisioning: Provisioning = "thin"
    #: whether a sync keeps what it overwrites until it commits: "auto" where the store stands at another site
    undo: Literal["auto", "always", "never"] = "auto"
    #: whether network cards keep their addresses; without it, at another vCenter they do, within one they get new ones
    keep_macs: bool | None = None


class Flower(Model):
    """The login of Flower's page and API. Without one Flower only shows: its API is closed, and it changes nothing."""

    model_config = ConfigDict(json_schema_extra=one_of("password_file", "password_env"))

    #: who logs in
    user: str
    #: the password: a file's first line; never in this file
    password_file: Path | None = None
    #: or an environment variable
    password_env: str | None = None

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return secrets.read(self.password_file, self.password_env, f"the password of {self.user} in Flower")
