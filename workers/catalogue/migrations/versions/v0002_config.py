"""Which configuration is in force where."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_config"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "configurations",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("waits", sa.Text(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("seen", TIME, nullable=False),
        sa.PrimaryKeyConstraint("worker", "path", name="pk_configurations"),
    )
