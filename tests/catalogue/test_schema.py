"""Making, opening and migrating a catalogue."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.catalogue.races import race
from tests.services import Postgres
from workers.catalogue import Catalogue, migrations, schema
from workers.catalogue.version import VERSIONS
from workers.errors import ConfigError, StoreDamaged


def test_the_migrations_make_the_tables_of_the_models(catalogue: Catalogue) -> None:
    with catalogue.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []


def test_each_migration_has_its_place_in_the_list_of_versions() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == VERSIONS


def test_an_open_catalogue_does_without_alembic(catalogue: Catalogue) -> None:
    """Each process of each worker opens one, and Alembic would cost it 0.3 s."""
    ask = "import sys; from workers.catalogue import Catalogue; Catalogue.open(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask, catalogue.url], capture_output=True, text=True, check=True)
    assert "workers.catalogue.version" in done.stdout.split()
    assert "alembic" not in done.stdout.split()


def test_the_partial_index_is_the_one_of_the_models(catalogue: Catalogue) -> None:
    """Alembic does not compare the condition of an index."""
    live = "state IN ('queued', 'running')"
    with catalogue.read() as conn:
        (found,) = [
            index for index in sa.inspect(conn).get_indexes("runs") if index["name"] == "uq_runs_one_live_per_target"
        ]
    condition = str(found["dialect_options"][f"{'sqlite' if catalogue.is_sqlite else 'postgresql'}_where"])
    assert found["unique"]
    assert "queued" in condition and "running" in condition and "succeeded" not in condition
    assert str(schema.LIVE.compile(compile_kwargs={"literal_binds": True})).endswith(live)


def test_the_realm_is_made_once(url: str) -> None:
    first = Catalogue.create(url)
    assert Catalogue.create(url).realm == first.realm == Catalogue.open(url).realm


def test_eight_processes_make_one_catalogue(url: str) -> None:
    realms = race(8, _make, url)
    assert len(realms) == 8 and len(set(realms)) == 1


def _make(_number: int, url: str) -> str:
    return Catalogue.create(url).realm


def test_open_refuses_what_is_not_there(url: str) -> None:
    with pytest.raises(ConfigError, match="run `understudy init` to make one"):
        Catalogue.open(url)


def test_a_version_by_its_earlier_name_is_the_same(url: str) -> None:
    old = Catalogue(url)
    if old.file is not None:
        old.file.touch()
    with old.write() as conn:
        migrations.upgrade(conn, url, "0009_places")
    _pretend(old, "0009_copy6")
    with pytest.raises(ConfigError, match=r"older version \(0009_places\).*understudy init"):
        Catalogue.open(url)
    realm = Catalogue.create(url).realm
    assert Catalogue.open(url).realm == realm
    with old.read() as conn:
        assert conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == VERSIONS[-1]
    old.close()


def test_open_refuses_a_newer_version(catalogue: Catalogue) -> None:
    _pretend(catalogue, "9999")
    with pytest.raises(ConfigError, match="newer version \\(9999\\)"):
        Catalogue.open(catalogue.url)
    with pytest.raises(ConfigError, match="newer version"):
        Catalogue.create(catalogue.url)


def test_open_refuses_an_older_version(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    # The program is made to believe in a later version than the tables have.
    monkeypatch.setattr("workers.catalogue.version.VERSIONS", (*VERSIONS, "9998"))
    with pytest.raises(ConfigError, match=r"older version \(\w+\).*understudy init"):
        Catalogue.open(catalogue.url)


def _pretend(catalogue: Catalogue, version: str) -> None:
    with catalogue.write() as conn:
        conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")


@pytest.mark.parametrize(
    "url",
    ["nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "postgresql+psycopg://u:secret@h:x/d"],
)
def test_a_useless_address_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:////path") as caught:
        Catalogue.open(url)
    assert "secret" not in str(caught.value)


def test_the_password_is_in_the_url_and_nowhere_else() -> None:
    catalogue = Catalogue("postgresql://u:secret@localhost/d")
    assert "secret" in catalogue.url
    assert str(catalogue) == "postgresql+psycopg://u:***@localhost/d"


def test_sqlite_keeps_what_it_has_answered(tmp_path: Path) -> None:
    catalogue = Catalogue.create(f"sqlite:///{tmp_path}/deep/er/catalogue.db")
    with catalogue.read() as conn:
        asked = {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")}
    assert asked == {"journal_mode": "wal", "synchronous": 2}


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "catalogue.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreDamaged, match="put back a copy"):
        Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        Catalogue.create(f"sqlite:///{tmp_path}/file/catalogue.db")


def test_an_empty_sqlite_file_is_not_a_catalogue(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "catalogue.db").close()
    with pytest.raises(ConfigError, match="understudy init"):
        Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")


def test_a_database_that_the_server_does_not_have(postgres: Postgres) -> None:
    with pytest.raises(ConfigError, match="create it"):
        Catalogue.open(postgres.url("nowhere"))


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    """They name VMs and what failed; SQLite's own files beside it follow its rights."""
    before = os.umask(0o022)
    try:
        catalogue = Catalogue.create(f"sqlite:///{tmp_path}/catalogue.db")
        catalogue.now()
    finally:
        os.umask(before)
    files = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.glob("catalogue.db*")}
    assert files["catalogue.db"] == 0 and set(files.values()) == {0}
    catalogue.close()
