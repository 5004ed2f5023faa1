"""The catalogue's tables. A change here needs a migration; a test compares the two on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from workers.models import RunState


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite has no time zones, so there the offset is dropped on the way in and put back."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; the catalogue keeps aware times only")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

#: `sa.BigInteger` would not be SQLite's row id, which is what counts up by itself there.
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **more)


def _maybe(name: str) -> sa.Column[str | None]:
    return sa.Column(name, sa.Text)


def _bytes(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON, nullable=False)


def _maybe_json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(none_as_null=True))


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, UtcTime, nullable=nullable)


#: One row: which realm this is. The realm's id is made once, when the catalogue is.
realm = sa.Table("realm", metadata, _text("id", primary_key=True), _time("created"))

#: What the last complete answer of each vCenter said. Rows are never removed, only marked as gone.
vms = sa.Table(
    "vms",
    metadata,
    _text("site", primary_key=True),
    _text("instance_uuid", primary_key=True),
    _text("vcenter"),
    _text("bios_uuid"),
    _text("moref"),
    _text("name"),
    _text("power"),
    sa.Column("template", sa.Boolean, nullable=False),
    _text("folder"),
    _maybe_json("datastores"),
    _maybe("cluster"),
    _maybe_json("tags"),
    _time("last_seen"),
    _time("gone_since", nullable=True),
)

#: How the reading of each site's inventory goes. `asked` is when the answer that counts was asked for.
inventories = sa.Table(
    "inventories",
    metadata,
    _text("site", primary_key=True),
    _time("asked", nullable=True),
    _time("complete", nullable=True),
    _time("failed", nullable=True),
    _maybe("why"),
)

#: Who is and who was in a group. A VM that left has `left` and `why`; what is kept of it stays for the group's grace.
memberships = sa.Table(
    "memberships",
    metadata,
    _text("group", primary_key=True),
    _text("vm", primary_key=True),
    _text("site"),
    _text("name"),
    _time("since"),
    _time("left", nullable=True),
    _maybe("why"),
)

pairs = sa.Table(
    "pairs",
    metadata,
    _text("id", primary_key=True),
    _text("source_site"),
    _text("source"),
    _text("vm"),
    _text("store"),
    _text("recovery_target"),
    _text("site"),
    _maybe("replica"),
    _text("replica_name"),
    sa.Column("generation", sa.Integer, nullable=False),
    _text("failover"),
    _time("created"),
    sa.UniqueConstraint("source", "recovery_target"),
)

#: What is written to, and the number that its newest run carries. The row is also the lock under which runs start.
targets = sa.Table(
    "targets",
    metadata,
    _text("target", primary_key=True),
    sa.Column("fence", Number, nullable=False),
    sa.Column("forgiven", Number),  # failures of runs up to this fence count no more: a person said `resume`
)

#: What people said about a target: paused, disabled, approved, forgotten. At most one row of each kind.
holds = sa.Table(
    "holds",
    metadata,
    _text("target", primary_key=True),
    _text("kind", primary_key=True),
    _time("since"),
    _text("who"),
    _text("reason"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("number", Number, primary_key=True),  # the order in which runs were made; no clock is asked
    _text("id", unique=True),
    _text("kind"),
    _text("target"),
    _text("vm"),
    _text("site"),
    _text("trigger"),
    _maybe("slot"),
    _text("state"),
    sa.Column("fence", Number, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False, server_default=sa.text("0")),
    _json("memory"),
    _time("created"),
    _time("sent"),  # when a message for this run was last put into a queue
    _time("started", nullable=True),
    _time("ended", nullable=True),
    _maybe("owner"),
    _time("lease_until", nullable=True),
    _time("not_before", nullable=True),
    _maybe("point"),
    _bytes("read"),
    _bytes("written"),
    _bytes("stored"),
    _json("reasons"),
    _maybe("error"),
    _maybe("family"),  # of the failure
    sa.UniqueConstraint("target", "fence"),
    sa.UniqueConstraint("target", "kind", "slot"),
    sa.Index("ix_runs_vm_number", "vm", "number"),
)

#: The live states, as literals: a partial index cannot take parameters.
LIVE = runs.c.state.in_([sa.literal_column(f"'{state}'") for state in (RunState.QUEUED, RunState.RUNNING)])

sa.Index("uq_runs_one_live_per_target", runs.c.target, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)

slices = sa.Table(
    "slices",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    _text("disk", primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True),
    _bytes("end"),
    _bytes("done"),
    _text("made"),
    _bytes("read"),
    _bytes("written"),
    _bytes("stored"),
    _maybe("owner"),
    _time("lease_until", nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("errors", sa.Integer, nullable=False, server_default=sa.text("0")),
    _time("began", nullable=True),
    _time("ended", nullable=True),
    _maybe("error"),
)

#: By run: a commit that is repeated finds its own row. No foreign key to `runs`: a rebuilt catalogue has sync points
#: (read from the replicas) whose runs are lost.
sync_points = sa.Table(
    "sync_points",
    metadata,
    _text("run", primary_key=True),
    sa.Column("pair", sa.Text, sa.ForeignKey("pairs.id"), nullable=False),
    _text("vm"),
    _text("replica"),
    _text("point"),
    _maybe("parent"),
    sa.Column("fence", Number, nullable=False),
    _time("data_time"),
    _time("committed"),
    _text("mode"),
    _json("change_ids"),
    _bytes("written"),
    _json("reasons"),
    sa.UniqueConstraint("pair", "fence"),
)

#: Replicas whose cursor says `applying`, for status. The cursor is the truth.
half_applied = sa.Table(
    "half_applied",
    metadata,
    _text("pair", primary_key=True),
    _text("base"),
    _text("toward"),
    _text("undo"),
    _time("since"),
)

#: A mirror of the stores' manifests for status and dispatch. The store is the truth.
points = sa.Table(
    "points",
    metadata,
    _text("store", primary_key=True),
    _text("vm", primary_key=True),
    _text("id", primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    _maybe("parent"),
    _text("run"),
    _text("name"),
    _text("consistency"),
    _time("created"),
    _time("data_time"),
    _bytes("capacity"),
    _bytes("read"),
    _bytes("changed"),
    _bytes("stored"),
    sa.Index("ix_points_store_vm_seq", "store", "vm", "seq"),
)

#: Who has one of few places just now: of a link, a host, a datastore, a vCenter. With `waits_since`: who waits for one.
places = sa.Table(
    "places",
    metadata,
    _text("resource", primary_key=True),
    _text("holder", primary_key=True),
    _time("lease_until"),
    _time("waits_since", nullable=True),
    sa.Index("ix_places_holder", "holder"),
)

failures = sa.Table(
    "failures",
    metadata,
    sa.Column("number", Number, primary_key=True),
    _time("at"),
    _maybe("run"),
    _maybe("task"),
    _maybe("vm"),
    _text("kind"),
    _text("family"),
    _text("message"),
    sa.Index("ix_failures_run", "run"),
    sa.Index("ix_failures_task", "task"),
    sa.Index("ix_failures_vm_number", "vm", "number"),
)

#: How far each replica or store ("pair:<id>", "store:<name>") was compared in this round, and when last all of it was.
scrubs = sa.Table(
    "scrubs",
    metadata,
    _text("target", primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    _time("began"),
    _time("ended", nullable=True),
    _text("part"),
    _bytes("offset"),
    _bytes("covered"),
    _bytes("total"),
    _bytes("unread"),
    _time("whole_began", nullable=True),
    _time("whole_ended", nullable=True),
)

#: Where a replica was found to differ from its sync point, as last seen; mended or compared again, a row goes.
damages = sa.Table(
    "damages",
    metadata,
    _text("target", primary_key=True),
    _text("disk", primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True),
    _bytes("end"),
    _bytes("granules"),
    _text("label"),
    _text("point"),
    _text("run"),
    _time("found"),
)

#: Which configuration each worker works by, and which newer one it refuses. The files are the truth.
configurations = sa.Table(
    "configurations",
    metadata,
    _text("worker", primary_key=True),
    _text("path", primary_key=True),
    _text("digest"),
    _json("data"),
    _time("since"),
    _text("waits"),
    _text("refused"),
    _text("mark"),
    _time("seen"),
)

#: What Celery knows of its tasks: rows of the result backend (tasks/result_backend.py), as JSON text.
task_results = sa.Table(
    "task_results",
    metadata,
    _text("task_id", primary_key=True),
    _text("status"),
    _maybe("result"),
    sa.Column("date_done", UtcTime, index=True),
    _maybe("traceback"),
    _maybe("name"),
    _maybe("args"),
    _maybe("kwargs"),
    _maybe("worker"),
    sa.Column("retries", sa.Integer),
    _maybe("queue"),
)

task_groups = sa.Table(
    "task_groups",
    metadata,
    _text("taskset_id", primary_key=True),
    _text("result"),
    sa.Column("date_done", UtcTime, nullable=False, index=True),
)
