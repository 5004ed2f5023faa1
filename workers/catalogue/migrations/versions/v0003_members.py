"""What rules are about (datastores, cluster, tags), how the reading of inventories goes, and who is in which group."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_members"
down_revision = "0002_config"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("vms", sa.Column("datastores", sa.JSON()))
    op.add_column("vms", sa.Column("cluster", sa.Text()))
    op.add_column("vms", sa.Column("tags", sa.JSON()))
    op.create_table(
        "inventories",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("asked", TIME),
        sa.Column("complete", TIME),
        sa.Column("failed", TIME),
        sa.Column("why", sa.Text()),
        sa.PrimaryKeyConstraint("site", name="pk_inventories"),
    )
    op.create_table(
        "memberships",
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("vm", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("left", TIME),
        sa.Column("why", sa.Text()),
        sa.PrimaryKeyConstraint("group", "vm", name="pk_memberships"),
    )
