"""The one door to the database: SQLite or PostgreSQL by URL, transactions, and errors translated.

Readers and writers are told apart when they begin. On SQLite a writer takes a fair in-process lock and
`BEGIN IMMEDIATE`, because a deferred transaction that reads first and writes later fails as soon as anybody
else has committed in between. On PostgreSQL a writer takes advisory locks on the names it is about to decide
over, sorted, in a statement of their own, so that everything it reads afterwards is what the previous holder
committed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from provisioning.errors import ConflictError, SetupError, StoreError
from store.locks import FairLock, advisory_keys

_Item = TypeVar("_Item")
_MOST_IN: Final = 500  # values in one IN: far below SQLite's limit of 32,766 and a plan that stays cached
_READ_ONLY: Final = "25006"
"""SQLSTATE read_only_sql_transaction: the standby that a failover has not promoted yet."""
_POSTGRES: Final = {
    "connect_timeout": "10",
    # A host that vanishes without a word is noticed within a minute, idle or in the middle of a statement.
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""libpq's connection parameters; what the URL says goes first."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached or broke the connection; the same work may succeed later."""


class BrokenConstraintError(ConflictError):
    """A constraint of the schema was broken; nothing was written."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction. Repositories take it; nothing outside the store looks inside."""

    connection: sa.Connection

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite (else PostgreSQL)."""
        return self.connection.dialect.name == "sqlite"

    def insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        """The dialect's INSERT, which knows `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def now_ms(self) -> int:
        """The database's clock in milliseconds since 1970, which all workers share."""
        expression = (
            "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
            if self.is_sqlite
            else "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
        )
        return int(self.connection.execute(sa.text(f"SELECT {expression}")).scalar_one())


class Transactions(Protocol):
    """What gives transactions: a database, or an open transaction that others join."""

    def read(self) -> contextlib.AbstractContextManager[Transaction]:
        """A transaction that writes nothing."""

    def write(self, lock_names: Sequence[str] = ()) -> contextlib.AbstractContextManager[Transaction]:
        """A transaction that writes."""

    def join(self, tx: Transaction) -> "Transactions":
        """What gives no transactions of its own, but the open `tx`."""


class Database:
    """A pool of connections to one database.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
        pool_size: connections kept open; threads beyond it wait.
        free_within_seconds: how long they wait for one of these.
        unlocked_within_seconds: how long a writer waits for another process on the same SQLite file; in this
            process the fair lock waits.

    Raises:
        SetupError: the URL names neither SQLite nor PostgreSQL.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        free_within_seconds: float = 30.0,
        unlocked_within_seconds: float = 10.0,
    ) -> None:
        try:
            parsed = sa.make_url(url)
        except SQLAlchemyError as error:
            raise SetupError(f"database.url cannot be read: {error}") from error
        match parsed.get_backend_name():
            case "sqlite":
                parsed = parsed.set(drivername="sqlite")
            case "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            case other:
                raise SetupError(f"database.url must be sqlite:///… or postgresql://…, got {other!r}")
        self.url = parsed
        self.is_sqlite: Final = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": 0,
            "pool_timeout": free_within_seconds,
            "pool_pre_ping": not self.is_sqlite,
        }
        if self.is_sqlite:
            # sqlite3's `timeout` is the busy timeout, from the first statement on.
            options["connect_args"] = {"check_same_thread": False, "timeout": unlocked_within_seconds}
            options["poolclass"] = sa.QueuePool
        else:
            options["connect_args"] = {k: v for k, v in _POSTGRES.items() if k not in parsed.query}
        self.engine: Final = sa.create_engine(parsed, **options)
        self._writer: Final = FairLock()
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self.engine, "checkin", _forget_mode)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that sees one state of the database and writes nothing.

        Raises:
            StoreUnavailableError: the database is away.
            StoreError: anything else it refuses.
        """
        with translated(self), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            with connection.begin():
                yield Transaction(connection)

    @contextlib.contextmanager
    def write(self, lock_names: Sequence[str] = ()) -> Iterator[Transaction]:
        """A transaction that writes; commits at the end of the block, rolls back if it raises.

        Args:
            lock_names: what is decided over; on PostgreSQL nobody else holds any of them meanwhile.

        Raises:
            BrokenConstraintError: a constraint of the schema was broken.
            StoreUnavailableError: the database is away; nothing was committed, or the answer was lost.
            StoreError: anything else it refuses.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(translated(self))
            if self.is_sqlite:
                stack.enter_context(self._writer)
            connection = stack.enter_context(self.engine.connect()).execution_options(fleetgate_writes=True)
            stack.enter_context(connection.begin())
            _lock(connection, lock_names)
            yield Transaction(connection)

    def join(self, tx: Transaction) -> "Joined":
        """What gives no transactions of its own, but the open `tx`, which must be a writing one."""
        return Joined(self, tx)

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


@dataclass(frozen=True, slots=True)
class Joined:
    """One open, writing transaction, in which everything happens that would have been one of its own.

    What is written here is there, or is not, together with what `outer` writes. A write that fails is undone
    to where it began, as by itself it would have been; its locks are held until `outer` ends.
    """

    database: Database
    outer: Transaction

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """As `Database.read`; sees also what `outer` has written."""
        with translated(self.database):
            yield self.outer

    @contextlib.contextmanager
    def write(self, lock_names: Sequence[str] = ()) -> Iterator[Transaction]:
        """As `Database.write`, but the commit is that of `outer`."""
        with translated(self.database):
            _lock(self.outer.connection, lock_names)
            with self.outer.connection.begin_nested():
                yield self.outer

    def join(self, tx: Transaction) -> "Joined":
        """The same for `tx`, which is the open one."""
        return Joined(self.database, tx)


def _lock(connection: sa.Connection, names: Sequence[str]) -> None:
    if names and connection.dialect.name != "sqlite":
        connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:keys AS bigint[])) AS k"),
            {"keys": advisory_keys(names)},
        )


def parts(values: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """`values` in runs that fit into one `IN`."""
    for start in range(0, len(values), _MOST_IN):
        yield values[start : start + _MOST_IN]


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # a committed batch survives power loss; about 15 % at batches of 200
        "foreign_keys = ON",
        "cache_size = -65536",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _forget_mode(connection: Any, _record: object) -> None:
    """Lets the next transaction begin as the server says.

    After a reading transaction SQLAlchemy leaves "read write" behind. A standby refuses to begin like that with
    another error than it has for a write, 0A000, which says nothing about its being a standby.
    """
    if connection is not None:
        connection.read_only = None


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("fleetgate_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def translated(database: Database) -> Iterator[None]:
    """Turns the library's errors into ours, for the block."""
    try:
        yield
    except IntegrityError as error:
        raise BrokenConstraintError(f"the database refused it: {_first_line(error.orig)}") from error
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailableError(
            f"database {database} is not available: {_first_line(error.orig)}; "
            "`fleetgate doctor` checks it, and work goes on by itself once it is back"
        ) from error
    except PoolTimeoutError as error:
        raise StoreUnavailableError(
            f"database {database}: no connection was free in time; database.pool_size bounds them"
        ) from error
    except DBAPIError as error:
        away = error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY
        kind = StoreUnavailableError if away else StoreError
        raise kind(f"database {database}: {_first_line(error.orig)}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"database {database}: {error}") from error


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
