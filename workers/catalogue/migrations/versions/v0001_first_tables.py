"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LIVE = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    _realm()
    _vms()
    _pairs()
    _runs()
    _slices()
    _sync_points()
    _points()
    _failures()
    _results()


def _realm() -> None:
    op.create_table(
        "realm",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_realm"),
    )


def _vms() -> None:
    op.create_table(
        "vms",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("instance_uuid", sa.Text(), nullable=False),
        sa.Column("vcenter", sa.Text(), nullable=False),
        sa.Column("bios_uuid", sa.Text(), nullable=False),
        sa.Column("moref", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("power", sa.Text(), nullable=False),
        sa.Column("template", sa.Boolean(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("last_seen", TIME, nullable=False),
        sa.Column("gone_since", TIME),
        sa.PrimaryKeyConstraint("site", "instance_uuid", name="pk_vms"),
    )


def _pairs() -> None:
    op.create_table(
        "pairs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source_site", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("vm", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("recovery_target", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text()),
        sa.Column("replica_name", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("failover", sa.Text(), nullable=False),
        sa.Column("paused", sa.Text()),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
        sa.UniqueConstraint("source", "recovery_target", name="uq_pairs_source_recovery_target"),
    )


def _runs() -> None:
    op.create_table(
        "targets",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("fence", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("target", name="pk_targets"),
    )
    op.create_table(
        "runs",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("vm", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("slot", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", NUMBER, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("memory", sa.JSON(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("sent", TIME, nullable=False),
        sa.Column("started", TIME),
        sa.Column("ended", TIME),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", TIME),
        sa.Column("not_before", TIME),
        sa.Column("point", sa.Text()),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("number", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
        sa.UniqueConstraint("target", "fence", name="uq_runs_target_fence"),
        sa.UniqueConstraint("target", "kind", "slot", name="uq_runs_target_kind_slot"),
    )
    op.create_index("ix_runs_vm_number", "runs", ["vm", "number"])
    op.create_index(
        "uq_runs_one_live_per_target", "runs", ["target"], unique=True, sqlite_where=LIVE, postgresql_where=LIVE
    )


def _slices() -> None:
    op.create_table(
        "slices",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("disk", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("made", sa.Text(), nullable=False),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_slices_run"),
        sa.PrimaryKeyConstraint("run", "disk", "start", name="pk_slices"),
    )


def _sync_points() -> None:
    op.create_table(
        "sync_points",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("vm", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("point", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text()),
        sa.Column("fence", NUMBER, nullable=False),
        sa.Column("data_time", TIME, nullable=False),
        sa.Column("committed", TIME, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("change_ids", sa.JSON(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["pair"], ["pairs.id"], name="fk_sync_points_pair"),
        sa.PrimaryKeyConstraint("run", name="pk_sync_points"),
        sa.UniqueConstraint("pair", "fence", name="uq_sync_points_pair_fence"),
    )


def _points() -> None:
    op.create_table(
        "points",
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("vm", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.Text()),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("consistency", sa.Text(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("data_time", TIME, nullable=False),
        sa.Column("capacity", sa.BigInteger(), nullable=False),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("store", "vm", "id", name="pk_points"),
    )
    op.create_index("ix_points_store_vm_seq", "points", ["store", "vm", "seq"])


def _failures() -> None:
    op.create_table(
        "failures",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("run", sa.Text()),
        sa.Column("task", sa.Text()),
        sa.Column("vm", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_failures"),
    )
    op.create_index("ix_failures_run", "failures", ["run"])
    op.create_index("ix_failures_task", "failures", ["task"])
    op.create_index("ix_failures_vm_number", "failures", ["vm", "number"])


def _results() -> None:
    op.create_table(
        "task_results",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("date_done", TIME),
        sa.Column("traceback", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("args", sa.Text()),
        sa.Column("kwargs", sa.Text()),
        sa.Column("worker", sa.Text()),
        sa.Column("retries", sa.Integer()),
        sa.Column("queue", sa.Text()),
        sa.PrimaryKeyConstraint("task_id", name="pk_task_results"),
    )
    op.create_index("ix_task_results_date_done", "task_results", ["date_done"])
    op.create_table(
        "task_groups",
        sa.Column("taskset_id", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("date_done", TIME, nullable=False),
        sa.PrimaryKeyConstraint("taskset_id", name="pk_task_groups"),
    )
    op.create_index("ix_task_groups_date_done", "task_groups", ["date_done"])
