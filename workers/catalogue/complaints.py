"""What SQLite and PostgreSQL complain about, as sentences that say what to do next."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from workers.errors import (
    BadInput,
    CatalogueUnreachable,
    ConfigError,
    LoginFailed,
    NoSpace,
    StoreDamaged,
    UnderstudyError,
)


def translate(err: SQLAlchemyError, name: str, lock_wait: float) -> UnderstudyError:
    """Our error for one of the database's; `name` is the catalogue's address without its password."""
    if isinstance(err, PoolTimeout):
        return CatalogueUnreachable(
            f"all connections of this process to the catalogue {name} are busy; it will be tried again"
        )
    if not isinstance(err, DBAPIError) or err.orig is None:
        return _unexpected(name, str(err))
    said = str(err.orig).strip().splitlines()[0] if str(err.orig).strip() else type(err.orig).__name__
    if name.startswith("sqlite"):
        return _sqlite(said, name, lock_wait) or _unexpected(name, said)
    code = getattr(err.orig, "sqlstate", None)
    if code:
        return _postgresql(code, said, name, lock_wait) or _unexpected(name, said)
    if isinstance(err, DataError):  # the driver refused it (a NUL in a text) before the server saw it
        return BadInput(f"the catalogue {name} can not hold what was given: {said}")
    # Without a code the server did not answer the statement: no connection, or it ended.
    return _no_connection(str(err.orig), said, name)


def _sqlite(said: str, name: str, lock_wait: float) -> UnderstudyError | None:
    low = said.lower()
    if "locked" in low or "busy" in low:
        return CatalogueUnreachable(
            f"the catalogue {name} is locked: another process has kept its write lock for more than {lock_wait:g} s; "
            "it will be tried again. If it stays so, look for a stopped worker or a copy job that holds the file"
        )
    if "disk is full" in low:
        return NoSpace(f"the disk that holds the catalogue {name} is full; make room, the work then goes on by itself")
    if "disk i/o error" in low:
        return CatalogueUnreachable(
            f"the disk that holds the catalogue {name} answers with an error ({said}); look at the system's log"
        )
    if "no such table" in low or "no such column" in low:
        return _no_tables(name)
    if "unable to open" in low:
        return ConfigError(f"the catalogue {name} cannot be opened; check that its folder exists and may be written to")
    if "readonly" in low:
        return ConfigError(f"the catalogue {name} may not be written to; check the rights on the file and its folder")
    if "malformed" in low or "not a database" in low:
        return StoreDamaged(
            f"the catalogue {name} is damaged ({said}); stop all workers and put back a copy, or rebuild it"
        )
    return None


def _postgresql(code: str, said: str, name: str, lock_wait: float) -> UnderstudyError | None:
    if code == "55P03":
        return CatalogueUnreachable(
            f"the catalogue {name} is locked: another session has kept a row for more than {lock_wait:g} s; "
            "it will be tried again. If it stays so, look for a stopped worker in pg_stat_activity"
        )
    if code in ("40001", "40P01"):
        return CatalogueUnreachable(f"the catalogue {name} gave another transaction the precedence; try again")
    if code == "53100":
        return NoSpace(f"the disk of the catalogue {name} is full; make room, the work then goes on by itself")
    if code[:2] in ("08", "57", "53", "25"):
        # connection lost, server shutting down or starting, out of connections, session ended by a time limit
        return CatalogueUnreachable(f"the catalogue {name} does not answer ({said}); it will be tried again")
    if code[:2] == "28":
        return LoginFailed(f"the catalogue {name} refuses the login ({said}); check user, password and pg_hba.conf")
    if code in ("42P01", "42703"):
        return _no_tables(name)
    if code == "3D000":
        return ConfigError(
            f"the server has no such database as the catalogue {name}; create it, then `understudy init`"
        )
    if code == "42501":
        return ConfigError(f"the catalogue {name} may not be used by this user ({said}); grant it the rights")
    return None


def _no_connection(full: str, said: str, name: str) -> UnderstudyError:
    """While a connection is being made, libpq has only a text."""
    if "authentication failed" in full or "no password supplied" in full or "no pg_hba.conf entry" in full:
        return LoginFailed(f"the catalogue {name} refuses the login; check user, password and pg_hba.conf")
    if "database" in full and "does not exist" in full:
        return ConfigError(
            f"the server has no such database as the catalogue {name}; create it, then `understudy init`"
        )
    return CatalogueUnreachable(
        f"the catalogue {name} does not answer ({said}); it will be tried again. Is the server running and reachable?"
    )


def _no_tables(name: str) -> UnderstudyError:
    return ConfigError(f"the catalogue {name} lacks a table or column of this version; run `understudy init`")


def _unexpected(name: str, said: str) -> UnderstudyError:
    return UnderstudyError(
        f"the catalogue {name} refused a statement: {said}. This is a fault of this program; please report it"
    )
