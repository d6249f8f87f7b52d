"""One process per identity: on PostgreSQL session advisory locks say so, wherever it runs; on SQLite one file's lock.

SQLite serves one process: a writer of another process is not in the fair lock's queue, and would be starved, or
starve, to its time limit (decision 8).
"""

import contextlib
import fcntl
import threading
from collections.abc import Iterator
from typing import IO

import sqlalchemy as sa

from provisioning.errors import SetupError
from store.database import Database, StoreUnavailableError, translated
from store.locks import advisory_keys


class HeldIdentity:
    """The lock while a process runs, which a killed process gives back at once. Thread-safe.

    On PostgreSQL it is the connection's, on SQLite that of a file beside the database.

    Args:
        client_id: the worker's client id at the broker; None where it has no connection there.
        worker: its name; None where it takes the place of another for a moment.
    """

    def __init__(self, database: Database, client_id: str | None, worker: str | None = None) -> None:
        self._database = database
        self._claims: list[tuple[int, str]] = []
        if worker is not None:
            self._claims.append((_key(f"worker/{worker}"), _NAME_TAKEN.format(worker=worker)))
        if client_id is not None:
            self._claims.append((_key(f"identity/{client_id}"), _CLIENT_TAKEN))
        self._connection: sa.Connection | None = None
        self._file: IO[str] | None = None
        self._mutex = threading.Lock()

    def keep(self) -> None:
        """Takes the lock, or sees that it is still held; after a restart of the database takes it again.

        Raises:
            SetupError: another process holds it.
            StoreUnavailableError: the database is away; nobody can take it meanwhile.
        """
        with self._mutex:
            if self._database.is_sqlite:
                self._take_file()
                return
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
        file, self._file = self._file, None
        if file is not None:
            file.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            _end(connection)

    def _take(self) -> None:
        connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            for key, complaint in self._claims:
                if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one():
                    raise SetupError(complaint)
        except BaseException:
            _end(connection)
            raise
        self._connection = connection

    def _take_file(self) -> None:
        name = self._database.url.database
        if self._file is not None or not name or name == ":memory:":
            return
        try:
            # A file of its own: closing any handle of the database would end SQLite's own locks (fcntl(2)).
            file = open(f"{name}.lock", "a", encoding="ascii")  # noqa: SIM115, PTH123 - held until `close`
        except OSError:
            return  # the folder is missing or closed to us: the database itself says it better
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SetupError(
                f"another gateway already works on {name}: SQLite serves one process, which has every role; stop it "
                "first, or move to PostgreSQL, which serves any number"
            ) from None
        self._file = file


_CLIENT_TAKEN = (
    "another gateway already works under this broker.client_id on this database; "
    "stop it, or give this worker a client_id of its own"
)
_NAME_TAKEN = (
    "another gateway already works as worker {worker!r} on this database; stop it, or give this one a name of its own "
    "(setting worker)"
)


def _key(name: str) -> int:
    (key,) = advisory_keys([name])
    return key


def _end(connection: sa.Connection) -> None:
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        connection.invalidate()  # a lock ends with the session, not with its return to the pool
        connection.close()


@contextlib.contextmanager
def held(database: Database, client_id: str | None, worker: str | None = None) -> Iterator[HeldIdentity]:
    """Holds an identity for the block; call `keep` now and then.

    Raises:
        SetupError: another process holds it.
    """
    found = HeldIdentity(database, client_id, worker)
    found.keep()
    try:
        yield found
    finally:
        found.close()
