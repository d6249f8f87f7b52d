"""One process per identity: on PostgreSQL a session advisory lock says so, wherever it runs."""

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from provisioning.errors import SetupError
from store.database import Database, StoreUnavailableError, translated
from store.locks import advisory_keys


class HeldIdentity:
    """The lock while a process runs; the connection's, so that a killed process gives it back at once.

    Args:
        identity: the worker's client id at the broker.
    """

    def __init__(self, database: Database, identity: str) -> None:
        self._database = database
        (self._key,) = advisory_keys([f"identity/{identity}"])
        self._connection: sa.Connection | None = None

    def keep(self) -> None:
        """Takes the lock, or sees that it is still held; after a restart of the database takes it again.

        Raises:
            SetupError: another process holds it.
            StoreUnavailableError: the database is away; nobody can take it meanwhile.
        """
        if self._database.is_sqlite:  # the state directory's lock is enough there
            return
        try:
            with translated(self._database):
                if self._connection is None:
                    self._take()
                else:
                    self._connection.execute(sa.select(1))
        except StoreUnavailableError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()  # the lock ends with the session, not with its return to the pool
                connection.close()

    def _take(self) -> None:
        raw = self._database.engine.connect()
        connection = raw.execution_options(isolation_level="AUTOCOMMIT")
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar_one():
            raw.close()
            raise SetupError(
                "another gateway already works under this broker.client_id on this database; "
                "stop it, or give this worker a client_id of its own"
            )
        self._connection = connection


@contextlib.contextmanager
def held(database: Database, identity: str) -> Iterator[HeldIdentity]:
    """Holds `identity` for the block; call `keep` now and then.

    Raises:
        SetupError: another process holds it.
    """
    found = HeldIdentity(database, identity)
    found.keep()
    try:
        yield found
    finally:
        found.close()
