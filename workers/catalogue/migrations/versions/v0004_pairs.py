"""What people say about a target, the family of a run's failure, and how many failures count."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_pairs"
down_revision = "0003_members"

TIME = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("target", "kind", name="pk_holds"),
    )
    op.execute(
        "INSERT INTO holds SELECT 'pair:' || id, 'paused', CURRENT_TIMESTAMP, 'an older version', paused "
        "FROM pairs WHERE paused IS NOT NULL"
    )
    # Not Alembic's way for SQLite, which makes the table anew: sync points refer to it.
    op.execute("ALTER TABLE pairs DROP COLUMN paused")
    op.add_column("targets", sa.Column("forgiven", NUMBER))
    op.add_column("runs", sa.Column("family", sa.Text()))
    op.execute(
        "UPDATE runs SET family = (SELECT family FROM failures WHERE failures.run = runs.id "
        "ORDER BY number DESC LIMIT 1) WHERE state = 'failed'"
    )
