"""Real databases for tests: a SQLite file each, and one PostgreSQL server of our own for the whole run."""

import atexit
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from store import migrate
from store.database import Database


def find_initdb() -> Path | None:
    """The newest initdb of Debian's packages, or the one on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1] if found else Path(on_path) if on_path else None


@cache
def postgresql_server() -> str:
    """Starts a server on a socket of its own and gives its URL; it ends with the test run.

    As root it runs as the user `postgres`, since initdb refuses root. Debian's own cluster is never touched.
    """
    initdb = find_initdb()
    if initdb is None:
        message = "PostgreSQL is not installed: sudo apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(f"{message} (in CI its tests never skip)")
        pytest.skip(message)
    home = Path(tempfile.mkdtemp(prefix="fleetgate-pg-"))
    as_user: list[str] = []
    user = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(home, account.pw_uid, account.pw_gid)
        as_user, user = ["runuser", "-u", "postgres", "--"], "postgres"
    data = home / "data"
    run = {"check": True, "capture_output": True, "cwd": home}
    subprocess.run(
        [*as_user, str(initdb), "-D", str(data), "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync"], **run
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    control = [*as_user, str(initdb.with_name("pg_ctl")), "-D", str(data), "-w", "-l", str(home / "log")]
    options = f"-k {home} -p {port} -c listen_addresses= -c fsync=off -c max_connections=200"
    subprocess.run([*control, "-o", options, "start"], **run)

    def end() -> None:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd=home)
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(end)
    return f"postgresql://{user}@/postgres?host={home}&port={port}"


def new_postgresql(template: str = "template1") -> str:
    """The URL of a new database, empty or as its template is."""
    server = sa.make_url(postgresql_server()).set(drivername="postgresql+psycopg")
    name = f"test_{uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    engine.dispose()
    return server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)


def new_url(kind: str, directory: Path) -> str:
    """The URL of a new, empty database of `kind`: sqlite or postgresql."""
    return new_postgresql() if kind == "postgresql" else f"sqlite:///{directory / 'test.db'}"


@cache
def migrated(kind: str) -> sa.URL:
    """A database with the newest schema that nobody uses: copying it is much faster than migrating anew."""
    directory = Path(tempfile.mkdtemp(prefix="fleetgate-migrated-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Database(new_url(kind, directory))
    migrate.upgrade(made)
    made.close()  # the last connection of SQLite moves all of its log into the file
    return made.url


def new_migrated_url(kind: str, directory: Path) -> str:
    """The URL of a new database of `kind` with the newest schema."""
    template = migrated(kind).database
    assert template is not None
    if kind == "postgresql":
        return new_postgresql(template)
    shutil.copyfile(template, directory / "test.db")
    return f"sqlite:///{directory / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with the newest schema, of each kind."""
    made = Database(new_migrated_url(request.param, tmp_path))
    yield made
    made.close()
