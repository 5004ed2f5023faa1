"""Who has one of few places just now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_places"
down_revision = "0008_errors"


def upgrade() -> None:
    op.create_table(
        "places",
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("resource", "holder", name="pk_places"),
    )
    op.create_index("ix_places_holder", "places", ["holder"])
