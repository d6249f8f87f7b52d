"""Migrations: what they make is the schema that the code works with; forward only, once, one at a time."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import new_url

from provisioning.errors import SetupError
from store import migrate
from store.database import Database
from store.firmware_schema import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables."""
    database = Database(new_url(request.param, tmp_path))
    yield database
    database.close()


def shape(engine: sa.Engine) -> dict[str, Any]:
    """Every table as the database itself describes it: columns, keys, uniques, indexes and checks."""
    inspector = sa.inspect(engine)
    return {
        table: {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)
            ],
            "primary": inspector.get_pk_constraint(table),
            "foreign": sorted(inspector.get_foreign_keys(table), key=repr),
            "unique": sorted(inspector.get_unique_constraints(table), key=repr),
            "indexes": sorted(
                ((i["name"], i["column_names"], bool(i["unique"])) for i in inspector.get_indexes(table)),
                key=repr,
            ),
            "checks": sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table)),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_migrated_is_what_the_schema_says(empty_database: Database) -> None:
    assert migrate.current(empty_database) is None
    with pytest.raises(SetupError, match="has no tables yet"):
        migrate.check(empty_database)
    assert migrate.upgrade(empty_database) == migrate.head()
    migrate.check(empty_database)
    with empty_database.engine.connect() as connection:
        # Defaults are left to `shape`: SQLite gives an empty one back in another spelling than it was asked for.
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    migrated = shape(empty_database.engine)
    with empty_database.write() as tx:
        metadata.drop_all(tx.connection)
        metadata.create_all(tx.connection)
    assert migrated == shape(empty_database.engine)


def test_upgrading_again_changes_nothing_and_keeps_what_is_there(empty_database: Database) -> None:
    migrate.upgrade(empty_database)
    with empty_database.write() as tx:
        tx.connection.execute(sa.text("INSERT INTO organizations (id, name, created_at) VALUES (1, 'a', 0)"))
    assert migrate.upgrade(empty_database) == migrate.head()
    with empty_database.read() as tx:
        assert tx.connection.execute(sa.text("SELECT name FROM organizations")).scalar_one() == "a"


def test_two_workers_start_at_once(empty_database: Database) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            migrate.upgrade(empty_database)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    migrate.check(empty_database)


def test_a_schema_of_the_future_is_refused(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/f.db")
    migrate.upgrade(database)
    with database.write() as tx:
        tx.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="has schema 9999, which this version does not know"):
        migrate.upgrade(database)
    with pytest.raises(SetupError, match="a newer fleetgate made it; install that one"):
        migrate.check(database)
    database.close()
