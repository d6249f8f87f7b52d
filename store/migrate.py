"""Brings a database's schema forward, and says where it stands. There is no way back: take a backup before."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from provisioning.errors import SetupError
from store.database import Database, Transaction

_MIGRATIONS: Final = Path(__file__).resolve().parent / "migrations"
_LOCK: Final = "schema"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The revision that this version of Fleetgate works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SetupError("the migrations are missing from this installation of fleetgate; install it again")
    return revision


def current(database: Database) -> str | None:
    """The revision of the database's schema; None for an empty one.

    Raises:
        StoreUnavailableError: the database is away.
    """
    with database.read() as tx:
        return _current(tx)


def upgrade(database: Database) -> str:
    """Brings the schema to `head()` in one transaction; one process at a time, the others wait and find it done.

    Returns: the revision that it stands at now.

    Raises:
        SetupError: the schema was made by a newer Fleetgate.
        StoreError: the database refused a step; nothing has changed then.
    """
    with database.write([_LOCK]) as tx:
        before = _current(tx)
        _refuse_newer(database, before)
        if before != head():
            config = _config()
            config.attributes["connection"] = tx.connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise SetupError(f"database {database}: {error}") from error
    return head()


def check(database: Database) -> None:
    """Returns if the schema is the one that this version works with.

    Raises:
        SetupError: it is empty, older or newer; says what to do.
        StoreUnavailableError: the database is away.
    """
    found = current(database)
    _refuse_newer(database, found)
    if found is None:
        raise SetupError(
            f"database {database} has no tables yet; `fleetgate init` or `fleetgate serve` makes them"
        )
    if found != head():
        raise SetupError(
            f"database {database} has schema {found}, this version works with {head()}; "
            "take a backup, then `fleetgate serve` brings it forward"
        )


def _current(tx: Transaction) -> str | None:
    return MigrationContext.configure(tx.connection).get_current_revision()


def _refuse_newer(database: Database, found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"database {database} has schema {found}, which this version does not know (it works with {head()}): "
            "a newer fleetgate made it; install that one"
        )
