"""Which replicas are half applied."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_undo"
down_revision = "0005_verify"


def upgrade() -> None:
    op.create_table(
        "half_applied",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("toward", sa.Text(), nullable=False),
        sa.Column("undo", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("pair", name="pk_half_applied"),
    )
