"""Who waits for one of few places, and since when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_waiting"
down_revision = "0009_places"


def upgrade() -> None:
    op.add_column("places", sa.Column("waits_since", sa.DateTime(timezone=True)))
