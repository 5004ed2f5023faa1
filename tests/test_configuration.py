"""What is in force at the workers, for those who look while the files are wrong; and that no record has a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.configurations import FULL, alone_in, changed, document, understudy, write
from workers import configuration, settings
from workers.catalogue import Catalogue
from workers.errors import ConfigError

WORKER = "control@here"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_in(tmp_path, monkeypatch)


def in_force(data: dict[str, Any]) -> Catalogue:
    """As a worker records it."""
    write(data)
    loaded = settings.load_with_origins()
    catalogue = Catalogue.create(loaded.settings.catalogue)
    recorded = configuration.without_secrets(loaded.data)
    path = str(loaded.path.absolute())
    catalogue.configuration_taken(WORKER, path, digest=loaded.digest, data=recorded, waits="")
    return catalogue


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda text: text.replace("compact_below", "compact_belov"), id="an unknown key"),
        pytest.param(lambda text: text + "[groups.web\n", id="no TOML"),
        pytest.param(lambda text: text.partition('"sites"')[0] + '"sites" = {', id="the first half"),
    ],
)
def test_status_works_with_files_that_are_wrong(wrong: Any) -> None:
    catalogue = in_force(FULL)
    file = Path("understudy.toml")
    file.write_text(wrong(file.read_text()))
    said = understudy("status")
    assert said.code == 0, said
    top = next(line for line in said.err.splitlines() if "in force" in line)
    assert top.startswith("the configuration in force at control@here is that of ")
    assert "UTC; the newer one is refused: " in top and "understudy.toml" in top
    assert understudy("config", "check").err.splitlines()[0] == f"understudy: {top}"
    assert json.loads(understudy("config", "check", "--json").out)["in_force"] == [top]
    assert understudy("check").err.splitlines()[0] == f"understudy: {top}"
    catalogue.close()


def test_what_is_restored_is_what_was_in_force() -> None:
    catalogue = in_force(FULL)
    wanted = settings.load()
    (known,) = catalogue.configurations()
    assert configuration.restored(known, wanted) == wanted
    Path("understudy.toml").write_text('redis_env = "P"\ncatalogue = "sqlite:///catalogue.db"\n[groups')
    kept = configuration.last_in_force(Path("understudy.toml"), ConfigError("why"))
    assert kept is not None and (kept.settings.groups, kept.settings.sites) == (wanted.groups, wanted.sites)
    assert (kept.settings.redis_env, kept.settings.redis_given) == ("P", None)
    catalogue.close()


def test_nobody_knows_what_was_in_force() -> None:
    write(FULL)
    Catalogue.create(settings.load().catalogue).close()
    Path("understudy.toml").write_text(document(FULL) + "[")
    said = understudy("status")
    assert said.code == 1 and said.err.startswith("understudy: understudy.toml is not valid TOML")


def test_the_record_has_no_secret() -> None:
    catalogue = in_force(changed(catalogue="sqlite:///catalogue.db"))
    with catalogue.read() as conn:
        rows = str(conn.execute(sa.text("select * from configurations")).all())
    assert "hunter2" not in rows and "redis://***@127.0.0.1:1/0" in rows
    catalogue.close()


def test_a_worker_that_is_gone_refuses_nothing_any_more() -> None:
    catalogue = in_force(FULL)
    path = str(Path("understudy.toml").absolute())
    catalogue.configuration_refused(WORKER, path, mark="m", sentence="first: no\nsecond: no")
    (said,) = configuration.notices(catalogue)
    assert said.endswith("the newer one is refused: first: no (and 1 more; `understudy config check` has all)")
    with catalogue.write() as conn:
        conn.execute(sa.text("update configurations set seen = '2000-01-01 00:00:00.000000'"))
    assert configuration.notices(catalogue) == []
    catalogue.close()


def test_workers_that_refuse_the_same_are_one_sentence() -> None:
    catalogue = in_force(FULL)
    path = str(Path("understudy.toml").absolute())
    catalogue.configuration_taken("prod@here", path, digest="d", data={}, waits="redis changed: wait")
    for worker in ("prod@here", WORKER):
        catalogue.configuration_refused(worker, path, mark="m", sentence="no")
    first, second = configuration.notices(catalogue)
    assert first.startswith("the configuration in force at control@here, prod@here is that of ")
    assert second == "configuration at prod@here: redis changed: wait"
    catalogue.close()
