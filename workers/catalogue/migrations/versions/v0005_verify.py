"""How far replicas and stores were compared, and where a replica was found to differ."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_verify"
down_revision = "0004_pairs"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "scrubs",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("began", TIME, nullable=False),
        sa.Column("ended", TIME),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("covered", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("unread", sa.BigInteger(), nullable=False),
        sa.Column("whole_began", TIME),
        sa.Column("whole_ended", TIME),
        sa.PrimaryKeyConstraint("target", name="pk_scrubs"),
    )
    op.create_table(
        "damages",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("disk", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("granules", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("point", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("found", TIME, nullable=False),
        sa.PrimaryKeyConstraint("target", "disk", "start", name="pk_damages"),
    )
