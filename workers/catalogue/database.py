"""How to reach the catalogue's database: engine, transactions, clock, and errors as sentences.

Two kinds of transaction. `read` sees one consistent state. `write` is alone: SQLite takes its only write lock at once
(BEGIN IMMEDIATE: a lock taken later could be refused without waiting), PostgreSQL locks the rows a function names.
Functions lock in the order target, run: so two of them never wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from workers.catalogue import complaints, forks
from workers.errors import CatalogueUnreachable, ConfigError

#: Seconds to wait for a lock that somebody else holds. Transactions here take milliseconds; half a minute outlasts a
#: slow disk's fsync storm, and is short of a task's time limit.
LOCK_WAIT = 30


class Database:
    """One engine per process, made when first used. Safe to share between threads and to carry over a fork."""

    def __init__(self, url: str, *, lock_wait: float = LOCK_WAIT) -> None:
        self._address = address(url)
        self._lock_wait = lock_wait
        self._engine: sa.Engine | None = None
        self._inherited: sa.Engine | None = None
        self._spoilt = False
        self._guard = threading.Lock()
        forks.watch(self)

    @property
    def url(self) -> str:
        """With its password: for opening the same catalogue elsewhere, not for printing."""
        return self._address.render_as_string(hide_password=False)

    def __str__(self) -> str:
        return self._address.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self._address.get_backend_name() == "sqlite"

    @property
    def engine(self) -> sa.Engine:
        with self._guard:
            if self._spoilt:
                raise CatalogueUnreachable(
                    f"this process was forked in the middle of a transaction, so it cannot use {self}; start it again"
                )
            if self._engine is None:
                make = _sqlite_engine if self.is_sqlite else _postgresql_engine
                self._engine = make(self._address, self._lock_wait)
            return self._engine

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.sentences(), forks.transaction(), self.engine.connect() as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """All of it or nothing, on stable storage when the block has ended without an error."""
        with self.sentences(), forks.transaction(), self.engine.connect() as conn:
            conn.execution_options(**{_WRITES: True})
            with conn.begin():
                yield conn

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """What the database refuses leaves this block as one of our errors."""
        try:
            yield
        except SQLAlchemyError as err:
            raise complaints.translate(err, str(self), self._lock_wait) from err

    def now(self) -> datetime:
        """The database's clock: the only one that decides about leases and slots."""
        with self.read() as conn:
            return now(conn)

    def close(self) -> None:
        with self._guard:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def close_idle(self) -> None:
        engine = self._engine
        if engine is not None:
            engine.dispose()

    def start_afresh(self, *, spoilt: bool) -> None:
        self._engine, self._inherited = None, self._engine  # kept: closing it is for the parent alone
        self._guard = threading.Lock()
        self._spoilt = spoilt and self.is_sqlite


def now(conn: sa.Connection) -> datetime:
    """The time of the statement, not of the transaction's begin: there may have been a wait for a lock between."""
    if conn.dialect.name == "sqlite":
        text: str = conn.exec_driver_sql("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')").scalar_one()
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    moment: datetime = conn.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return moment.astimezone(UTC)


def upsert(
    conn: sa.Connection, table: sa.Table, lines: Sequence[Mapping[str, Any]], *, update: tuple[str, ...] = ()
) -> None:
    """Insert rows; where a primary key is taken, set only the columns of `update` (none = leave that row alone)."""
    if not lines:
        return
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    if update:
        changed = {name: statement.excluded[name] for name in update}
        conn.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), list(lines))
    else:
        conn.execute(statement.on_conflict_do_nothing(index_elements=keys), list(lines))


def take_turns(conn: sa.Connection, about: str) -> None:
    """Let one transaction at a time do `about`. SQLite has one writer at a time anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(about, 0))))


def address(url: str) -> URL:
    """The checked address of a catalogue. Raises `ConfigError`."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as err:
        # The text is not repeated: it may hold a password.
        raise ConfigError(f"the catalogue's address cannot be understood; {_ALLOWED}") from err
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"the catalogue cannot live in {backend!r}; {_ALLOWED}")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise ConfigError(f"a catalogue in SQLite needs a plain file; {_ALLOWED}")
    return parsed.set(drivername="sqlite", database=str(Path(parsed.database).absolute()))


_ALLOWED = "write sqlite:////path/to/catalogue.db or postgresql+psycopg://user:password@host/database"

#: Execution option of a connection whose transactions write.
_WRITES = "understudy_writes"


def _sqlite_engine(url: URL, lock_wait: float) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": lock_wait})

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: see `begin` below
        # WAL: readers and the writer do not wait for each other. It stays in the file; said again, it changes nothing.
        # FULL: a commit that was answered survives a power cut. WAL's own default may lose the last ones.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(conn: sa.Connection) -> None:
        conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get(_WRITES) else "BEGIN")

    return engine


def _postgresql_engine(url: URL, lock_wait: float) -> sa.Engine:
    limits = {
        "lock_timeout": int(lock_wait * 1000),
        # A worker that was stopped inside a transaction must not hold its rows for ever.
        "idle_in_transaction_session_timeout": 60_000,
    }
    return sa.create_engine(
        url,
        pool_pre_ping=True,  # after a restart of the server the pool's connections are dead
        pool_size=4,
        connect_args={
            "connect_timeout": 10,
            "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
            # A silent link is noticed after 30 s + 3 x 10 s, not after the system's two hours.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
        },
    )
