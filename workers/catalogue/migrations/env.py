"""Alembic runs this file for each command; the connection and its transaction are the caller's."""

from __future__ import annotations

from alembic import context

from workers.catalogue import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
)
with context.begin_transaction():
    context.run_migrations()
