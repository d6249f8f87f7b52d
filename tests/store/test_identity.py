"""One process per identity: on PostgreSQL locks of the session, given back with it, and taken again at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from broker_fixtures import wait_until
from children import Child
from databases import new_postgresql

from provisioning.errors import SetupError
from store.database import Database
from store.identity import HeldIdentity, held

NAME = "gateway-1"
TAKEN = (
    "another gateway already works under this broker.client_id on this database; "
    "stop it, or give this worker a client_id of its own"
)


@pytest.fixture
def url() -> str:
    return new_postgresql()


@pytest.fixture
def process(url: str) -> Iterator[Callable[[], Database]]:
    """What another process has: a pool of its own on the same database."""
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(url))
        return made[-1]

    yield make
    for database in made:
        database.close()


def holders(database: Database) -> list[int]:
    """The sessions that hold an advisory lock here."""
    query = (
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()"
    )
    with database.read() as tx:
        return list(tx.connection.execute(sa.text(query)).scalars())


def terminate(database: Database) -> int:
    """Ends the session that holds the lock, and waits until it has. Returns its number."""
    (pid,) = holders(database)
    with database.read() as tx:
        assert tx.connection.execute(sa.select(sa.func.pg_terminate_backend(pid))).scalar_one()
    wait_until(lambda: pid not in holders(database), "the session is over")
    return pid


def wait_until_free(database: Database) -> None:
    """The server lets a lock go when it sees its session end, which is a moment after the client has ended it."""
    wait_until(lambda: holders(database) == [], "nobody holds a lock")


def test_a_second_holder_is_refused_until_the_first_gives_it_back(process: Callable[[], Database]) -> None:
    looking = process()
    first, second = HeldIdentity(process(), NAME), HeldIdentity(process(), NAME)
    first.keep()
    first.keep()
    with pytest.raises(SetupError) as refused:
        second.keep()
    assert str(refused.value) == TAKEN
    with held(process(), "gateway-2") as other:
        other.keep()
    first.close()
    wait_until_free(looking)
    second.keep()
    with pytest.raises(SetupError):
        first.keep()
    second.close()


def test_who_is_refused_leaves_its_pool_as_it_was(process: Callable[[], Database]) -> None:
    database = process()
    with held(process(), NAME):
        for _ in range(20):  # more than the pool has connections
            with pytest.raises(SetupError, match="another gateway already works"):
                HeldIdentity(database, NAME).keep()
        with database.read() as tx:
            assert tx.connection.execute(sa.select(1)).scalar_one() == 1
    wait_until_free(database)
    with held(database, NAME):
        assert len(holders(database)) == 1


def test_a_lock_that_ended_with_its_session_is_taken_again_at_once(process: Callable[[], Database]) -> None:
    looking = process()
    with held(process(), NAME) as own:
        before = terminate(looking)
        assert holders(looking) == []
        own.keep()
        (now,) = holders(looking)
        assert now != before
        with pytest.raises(SetupError):
            HeldIdentity(process(), NAME).keep()
    wait_until_free(looking)


def test_a_lock_that_another_took_meanwhile_is_lost(process: Callable[[], Database]) -> None:
    looking = process()
    with held(process(), NAME) as own:
        terminate(looking)
        with held(process(), NAME):
            for _ in range(2):
                with pytest.raises(SetupError) as lost:
                    own.keep()
                assert str(lost.value) == TAKEN
        wait_until_free(looking)
        own.keep()
        assert len(holders(looking)) == 1


def test_a_process_that_is_killed_gives_it_back(process: Callable[[], Database], url: str) -> None:
    code = (
        "import sys; from store.database import Database; from store.identity import HeldIdentity\n"
        "own = HeldIdentity(Database(sys.argv[1]), sys.argv[2]); own.keep()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with Child(code, url, NAME) as child:
        own = HeldIdentity(process(), NAME)
        with pytest.raises(SetupError):
            own.keep()
        child.kill()
    wait_until_free(process())
    own.keep()
    own.close()


def test_one_connection_holds_the_workers_name_too_or_neither(process: Callable[[], Database]) -> None:
    looking = process()
    with held(process(), NAME, "worker-1"):
        assert len(holders(looking)) == 2
        with pytest.raises(SetupError, match="another gateway already works as worker 'worker-1'"):
            HeldIdentity(process(), "gateway-2", "worker-1").keep()
        with pytest.raises(SetupError) as refused:
            HeldIdentity(process(), NAME, "worker-2").keep()
        assert str(refused.value) == TAKEN
        wait_until(lambda: len(holders(looking)) == 2, "who was refused holds nothing")
        with held(process(), None, "worker-2"):
            assert len(holders(looking)) == 3


def test_sqlite_serves_one_process(tmp_path: Path) -> None:
    database, other = (Database(f"sqlite:///{tmp_path}/test.db") for _ in range(2))
    with held(database, NAME, "worker-1") as first:
        first.keep()
        with pytest.raises(
            SetupError, match="SQLite serves one process, which has every role; stop it first"
        ):
            HeldIdentity(other, "gateway-2", "worker-2").keep()
    with held(other, "gateway-2", "worker-2"):
        pass
    database.close()
    other.close()


def test_on_sqlite_too_a_process_that_is_killed_gives_it_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    code = (
        "import sys; from store.database import Database; from store.identity import HeldIdentity\n"
        "own = HeldIdentity(Database(sys.argv[1]), 'a', 'worker-1'); own.keep()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    database = Database(url)
    own = HeldIdentity(database, "b", "worker-2")
    with Child(code, url) as child:
        with pytest.raises(SetupError):
            own.keep()
        child.kill()
    own.keep()
    own.close()
    database.close()
