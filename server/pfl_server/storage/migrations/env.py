"""How Alembic reaches the database: by the connection that ``Database.migrate`` holds, in its transaction."""

from __future__ import annotations

from alembic import context

from pfl_server.storage.models import Base

connection = context.config.attributes["connection"]
# batches: SQLite changes a column by making the table anew
context.configure(
    connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True
)
context.run_migrations()
