"""First steps: a configuration to edit, then the catalogue and the stores that it names. Everything may be repeated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from workers import settings
from workers.catalogue import Catalogue
from workers.errors import ConfigError, NotFound
from workers.settings import StoreSettings
from workers.store import Store

EXAMPLE = """\
# Understudy: two vCenters, one store, one group. Every key that is there is shown in docs/operations.md.
# Relative paths start at this file's folder. No password belongs into this file.

# Redis carries the messages: with AOF and maxmemory-policy noeviction (docs/operations.md says why).
redis = "redis://127.0.0.1:6379/0"

# The catalogue: who works on what, what was committed. A file is right for one control host; with workers on
# several machines use PostgreSQL: "postgresql+psycopg://understudy@db.example.com/understudy"
catalogue = "sqlite:///catalogue.db"

# --- sites: one vCenter each, and where the workers of that site have its datastores mounted -------------------------

[sites.prod]
vcenter = "vcenter.prod.example.com"
user = "understudy@vsphere.local"
password_file = "secrets/prod"            # its first line; or: password_env = "UNDERSTUDY_PROD_PASSWORD"
# ca_file = "prod-ca.pem"                 # when the system's CAs do not know the vCenter's certificate
# thumbprint = "AA:BB:..."                # or its SHA-256 thumbprint

[sites.prod.datastores]
prod-ds1 = "/mnt/understudy/prod-ds1"

[sites.dr]
vcenter = "vcenter.dr.example.com"
user = "understudy@vsphere.local"
password_file = "secrets/dr"

[sites.dr.datastores]
dr-ds1 = "/mnt/understudy/dr-ds1"

# --- stores: where restore points are kept. Both sites' workers must see the same folder ---------------------------

[stores.main]
path = "store"
# key_file = "secrets/store-key"           # encrypts it: `understudy store key new secrets/store-key` before `init`

# --- recovery targets: where replicas go -----------------------------------------------------------------------------

[targets.dr]
site = "dr"
datastore = "dr-ds1"
# compute = "Cluster-DR"                  # a cluster or a host; may be left out where there is only one
# pool = "Replicas"
# folder = "Replicas"
suffix = "_replica"
networks = { "*" = "VM Network" }         # source network -> network there; "*" = all others
# datastores = { "*" = "dr-ds1" }         # source datastore -> datastore there, disk by disk
# provisioning = "thin"                   # or "original", "thick", "eager"

# --- groups: which VMs, how often, to where --------------------------------------------------------------------------

[groups.web]
source = "prod"
vms = ["web-*", "db-01"]                  # names or patterns
store = "main"
target = "dr"                             # left out: backed up only; or several: ["dr", "far"]
backup = { every = "1h" }                 # or: { cron = "30 1 * * *", timezone = "Europe/Berlin" }
keep = { last = 14, daily = 14, weekly = 8 }   # restore points per VM; also hourly, monthly, yearly, timezone
# replicate = { after_backup = true }     # the default; or on a schedule of its own: schedule = { every = "4h" }

# [groups.web.overrides.db-01]
# excluded_disks = ["Hard disk 3"]

# --- Flower: with a login people may also enqueue and revoke there; without one it only shows ------------------------

# [flower]
# user = "operator"
# password_file = "secrets/flower"
"""


def write_example(path: Path) -> str:
    """Write the example where nothing is. Raises `ConfigError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never over somebody's file. Its owner alone: a Redis or PostgreSQL address may come to hold a password.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(EXAMPLE)
    except OSError as err:
        raise ConfigError(f"the configuration {path} cannot be written: {err.strerror}") from err
    return (
        f"wrote the example configuration {path}\n"
        "Edit it, write the vCenters' passwords into the files that it names, then run `understudy init` again."
    )


def prepare(config: Path) -> Iterator[str]:
    """Make what the configuration names, or bring it up to this version; says of each what was done."""
    wanted = settings.load(config)
    yield f"configuration {config}"
    yield _catalogue(wanted.catalogue)
    for name, store in wanted.stores.items():
        yield _store(name, store)
    yield "Next: `understudy check`, then start the workers and Beat (docs/operations.md)."


def _catalogue(url: str) -> str:
    try:
        opened = Catalogue.open(url)
        said = "is there and up to date"
    except ConfigError:  # none, or an older one; anything newer or unreadable is said by `create`
        opened = Catalogue.create(url)
        said = "made, or brought up to this version"
    try:
        return f"catalogue {opened}: {said}, realm {opened.realm}"
    finally:
        opened.close()


def _store(name: str, place: StoreSettings) -> str:
    try:
        Store.at(place)
        return f"store {name} {place.where}: is there"
    except NotFound:
        made = Store.make(place)
        return f"store {name} {place.where}: made{', encrypted' if made.encrypted else ''}"
