"""Two sites, a store and a catalogue without any vCenter behind them: for what only the catalogue decides."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from workers import settings
from workers.catalogue import Catalogue, schema
from workers.models import Run, RunState, VmIdentity, VmSummary
from workers.run import Here

#: groups, recovery targets and tuning are each test's own
PLACES = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "127.0.0.1:1"
user = "u"
password_env = "X"
[sites.dr]
vcenter = "127.0.0.1:2"
user = "u"
password_env = "X"
[stores.main]
path = "store"
scrub = 0
"""


def configured(folder: Path, policy: str) -> Here:
    """A new catalogue under the places and this policy."""
    file = folder / "understudy.toml"
    file.write_text(PLACES + policy)
    conf = settings.load(file)
    return Here(conf, Catalogue.create(conf.catalogue))


def changed(here: Here, folder: Path, policy: str, *, places: str = PLACES) -> Here:
    """The same catalogue under another policy."""
    file = folder / "understudy.toml"
    file.write_text(places + policy)
    return Here(settings.load(file), here.catalogue)


def identity(name: str, *, site: str = "prod") -> VmIdentity:
    given = {"vcenter": f"v-{site}", "bios_uuid": "b", "moref": f"vm-{name}"}
    uuid = f"uuid-{name}" if site == "prod" else f"uuid-{site}-{name}"
    return VmIdentity(**given, site=site, instance_uuid=uuid, name=name)


def seen(here: Here, *names: str, site: str = "prod") -> None:
    """The inventory of the site is exactly these."""
    found = [
        VmSummary(identity=identity(name, site=site), power="poweredOn", template=False, folder="") for name in names
    ]
    here.catalogue.record_inventory(site, found)


def end(here: Here, run: Run, family: str = "transient", state: RunState = RunState.FAILED) -> None:
    """The run ends so, without having done anything."""
    assert here.catalogue.claim(run.id, "me", 60)
    error = "it broke" if state is RunState.FAILED else None
    here.catalogue.finish(run.id, "me", state, error=error, family=family)


def age_farewells(here: Here, days: float) -> None:
    """Who has left, left so many days earlier: the database's clock cannot be put forward."""
    rows = schema.memberships
    with here.catalogue.write() as conn:
        for row in conn.execute(sa.select(rows).where(rows.c.left.is_not(None))).all():
            mine = sa.and_(rows.c.vm == row.vm, rows.c.group == row.group)
            conn.execute(sa.update(rows).where(mine).values(left=row.left - timedelta(days=days)))
