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


class PostgresServer:
    """A server of our own on its own socket, which can be stopped and started again.

    As root it runs as the user `postgres`, since initdb refuses root. Debian's own cluster is never touched.

    Args:
        durable: whether a commit waits for the disk; tests do without, benchmarks do not.
    """

    def __init__(self, *, durable: bool = False) -> None:
        initdb = find_initdb()
        if initdb is None:
            message = "PostgreSQL is not installed: sudo apt-get install postgresql"
            if os.environ.get("CI"):
                pytest.fail(f"{message} (in CI its tests never skip)")
            pytest.skip(message)
        self._home = home = Path(tempfile.mkdtemp(prefix="fleetgate-pg-"))
        as_user: list[str] = []
        user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(home, account.pw_uid, account.pw_gid)
            as_user, user = ["runuser", "-u", "postgres", "--"], "postgres"
        data = home / "data"
        self._run(
            *as_user, str(initdb), "-D", str(data), "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        control = str(initdb.with_name("pg_ctl"))
        self._control = [*as_user, control, "-D", str(data), "-w", "-l", str(home / "log")]
        fsync = "on" if durable else "off"
        self._options = f"-k {home} -p {port} -c listen_addresses= -c fsync={fsync} -c max_connections=200"
        self.url = f"postgresql://{user}@/postgres?host={home}&port={port}"
        atexit.register(self.end)
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._run(*self._control, "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stops it: `immediate` is as good as a power cut, `fast` ends every connection in order."""
        self._run(*self._control, "-m", mode, "stop")

    def restart_as_standby(self) -> None:
        """Restarts it as a standby, as the other half of a failover is: it answers, and takes no change."""
        self.stop("fast")
        (self._home / "data" / "standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """Makes a standby the primary."""
        self._run(*self._control, "promote")

    def log(self) -> str:
        """Everything that it has said."""
        return (self._home / "log").read_text(errors="replace")

    def end(self) -> None:
        """Stops it for good and takes everything away. Repeating changes nothing."""
        if not self._home.exists():
            return
        command = [*self._control, "-m", "immediate", "stop"]
        subprocess.run(command, check=False, capture_output=True, cwd=self._home)
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self._home)


@cache
def postgresql_server() -> str:
    """The URL of the server that all tests share; it ends with the test run."""
    return PostgresServer().url


def new_postgresql(template: str = "template1", server_url: str | None = None) -> str:
    """The URL of a new database, empty or as its template is; on the shared server, or on another."""
    server = sa.make_url(server_url or postgresql_server()).set(drivername="postgresql+psycopg")
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
