"""The audit chain: appended, sealed, continued; and what somebody changes afterwards is found (I9)."""

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from provisioning.ids import OrganizationId
from store import audit
from store.database import Database
from store.schema import audit as table
from store.times import now_utc
from store.verify import Finding, verify

VALUES: dict[str, Any] = {"name": "pümp \N{SNOWMAN}", "n": 0.1, "deep": {"b": [1, None, True], "a": ""}}


def append(database: Database, *numbers: int) -> None:
    with database.write() as tx:
        for number in numbers:
            audit.append(
                tx,
                at=now_utc(),
                organization_id=OrganizationId(1),
                actor="admin",
                action="product.edit",
                object_type="product",
                object_id=number,
                before=None if number % 2 else VALUES,
                after={"number": number},
            )


def seal(database: Database) -> int:
    with database.write(["audit"]) as tx:
        return audit.seal(tx)


def chain(database: Database) -> Finding:
    (finding,) = (found for found in verify(database).findings if found.invariant == "I9")
    return finding


def rows(database: Database) -> list[Any]:
    with database.read() as tx:
        return list(tx.connection.execute(sa.select(table).order_by(table.c.id)))


@pytest.fixture
def sealed(database: Database) -> Database:
    """Five sealed rows."""
    append(database, 1, 2, 3, 4, 5)
    assert seal(database) == 5
    return database


def test_rows_have_no_place_until_they_are_sealed_and_keep_it_then(database: Database) -> None:
    append(database, 1, 2)
    assert [(row.position, row.chain_sha256) for row in rows(database)] == [(None, None)] * 2
    assert seal(database) == 2
    first = [(row.position, row.chain_sha256) for row in rows(database)]
    assert [position for position, _ in first] == [1, 2]
    assert seal(database) == 0
    append(database, 3)
    assert (chain(database).checked, chain(database).breaches) == (2, ())
    assert seal(database) == 1
    again = [(row.position, row.chain_sha256) for row in rows(database)]
    assert again[:2] == first
    assert (chain(database).checked, chain(database).breaches) == (3, ())


def test_what_a_link_is_made_of(database: Database) -> None:
    append(database, 1)
    seal(database)
    (row,) = rows(database)
    text = f'[{row.at},1,"admin","product.edit","product","1",null,{{"number":1}}]'
    assert row.chain_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_two_sealers_at_once_seal_each_row_once(database: Database) -> None:
    append(database, *range(60))
    begin = threading.Barrier(2)
    counts: list[int] = []

    def work() -> None:
        begin.wait(30)
        counts.append(seal(database))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(counts) == [0, 60]
    assert (chain(database).checked, chain(database).breaches) == (60, ())


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1},
        {"organization_id": 2},
        {"actor": "nobody"},
        {"action": "product.create"},
        {"object_type": "cohort"},
        {"object_id": "4"},
        {"before": {"number": 3}},
        {"after": {"number": 4}},
        {"after": sa.null()},
        {"chain_sha256": "0" * 64},
    ],
    ids=lambda change: "-".join(f"{name}-{value}" for name, value in change.items())[:24],
)
def test_a_changed_row_is_found(sealed: Database, change: dict[str, Any]) -> None:
    with sealed.write() as tx:
        changed = tx.connection.execute(sa.update(table).where(table.c.position == 3).values(**change))
        assert changed.rowcount == 1
    assert chain(sealed).breaches == (f"audit row {rows(sealed)[2].id} does not continue the chain",)


def remove_middle(connection: sa.Connection) -> None:
    connection.execute(sa.delete(table).where(table.c.position == 3))


def remove_first(connection: sa.Connection) -> None:
    connection.execute(sa.delete(table).where(table.c.position == 1))


def remove_and_close_up(connection: sa.Connection) -> None:
    remove_middle(connection)
    for position in (4, 5):
        connection.execute(sa.update(table).where(table.c.position == position).values(position=position - 1))


def unseal(connection: sa.Connection) -> None:
    connection.execute(sa.update(table).where(table.c.position == 3).values(position=None, chain_sha256=None))


def swap(connection: sa.Connection) -> None:
    for position, to in ((3, 0), (4, 3), (0, 4)):
        connection.execute(sa.update(table).where(table.c.position == position).values(position=to))


def swap_with_links(connection: sa.Connection) -> None:
    links = dict(connection.execute(sa.select(table.c.position, table.c.chain_sha256)).all())
    swap(connection)
    for position in (3, 4):
        connection.execute(
            sa.update(table).where(table.c.position == position).values(chain_sha256=links[position])
        )


@pytest.mark.parametrize(
    ("tamper", "missing", "row"),
    [
        (remove_first, 1, 2),
        (remove_middle, 3, 4),
        (remove_and_close_up, None, 4),
        (unseal, 3, 4),
        (swap, None, 4),
        (swap_with_links, None, 4),
    ],
)
def test_a_removed_or_moved_row_is_found(
    sealed: Database, tamper: Callable[[sa.Connection], None], missing: int | None, row: int
) -> None:
    number = rows(sealed)[row - 1].id
    with sealed.write() as tx:
        tamper(tx.connection)
    gap = [] if missing is None else [f"audit position {missing} is missing"]
    assert chain(sealed).breaches == (*gap, f"audit row {number} does not continue the chain")
