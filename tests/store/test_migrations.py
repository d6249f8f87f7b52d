"""Migrations: what they make is the schema that the code works with; forward only, once, one at a time."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from provisioning.errors import SetupError
from store import migrate
from store.database import Database
from store.firmware_schema import metadata


@pytest.fixture(scope="module")
def postgresql_socket() -> Iterator[str]:
    """The socket folder of a PostgreSQL server of our own, never Debian's cluster."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="fleetgate-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # initdb refuses root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, f"{found[-1]}/{program}", "-D", f"{folder}/data", *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    run(
        "pg_ctl", "-w", "-o", f"-k {folder} -c listen_addresses= -c fsync=off", "-l", f"{folder}/log", "start"
    )
    yield str(folder)
    run("pg_ctl", "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/empty.db")
    else:
        folder = request.getfixturevalue("postgresql_socket")
        name = f"t{abs(hash(request.node.nodeid))}"
        admin = sa.create_engine(
            f"postgresql+psycopg://postgres@/postgres?host={folder}", isolation_level="AUTOCOMMIT"
        )
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        admin.dispose()
        database = Database(f"postgresql://postgres@/{name}?host={folder}")
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
