"""Alembic's environment: runs on the connection that `migrate` hands over, inside its transaction."""

from alembic import context

from nvr_rag.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=False,  # the transaction is the caller's
    render_as_batch=True,
)
context.run_migrations()
