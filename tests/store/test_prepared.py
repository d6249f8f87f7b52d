"""What is compiled once writes the same as what SQLAlchemy executes, on both databases."""

import sqlalchemy as sa

from store.database import Database
from store.prepared import run_many
from store.schema import set_aside

ROWS = [
    {
        "id": number,
        "at": number,
        "topic_name": f"dev-{number}",
        "verb": "hello",
        "payload": b"\x00\xff",
        "cause": "é",
    }
    for number in range(3)
]


def test_rows_are_written_as_their_types_say(database: Database) -> None:
    with database.write() as tx:
        run_many(tx, "test.insert", lambda: sa.insert(set_aside), ROWS)
    with database.read() as tx:
        found = [
            dict(row._mapping) for row in tx.connection.execute(sa.select(set_aside).order_by(set_aside.c.id))
        ]
    assert found == ROWS


def test_nothing_is_run_without_rows(database: Database) -> None:
    def make() -> sa.Insert:
        raise AssertionError("not asked")

    with database.write() as tx:
        run_many(tx, "test.nothing", make, [])


def test_the_statement_is_made_once(database: Database) -> None:
    made: list[int] = []

    def make() -> sa.Insert:
        made.append(1)
        return sa.insert(set_aside)

    for row in ROWS:
        with database.write() as tx:
            run_many(tx, f"test.once.{database}", make, [row])
    assert len(made) == 1
    with database.write() as tx:
        tx.connection.execute(sa.delete(set_aside))
