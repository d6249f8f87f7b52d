"""One process per identity: on PostgreSQL a session advisory lock says so, wherever it runs."""

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from provisioning.errors import SetupError
from store.database import Database
from store.locks import advisory_keys


@contextlib.contextmanager
def held(database: Database, identity: str) -> Iterator[None]:
    """Holds `identity` for the block. On SQLite it does nothing: the state directory's lock is enough there.

    The lock is the connection's, so a killed process gives it back at once.

    Raises:
        SetupError: another process holds it.
    """
    if database.is_sqlite:
        yield
        return
    with database.engine.connect() as raw:
        connection = raw.execution_options(isolation_level="AUTOCOMMIT")
        (key,) = advisory_keys([f"identity/{identity}"])
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one():
            raise SetupError(
                "another gateway already works under this broker.client_id on this database; "
                "stop it, or give this worker a client_id of its own"
            )
        yield
