"""A database that is away for a while: an error of its own kind, which says that the same work may succeed later."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from children import Child
from databases import PostgresServer, new_migrated_url, new_postgresql
from fleets import hello, make_fleet

from provisioning.errors import SetupError, StoreError
from store import migrate
from store.database import BrokenConstraintError, Database, StoreUnavailableError
from store.revision import bump_revision, load_revision
from store.schema import set_aside

HOLD_SQLITE = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "connection.execute('BEGIN IMMEDIATE')\n"
    "print('held', flush=True); sys.stdin.read()\n"
    "connection.execute('COMMIT')"
)


def write(database: Database) -> None:
    with database.write() as tx:
        bump_revision(tx)


def revision(database: Database) -> int:
    with database.read() as tx:
        return load_revision(tx)


def text_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def small(database: Database) -> Iterator[Database]:
    """The same database through a single connection, for which nobody waits long."""
    made = Database(text_of(database), pool_size=1, free_within_seconds=0.05)
    yield made
    made.close()


def test_an_exhausted_pool_is_the_database_away_until_a_connection_is_free(small: Database) -> None:
    refused: list[Exception] = []

    def fail() -> None:
        for use in (write, revision):
            try:
                use(small)
            except StoreError as error:
                refused.append(error)

    with small.read():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join(30)
    assert [type(error) for error in refused] == [StoreUnavailableError] * 2
    assert str(refused[0]) == (
        f"database {small}: no connection was free in time; database.pool_size bounds them"
    )
    write(small)
    assert revision(small) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of these tests' own, which they may stop."""
    made = PostgresServer()
    yield made
    made.end()


@pytest.mark.xdist_group("own_server")
def test_a_standby_is_the_database_away_and_work_goes_on_once_it_is_promoted(
    server: PostgresServer, tmp_path: Path
) -> None:
    database = Database(new_postgresql(server_url=server.url))
    migrate.upgrade(database)
    fleet = make_fleet(database, tmp_path)
    fleet.product("sensor")
    said = hello(fleet.voice("sensor", "dev-1"))
    server.restart_as_standby()
    for _ in range(3):  # the first meets broken connections, the others one that has only read
        with pytest.raises(StoreUnavailableError):
            fleet.hear(said)
    assert revision(database) > 0, "it can be read"
    with pytest.raises(StoreUnavailableError, match="in a read-only transaction"):
        write(database)
    server.promote()
    (reply,) = fleet.hear(said)
    assert reply is not None
    assert reply.result == "welcome"
    with database.read() as tx:
        assert tx.connection.execute(sa.select(set_aside)).all() == [], "no message paid for it"
    database.close()


def test_a_session_that_is_read_only_is_the_database_away(tmp_path: Path) -> None:
    url = new_migrated_url("postgresql", tmp_path)
    database = Database(f"{url}&options=-c%20default_transaction_read_only%3Don")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="in a read-only transaction"):
            write(database)
        assert revision(database) == 0
    database.close()


@pytest.mark.xdist_group("own_server")
def test_a_server_that_restarts_is_away_for_the_work_it_interrupts_and_back_for_the_next(
    server: PostgresServer,
) -> None:
    database = Database(new_postgresql(server_url=server.url))
    count = sa.text("SELECT COUNT(*) FROM pg_database WHERE datname = current_database()")

    def interrupt() -> None:
        with database.write() as tx:
            tx.connection.execute(count)
            server.stop()
            tx.connection.execute(count)

    with pytest.raises(StoreUnavailableError, match="is not available: "):
        interrupt()
    with pytest.raises(StoreUnavailableError, match="is not available: connection "):
        write(database)
    server.start()
    with database.read() as tx:
        assert tx.connection.execute(count).scalar_one() == 1
    database.close()


def test_a_sqlite_file_locked_by_another_process_is_away_until_it_is_released(tmp_path: Path) -> None:
    url = new_migrated_url("sqlite", tmp_path)
    database = Database(url, unlocked_within_seconds=0.05)
    with Child(HOLD_SQLITE, str(database.url.database)) as child:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="is not available: database is locked; "):
                write(database)
        assert revision(database) == 0, "readers do not wait for a writer"
        child.go_on()
    write(database)
    assert revision(database) == 1
    database.close()


def test_a_writer_waits_for_another_process_within_its_time(tmp_path: Path) -> None:
    database = Database(new_migrated_url("sqlite", tmp_path), unlocked_within_seconds=60)
    beginning = threading.Event()

    def work() -> None:
        beginning.set()
        write(database)

    with Child(HOLD_SQLITE, str(database.url.database)) as child:
        thread = threading.Thread(target=work)
        thread.start()
        assert beginning.wait(30)
        assert revision(database) == 0
        child.go_on()
    thread.join(30)
    assert revision(database) == 1
    database.close()


def test_a_writer_waits_ten_seconds_unless_told_otherwise(tmp_path: Path) -> None:
    database = Database(new_migrated_url("sqlite", tmp_path))
    with database.read() as tx:
        assert tx.connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 10_000
    database.close()


def test_what_the_database_refuses_is_told_from_its_being_away(database: Database) -> None:
    def run(statement: str) -> None:
        with database.write() as tx:
            tx.connection.exec_driver_sql(statement)

    twice = "INSERT INTO revisions (name, value) VALUES ('a', 1), ('a', 2)"
    with pytest.raises(BrokenConstraintError, match="the database refused it: "):
        run(twice)
    if not database.is_sqlite:
        with pytest.raises(StoreError, match='relation "nothing" does not exist') as refused:
            run("DELETE FROM nothing")
        assert not isinstance(refused.value, StoreUnavailableError)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://localhost/a", "database.url must be sqlite:///… or postgresql://…, got 'mysql'"),
        ("nothing", "database.url cannot be read: "),
    ],
)
def test_an_url_that_names_neither_is_refused(url: str, text: str) -> None:
    with pytest.raises(SetupError) as refused:
        Database(url)
    assert str(refused.value).startswith(text)
