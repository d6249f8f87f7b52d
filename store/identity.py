"""One process per identity: on PostgreSQL a session advisory lock says so, wherever it runs."""

import contextlib
import threading
from collections.abc import Iterator

import sqlalchemy as sa

from provisioning.errors import SetupError
from store.database import Database, StoreUnavailableError, translated
from store.locks import advisory_keys


class HeldIdentity:
    """The lock while a process runs; the connection's, so that a killed process gives it back at once. Thread-safe.

    Args:
        identity: the worker's client id at the broker.
    """

    def __init__(self, database: Database, identity: str) -> None:
        self._database = database
        (self._key,) = advisory_keys([f"identity/{identity}"])
        self._connection: sa.Connection | None = None
        self._mutex = threading.Lock()

    def keep(self) -> None:
        """Takes the lock, or sees that it is still held; after a restart of the database takes it again.

        Raises:
            SetupError: another process holds it.
            StoreUnavailableError: the database is away; nobody can take it meanwhile.
        """
        if self._database.is_sqlite:  # the state directory's lock is enough there
            return
        with self._mutex:
            try:
                if self._connection is not None:
                    with translated(self._database):
                        self._connection.execute(sa.select(1))
                    return
            except StoreUnavailableError:
                self._drop()  # the session is gone, and its lock with it: taken again at once, if that can be
            with translated(self._database):
                self._take()

    def close(self) -> None:
        """Gives the lock back."""
        with self._mutex:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()  # the lock ends with the session, not with its return to the pool
                connection.close()

    def _take(self) -> None:
        raw: sa.Connection | None = self._database.engine.connect()
        assert raw is not None
        try:
            connection = raw.execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar_one():
                self._connection, raw = connection, None
                return
        finally:
            if raw is not None:
                raw.close()
        raise SetupError(
            "another gateway already works under this broker.client_id on this database; "
            "stop it, or give this worker a client_id of its own"
        )


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
