"""Where things are: vCenters and their datastores, stores, where replicas go, the login of Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator

from workers.models import Model, Provisioning
from workers.settings import secrets
from workers.settings.values import Size, one_of, size

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

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return secrets.read(self.password_file, self.password_env, f"the password of {self.user} at {self.vcenter}")

    def reaches(self, datastore: str) -> bool:
        """Whether there is any way to the disks on it, as far as the configuration says."""
        nbd = self.vddk is not None and "nbd" in self.carriers
        return datastore in self.datastores or nbd or "hotadd" in self.carriers

    @property
    def bytes_per_second(self) -> int | None:
        return size(self.worker_rate) if self.worker_rate is not None else None


class StoreSettings(Model):
    """Where backups are kept."""

    #: a folder on a file system with fsync and hard links (local disks, NFS)
    path: Path
    #: the site where it stands; empty = it can be read wherever replicas are, whatever else is down
    site: str = ""
    #: packs of which less than this share is in use are compacted; 0 = never
    compact_below: float = Field(default=0.5, ge=0, le=0.95)
    #: bytes a second that a compaction reads and writes at most; none = no limit
    compact_rate: Size | None = None
    #: share of the store that is read and checked a day: 0.02 = all of it in 50 days; 0 = never
    scrub: float = Field(default=0.02, ge=0, le=1)


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
