"""Leases: one holder at a time, by the database's clock alone."""

import threading
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from store import leases
from store.database import Database
from store.schema import leases as table


def take(database: Database, holder: str, seconds: float = 60) -> datetime | None:
    with database.write() as tx:
        return leases.take(tx, "scheduler", holder, seconds)


def release(database: Database, holder: str) -> None:
    with database.write() as tx:
        leases.release(tx, "scheduler", holder)


def ends_in(database: Database) -> float:
    """Seconds until the lease ends, by the database's clock."""
    with database.read() as tx:
        return (tx.connection.execute(sa.select(table.c.expires_at)).scalar_one() - tx.now_ms()) / 1000


def expire(database: Database) -> None:
    """As if its time had passed: the clock is the database's, and cannot be turned."""
    with database.write() as tx:
        tx.connection.execute(sa.update(table).values(expires_at=tx.now_ms()))


def test_a_free_lease_is_taken_with_the_databases_time(database: Database) -> None:
    at = take(database, "a")
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(seconds=5), "database and test share a machine"
    assert 55 < ends_in(database) <= 60


def test_a_held_lease_is_refused_and_its_holder_renews_it(database: Database) -> None:
    take(database, "a", seconds=30)
    assert take(database, "b") is None
    assert ends_in(database) <= 30, "who is refused changes nothing"
    assert take(database, "a", seconds=60) is not None
    assert ends_in(database) > 30


def test_an_expired_lease_is_taken_over_and_its_holder_refused(database: Database) -> None:
    take(database, "a")
    expire(database)
    assert take(database, "b") is not None
    assert take(database, "a") is None


def test_its_holder_may_renew_an_expired_lease_that_nobody_took(database: Database) -> None:
    take(database, "a")
    expire(database)
    assert take(database, "a") is not None
    assert take(database, "b") is None


def test_only_its_holder_gives_it_back(database: Database) -> None:
    take(database, "a")
    release(database, "b")
    assert take(database, "b") is None
    release(database, "a")
    assert take(database, "b") is not None


def test_of_many_at_once_one_gets_it(database: Database) -> None:
    begin = threading.Barrier(6)
    taken: list[str] = []

    def work(holder: str) -> None:
        begin.wait(30)
        if take(database, holder) is not None:
            taken.append(holder)

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with database.read() as tx:
        assert taken == [tx.connection.execute(sa.select(table.c.holder)).scalar_one()]
