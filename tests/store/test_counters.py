"""Counters: each worker has rows of its own, which add up, for every scope and bucket."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from provisioning.ids import CohortId, DeviceId, ProductId
from provisioning.statistics import MINUTE_MS, Event, EventKind
from store import counters
from store.database import Database
from store.schema import counters as table
from store.schema import events
from store.times import to_ms

NOW = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)
MINUTE = to_ms(NOW) // MINUTE_MS * MINUTE_MS
Key = tuple[int, int, str, str, int]


def connected(product: int, cohort: int | None, minutes: int = 0) -> Event:
    return Event(
        at=NOW + timedelta(minutes=minutes),
        kind=EventKind.CONNECTED,
        product_id=ProductId(product),
        cohort_id=None if cohort is None else CohortId(cohort),
        device_id=DeviceId(1),
        word="hello",
    )


def record(database: Database, worker: str, happened: list[Event]) -> None:
    with database.write() as tx:
        counters.record(tx, worker, happened)


def load(database: Database) -> dict[Key, dict[str, int]]:
    found: dict[Key, dict[str, int]] = {}
    with database.read() as tx:
        for *key, worker, value in tx.connection.execute(sa.select(table)):
            found.setdefault(tuple(key), {})[worker] = value
    return found


def test_increments_of_two_workers_add_up_for_each_scope_and_bucket(database: Database) -> None:
    batches = {
        "a": [connected(1, 7), connected(1, 7), connected(1, None), connected(2, 8)],
        "b": [connected(1, 7), connected(1, 7, minutes=1)],
    }
    begin = threading.Barrier(4)
    failed: list[Exception] = []

    def work(worker: str) -> None:
        begin.wait(30)
        try:
            for _ in range(5):
                record(database, worker, batches[worker])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in ("a", "a", "b", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert load(database) == {
        (1, 7, "connected", "", 0): {"a": 20, "b": 20},
        (1, 7, "connects", "hello", 0): {"a": 20, "b": 20},
        (1, 7, "connects", "hello", MINUTE): {"a": 20, "b": 10},
        (1, 7, "connects", "hello", MINUTE + MINUTE_MS): {"b": 10},
        (1, 0, "connected", "", 0): {"a": 10},
        (1, 0, "connects", "hello", 0): {"a": 10},
        (1, 0, "connects", "hello", MINUTE): {"a": 10},
        (2, 8, "connected", "", 0): {"a": 10},
        (2, 8, "connects", "hello", 0): {"a": 10},
        (2, 8, "connects", "hello", MINUTE): {"a": 10},
    }


def test_what_cancels_out_in_a_batch_writes_no_row_and_both_events(database: Database) -> None:
    there, back = (
        Event(
            at=NOW,
            kind=EventKind.DEVICE_STATE,
            product_id=ProductId(1),
            cohort_id=None,
            device_id=DeviceId(1),
            word=word,
            before=before,
        )
        for word, before in (("blocked", "active"), ("active", "blocked"))
    )
    record(database, "a", [there, back])
    assert load(database) == {}
    with database.read() as tx:
        words = tx.connection.execute(sa.select(events.c.word).order_by(events.c.id)).scalars().all()
    assert words == ["blocked", "active"]


def test_events_and_counters_are_there_together_or_not_at_all(database: Database) -> None:
    def fail() -> None:
        with database.write() as tx:
            counters.record(tx, "a", [connected(1, 7)])
            raise OSError("the process ends here")

    with pytest.raises(OSError, match="ends here"):
        fail()
    with database.read() as tx:
        assert tx.connection.execute(sa.select(events)).all() == []
    assert load(database) == {}
