"""alembic's entry: runs the steps on the connection, and in the transaction, that `store.migrate` hands over."""

from alembic import context

from store.firmware_schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
