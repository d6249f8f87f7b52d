"""The outbox: a row for each device and kind, the newest revision; what is left behind finds another worker."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import make_fleet

from provisioning.ids import DeviceId
from store import outbox
from store.database import BrokenConstraintError, Database
from store.outbox import Outgoing
from store.schema import devices
from store.schema import outbox as table


@pytest.fixture
def numbers(database: Database, tmp_path: Path) -> list[DeviceId]:
    """Four devices."""
    fleet = make_fleet(database, tmp_path)
    fleet.product("sensor")
    fleet.enroll("sensor", *(f"dev-{number}" for number in range(4)))
    with database.read() as tx:
        return [
            DeviceId(one)
            for one in tx.connection.execute(sa.select(devices.c.id).order_by(devices.c.id)).scalars()
        ]


def put(database: Database, *offers: tuple[DeviceId, int], at: int = 1000, broker: str = "main") -> None:
    with database.write() as tx:
        outbox.put(
            tx, broker, [Outgoing(device_id=device, revision=revision) for device, revision in offers], at
        )


def delete(database: Database, *offers: tuple[DeviceId, int]) -> None:
    with database.write() as tx:
        outbox.delete(tx, [Outgoing(device_id=device, revision=revision) for device, revision in offers])


def adopt(database: Database, *, before: int = 5000, limit: int = 10, broker: str = "main") -> list[DeviceId]:
    with database.write() as tx:
        return [offer.device_id for offer in outbox.adopt(tx, broker, before, limit)]


def load(database: Database) -> dict[DeviceId, tuple[int, int]]:
    """(revision, created_at) of each device's row."""
    with database.read() as tx:
        return {
            row.device_id: (row.revision, row.created_at) for row in tx.connection.execute(sa.select(table))
        }


def test_a_newer_revision_takes_the_place_of_an_older_one(
    database: Database, numbers: list[DeviceId]
) -> None:
    first, second, *_ = numbers
    put(database, (second, 1), (first, 1))
    put(database, (first, 3), at=2000)
    assert load(database) == {first: (3, 2000), second: (1, 1000)}
    put(database, (first, 2), (second, 1), at=3000)
    assert load(database) == {first: (3, 2000), second: (1, 1000)}, "what is not newer changes nothing"


def test_the_schema_holds_one_row_for_a_device_and_kind(database: Database, numbers: list[DeviceId]) -> None:
    put(database, (numbers[0], 1))
    row = {"device_id": numbers[0], "kind": outbox.OFFER, "revision": 2, "broker": "main", "created_at": 1}

    def insert(**changes: str) -> None:
        with database.write() as tx:
            tx.connection.execute(sa.insert(table).values(**(row | changes)))

    with pytest.raises(BrokenConstraintError):
        insert()
    insert(kind="another")


def test_what_was_sent_is_forgotten_and_a_newer_revision_stays(
    database: Database, numbers: list[DeviceId]
) -> None:
    first, second, third, _ = numbers
    put(database, (first, 1), (second, 2), (third, 5))
    delete(database, (second, 1), (first, 1), (third, 7))
    assert load(database) == {second: (2, 1000)}


def test_what_was_left_is_adopted_once_the_oldest_first(database: Database, numbers: list[DeviceId]) -> None:
    for age, number in enumerate(numbers):
        put(database, (number, 1), at=4000 - 1000 * age)
    with database.read() as tx:
        assert outbox.has_left(tx, "main", 1000)
        assert not outbox.has_left(tx, "main", 999)
        assert not outbox.has_left(tx, "other", 9000)
    assert adopt(database, broker="other") == []
    assert adopt(database, before=3000, limit=2) == [numbers[3], numbers[2]]
    assert adopt(database, before=3000) == [numbers[1]], "who has adopted a row has its time to send it"
    assert adopt(database, before=3000) == []
    with database.read() as tx:
        now = tx.now_ms()
    assert {number for number, (_, at) in load(database).items() if now - 60_000 < at <= now} == set(
        numbers[1:]
    )
    assert sorted(adopt(database, before=now)) == numbers, "and after that it is anybody's again"


def test_two_workers_adopt_nothing_twice(database: Database, numbers: list[DeviceId]) -> None:
    put(database, *((number, 1) for number in numbers))
    holding, done = threading.Event(), threading.Event()
    first: list[DeviceId] = []

    def work() -> None:
        with database.write() as tx:
            first.extend(offer.device_id for offer in outbox.adopt(tx, "main", 5000, 2))
            holding.set()
            # SQLite has one writer: there the second begins when this one is over.
            assert database.is_sqlite or done.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    assert holding.wait(30)
    second = adopt(database)
    done.set()
    thread.join(30)
    assert len(first) == len(second) == 2
    assert sorted(first + second) == numbers
