"""Which version a catalogue's tables are of. Asked at each opening, without Alembic: loading it costs 0.3 s of CPU."""

from __future__ import annotations

import sqlalchemy as sa

from workers.errors import ConfigError

#: the migrations in their order (migrations/versions); the last makes the tables of this program
VERSIONS = (
    "0001",
    "0002_config",
    "0003_members",
    "0004_pairs",
    "0005_verify",
    "0006_undo",
    "0007_spread",
    "0008_errors",
    "0009_places",
    "0010_waiting",
)
#: what a version was called before the first release -> its name
RENAMED = {"0009_copy6": "0009_places"}


def demand_head(conn: sa.Connection, name: str) -> None:
    """Raises `ConfigError` unless the tables are exactly this program's."""
    present = refuse_newer(conn, name)
    if present is None:
        raise ConfigError(f"there is no catalogue in {name}; run `understudy init` to make one")
    if present != VERSIONS[-1]:
        raise ConfigError(
            f"the catalogue {name} is of an older version ({present}); stop all workers and run `understudy init`, "
            "which brings it up to this one"
        )


def refuse_newer(conn: sa.Connection, name: str) -> str | None:
    """The version of the tables, None where there are none."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    present: str | None = conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    present = RENAMED.get(present or "", present)
    if present is not None and present not in VERSIONS:
        raise ConfigError(
            f"the catalogue {name} is of a newer version ({present}) than this program knows; update this program"
        )
    return present
