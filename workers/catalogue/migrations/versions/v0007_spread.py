"""Who works on each slice of a run, since when, and how often it failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_spread"
down_revision = "0006_undo"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("slices", sa.Column("owner", sa.Text()))
    op.add_column("slices", sa.Column("lease_until", TIME))
    op.add_column("slices", sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("slices", sa.Column("began", TIME))
    op.add_column("slices", sa.Column("ended", TIME))
    op.add_column("slices", sa.Column("error", sa.Text()))
