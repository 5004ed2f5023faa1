"""Where things are: vCenters and their datastores, stores, where replicas go, the login of Flower."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, model_validator

from workers.errors import ConfigError
from workers.models import Model, Provisioning

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
    #: of the VM's own files, and of each disk for which `datastores` has no other
    datastore: str
    #: source datastore -> datastore here, per disk; "*" is the default for all others
    datastores: dict[str, str] = Field(default_factory=dict)
    #: compute: a host's or a cluster's name; empty = the only cluster of the site
    compute: str = ""
    #: pool and folder must be there: a mistyped name would else become a place with other people's rights on it
    pool: str = ""
    folder: str = ""
    #: source network -> network here; "*" is the default for all others, "" = the card is built disconnected
    networks: dict[str, str] = Field(default_factory=dict)
    prefix: str = ""
    suffix: str = "_replica"
    provisioning: Provisioning = "thin"
    #: none = kept at another vCenter, new ones within one
    keep_macs: bool | None = None


class Flower(Model):
    """The login of Flower's page and API. Without one Flower only shows: its API is closed, and it changes nothing."""

    user: str
    password_file: Path | None = None
    password_env: str | None = None

    _one_password = model_validator(mode="after")(_one_password)

    def password(self) -> str:
        return _password(self.password_file, self.password_env, f"{self.user} in Flower")
