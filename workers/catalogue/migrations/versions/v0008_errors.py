"""How many tries in a row ended with an error: the pause after one grows with them, not with lost workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_errors"
down_revision = "0007_spread"


def upgrade() -> None:
    for table in ("runs", "slices"):
        op.add_column(table, sa.Column("errors", sa.Integer(), nullable=False, server_default=sa.text("0")))
