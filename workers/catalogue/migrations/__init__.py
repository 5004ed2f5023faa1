"""Bringing a catalogue's tables to the version of this program, with Alembic and without its configuration file.

A new version is a file of its own in `versions`, which repeats the definitions it needs: schema.py goes on changing, a
migration never does. tests/catalogue/test_schema.py fails until the two agree, and its output names the difference.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from workers.catalogue.database import take_turns
from workers.errors import ConfigError


def upgrade(conn: sa.Connection, name: str) -> None:
    """To the newest version, within the caller's transaction; a second caller waits and finds nothing to do."""
    take_turns(conn, "migrations")
    config = _config()
    _refuse_newer(conn, name)
    config.attributes["connection"] = conn
    command.upgrade(config, "head")


def demand_head(conn: sa.Connection, name: str) -> None:
    """Raises `ConfigError` unless the tables are exactly this program's."""
    _refuse_newer(conn, name)
    present = _present(conn)
    if present is None:
        raise ConfigError(f"there is no catalogue in {name}; run `understudy init` to make one")
    if present != _scripts().get_current_head():
        raise ConfigError(
            f"the catalogue {name} is of an older version ({present}); stop all workers and run `understudy init`, "
            "which brings it up to this one"
        )


def _refuse_newer(conn: sa.Connection, name: str) -> None:
    present = _present(conn)
    if present is not None and present not in {script.revision for script in _scripts().walk_revisions()}:
        raise ConfigError(
            f"the catalogue {name} is of a newer version ({present}) than this program knows; update this program"
        )


def _present(conn: sa.Connection) -> str | None:
    return MigrationContext.configure(conn).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
