"""What is compiled once writes the same as what SQLAlchemy executes, on both databases."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import make_fleet

from provisioning.errors import StoreError
from store.database import BrokenConstraintError, Database
from store.facts import read_device
from store.prepared import Query, run_many
from store.schema import devices, set_aside

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


def test_a_query_reads_what_sqlalchemy_reads(database: Database, tmp_path: Path) -> None:
    """Texts, JSON, booleans and nothing, by a constant, a value, a list, and a list that excludes."""
    fleet = make_fleet(database, tmp_path)
    fleet.product("tracker")
    fleet.enroll("tracker", "dev-0", "dev-1", "dev-2", attributes={"rack": 7, "spare": True})
    statement = (
        sa.select(devices)
        .where(
            devices.c.broker == "main",
            devices.c.state == sa.bindparam("state"),
            devices.c.identifier.in_(sa.bindparam("values", expanding=True)),
            devices.c.identifier.not_in(sa.bindparam("others", expanding=True)),
        )
        .order_by(devices.c.identifier)
    )
    query = Query(statement)
    with database.read() as tx:
        names = ["dev-0", "dev-1", "dev-2", "nobody'; --"]
        found = query.rows(tx, state="active", values=names, others=["dev-1"])
        expected = tx.connection.execute(statement, {"state": "active", "values": names, "others": ["dev-1"]})
        assert found == [tuple(row) for row in expected]
        read = [read_device(row) for row in found]
        assert query.rows(tx, state="active", values=[], others=[]) == []
        assert query.value(tx, state="active", values=[], others=["x"]) is None
        assert query.value(tx, state="active", values=["dev-1"], others=[]) not in (None, read[0].id)
    assert [device.identifier for device in read] == ["dev-0", "dev-2"]
    assert dict(read[0].attributes) == {"rack": 7, "spare": True}
    assert (read[0].updates_enabled, read[0].cohort_pinned, read[0].new_key_until) == (True, False, None)


def test_a_broken_constraint_is_said_as_everywhere(database: Database) -> None:
    with pytest.raises(BrokenConstraintError), database.write() as tx:
        run_many(tx, "test.insert", lambda: sa.insert(set_aside), [ROWS[0], ROWS[0]])
    with database.read() as tx:
        assert Query(sa.select(sa.func.count()).select_from(set_aside)).value(tx) == 0


def test_a_statement_that_the_database_refuses_is_an_error_of_ours(database: Database) -> None:
    absent = sa.select(sa.column("thing")).select_from(sa.table("nowhere"))
    with pytest.raises(StoreError, match="nowhere"), database.read() as tx:
        Query(absent).rows(tx)
