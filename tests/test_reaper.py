"""The reaper, and runs whose site or store the configuration has lost. The rest of it: tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from workers import backup, reaper, replicate, settings
from workers.catalogue import Catalogue
from workers.errors import ConfigError
from workers.models import Run, RunKind, RunState, Trigger
from workers.run import Here

CONFIG = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "127.0.0.1:1"
user = "u"
password_file = "password"
[stores.main]
path = "store"
[targets.dr]
site = "prod"
datastore = "ds"
"""


@pytest.fixture
def here(tmp_path: Path) -> Here:
    (tmp_path / "understudy.toml").write_text(CONFIG)
    conf = settings.load(tmp_path / "understudy.toml")
    return Here(conf, Catalogue.create(conf.catalogue))


def requested(here: Here, target: str, *, site: str, kind: RunKind = RunKind.BACKUP) -> Run:
    return here.catalogue.request_run(kind, target, vm="web", site=site, trigger=Trigger.SCHEDULE)[0]


def long_ago(here: Here) -> None:
    """What the passing of time does to messages and leases."""
    with here.catalogue.write() as conn:
        conn.execute(sa.text("update runs set sent = '2000-01-01 00:00:00.000000'"))
        conn.execute(sa.text("update runs set lease_until = '2000-01-01 00:00:00.000000' where owner is not null"))


def test_a_run_of_a_site_that_is_gone_ends_with_a_sentence(here: Here) -> None:
    """No queue takes its message, and no worker could do it: it must not keep the others from being sent."""
    gone = requested(here, "chain:main:u1", site="gone")
    other = requested(here, "chain:main:u2", site="prod")
    long_ago(here)
    found = reaper.reap(here)
    assert [run.id for run in found.lost] == [other.id]
    ended = here.catalogue.run(gone.id)
    assert ended.state is RunState.FAILED
    assert "sites.gone" in str(ended.error)
    assert here.catalogue.failures(run=gone.id)[0].family == "configuration"


def test_what_was_left_at_a_site_that_is_gone_is_said_once(here: Here) -> None:
    left = requested(here, "chain:main:u1", site="gone")
    assert here.catalogue.claim(left.id, "me", 60)
    here.catalogue.remember(left.id, "me", snapshot="snapshot-7")
    here.catalogue.finish(left.id, "me", RunState.FAILED, error="its vCenter went away", family="x")
    assert reaper.reap(here).unclean == []
    assert any("remove the snapshot" in reason for reason in here.catalogue.run(left.id).reasons)
    assert here.catalogue.unclean_runs() == []


@pytest.mark.parametrize(
    ("store", "site", "add"),
    [
        pytest.param("lost", "prod", r"add stores\.lost again \(configured: main\)", id="store"),
        pytest.param("main", "away", r"add sites\.away again \(configured: prod\)", id="site"),
    ],
)
def test_a_pair_older_than_the_configuration(here: Here, store: str, site: str, add: str) -> None:
    pair = here.catalogue.ensure_pair(
        source_site="prod",
        source="u1",
        vm="web",
        store=store,
        recovery_target="dr",
        site=site,
        replica_name="web_replica",
    )
    run = requested(here, replicate.target_of(pair.id), site="prod", kind=RunKind.SYNC)
    with pytest.raises(ConfigError, match=add):
        replicate.run(here, run.id)
    assert here.catalogue.run(run.id).state is RunState.FAILED


def test_a_backup_to_a_store_that_is_gone(here: Here) -> None:
    run = requested(here, "chain:lost:u1", site="prod")
    with pytest.raises(ConfigError, match=r"add stores\.lost again"):
        backup.run(here, run.id)
    assert here.catalogue.run(run.id).state is RunState.FAILED
