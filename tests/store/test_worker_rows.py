"""Workers' rows, and a broker's uptime as several workers hear it; on both databases."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from provisioning.errors import NotFoundError
from provisioning.workers import ALL_ROLES, Worker, WorkerRole, WorkerState
from store import brokers, workers
from store.database import Database
from store.times import from_ms, now_utc, to_ms

ONE = Worker(
    name="worker-1",
    broker="main",
    roles=ALL_ROLES,
    version="1.0",
    state=WorkerState.RUNNING,
    started_at=now_utc(),
    heard_at=now_utc(),
    queued=0,
    has_session=True,
)


def register(database: Database, worker: Worker, client_id: str | None) -> None:
    with database.write() as tx:
        sealed = None if client_id is None else f"sealed {client_id}".encode()
        workers.register(tx, worker, client_id=client_id, client_sealed=sealed)


def load(database: Database, name: str = "worker-1") -> Worker:
    with database.read() as tx:
        return workers.load(tx, name)


def age(database: Database, seconds: int) -> None:
    """Lets so much time go by for all workers."""
    with database.write() as tx:
        tx.connection.execute(sa.text(f"UPDATE workers SET heard_at = heard_at - {seconds * 1000}"))


def test_a_worker_is_heard_by_the_databases_clock(database: Database) -> None:
    register(database, replace(ONE, roles=(WorkerRole.INGEST, WorkerRole.API)), "secret-id")
    age(database, 60)
    before = load(database)
    assert (before.roles, before.version, before.has_session) == (("ingest", "api"), "1.0", True)
    with database.write() as tx:
        assert workers.beat(tx, "worker-1", 17)
        now = from_ms(tx.now_ms())
    after = load(database)
    assert not before.is_alive(now)
    assert after.is_alive(now)
    assert (after.queued, after.started_at) == (17, before.started_at)
    with database.read() as tx:
        row = tx.connection.execute(sa.text("SELECT * FROM workers")).mappings().one()
    assert "secret-id" not in {str(value) for value in row.values()}, "a client id lies there sealed only"


def test_who_is_not_there_is_named(database: Database) -> None:
    with pytest.raises(NotFoundError, match="no worker 'worker-9'; `fleetgate worker list` shows"):
        load(database, "worker-9")


def test_a_retirement_ends_with_its_session_unless_the_worker_starts_again(database: Database) -> None:
    register(database, ONE, "secret-id")
    with database.write() as tx:
        workers.leave(tx, "worker-1", WorkerState.STOPPED)
    stopped = load(database)
    with database.write() as tx:
        assert workers.move(tx, stopped, WorkerState.RETIRING)
        assert not workers.beat(tx, "worker-1", 0), "it is told that others think it gone"
    with database.read() as tx:
        (leaving,) = workers.list_leaving(tx, "main")
        assert workers.list_leaving(tx, "west") == []
    assert leaving.client_sealed == b"sealed secret-id"
    register(database, ONE, "secret-id")
    with database.write() as tx:
        assert not workers.finish(tx, leaving)
        assert workers.list_leaving(tx, "main") == []
    assert load(database).state is WorkerState.RUNNING
    with database.write() as tx:
        workers.leave(tx, "worker-1", WorkerState.RETIRING)
        assert workers.finish(tx, leaving)
    assert (load(database).state, load(database).has_session) == (WorkerState.RETIRED, False)


def test_a_worker_that_gives_up_its_connection_leaves_its_session(database: Database) -> None:
    register(database, ONE, "secret-id")
    register(database, replace(ONE, roles=(WorkerRole.API,)), None)
    with database.write() as tx:
        (leaving,) = workers.list_leaving(tx, "main")
        assert workers.finish(tx, leaving)
        assert workers.list_leaving(tx, "main") == []
    assert (load(database).state, load(database).has_session) == (WorkerState.RUNNING, False)


def test_a_worker_that_was_heard_since_it_was_loaded_is_not_moved(database: Database) -> None:
    register(database, ONE, "secret-id")
    age(database, 60)
    seen = load(database)
    with database.write() as tx:
        workers.beat(tx, "worker-1", 0)
        assert not workers.move(tx, seen, WorkerState.RETIRING)


def test_a_session_under_another_name_is_not_left_twice(database: Database) -> None:
    register(database, ONE, "secret-id")
    register(database, replace(ONE, name="renamed"), "secret-id")
    register(database, replace(ONE, name="elsewhere", broker="west"), "secret-id")
    assert load(database).state is WorkerState.RETIRED
    assert load(database, "renamed").state is WorkerState.RUNNING
    with database.read() as tx:
        assert brokers.list_names(tx) == ["main", "west"]


@pytest.mark.parametrize(
    ("heard", "restarted"),
    [
        # (seconds of the clock, uptime that is said then)
        ([(100, 100), (110, 110)], 0),
        ([(100, 100), (103, 3)], 1),
        ([(100, 100), (103, 3), (113, 13)], 1),
        ([(100, 100), (110, 110), (110, 100), (120, 120)], 0),  # another worker says it late
        ([(100, 100), (110, 110), (118, 100), (120, 120)], 0),  # or stood still meanwhile
        ([(100, 100), (200, 80), (200, 80)], 1),
        ([(100, 2), (101, 0)], 1),  # two restarts within seconds
    ],
)
def test_a_broker_that_one_worker_hears_late_has_not_restarted(
    database: Database, heard: list[tuple[int, int]], restarted: int
) -> None:
    start = to_ms(now_utc())
    with database.write() as tx:
        found = [brokers.note_uptime(tx, "main", up, start + seconds * 1000) for seconds, up in heard]
    assert sum(found) == restarted
