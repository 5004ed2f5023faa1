"""Bringing a catalogue's tables to the version of this program, with Alembic and without its configuration file.

A new version is a file of its own in `versions`, which repeats the definitions it needs: schema.py goes on changing, a
migration never does; its name goes to the end of version.py's list. tests/catalogue/test_schema.py fails until they
agree, and its output names the difference.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from workers.catalogue.database import take_turns
from workers.catalogue.version import RENAMED, refuse_newer


def upgrade(conn: sa.Connection, name: str, to: str = "head") -> None:
    """To the newest version, or `to` that one, within the caller's transaction; a second caller waits and finds
    nothing to do."""
    take_turns(conn, "migrations")
    if refuse_newer(conn, name) is not None:
        for before, now in RENAMED.items():
            conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{now}' WHERE version_num = '{before}'")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, to)
