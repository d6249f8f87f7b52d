"""Statements that are compiled once and run by the driver: for what every batch reads and writes.

SQLAlchemy Core makes the statement, once for each dialect. Through `execute` it would also look the statement up
among those that are compiled, and every parameter and column of every row by its name: for one hello alone that took
longer than the database did (measured: 65 µs a statement, of 15; and a third of a full batch's writing).
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from store.database import Transaction

Row = Mapping[str, Any]
_Processor = Callable[[Any], Any]
_LIST: Final = re.compile(r"(?P<not>NOT )?IN \(__\[POSTCOMPILE_(?P<name>\w+)\]\)")
"""An `IN` over a list, as Core compiles it: to be written out for every length anew."""


class _Compiled:
    """One statement of one dialect."""

    def __init__(self, statement: sa.Executable, dialect: sa.Dialect, names: Sequence[str] | None) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=None if names is None else list(names))  # type: ignore[attr-defined]
        text = str(compiled)
        self.lists: Final = frozenset(found["name"] for found in _LIST.finditer(text))
        self.sql: Final = _LIST.sub(_one_parameter if compiled.positional else _one_array, text)
        self._order: Final = list(compiled.positiontup) if compiled.positional else None
        self._binders: Final[list[tuple[str, _Processor]]] = [
            (name, processor)
            for name, bound in compiled.binds.items()
            if name not in self.lists
            and (processor := bound.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]
        self._constants: Final = {
            name: bound.value for name, bound in compiled.binds.items() if not bound.required
        }
        self.readers: Final[list[tuple[int, _Processor]]] = [
            (position, processor)
            for position, column in enumerate(getattr(statement, "selected_columns", ()))
            if (processor := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
        ]

    def parameters(self, rows: Sequence[Row]) -> list[Any]:
        """Rows as the driver takes them."""
        if self._binders:
            made = [dict(row) for row in rows]
            for name, processor in self._binders:
                for row in made:
                    row[name] = processor(row[name])
            rows = made
        if self._order is None:
            return list(rows)
        order = self._order
        return [tuple([row[name] for name in order]) for row in rows]

    def one(self, values: Row) -> Any:
        """One set of values, and the statement's own constants, as the driver takes them."""
        values = {**self._constants, **values}
        if self._order is None:
            return values
        return [json.dumps(values[name]) if name in self.lists else values[name] for name in self._order]


def _one_parameter(found: re.Match[str]) -> str:
    # SQLite: a list as one JSON text.
    return (found["not"] or "") + "IN (SELECT value FROM json_each(?))"  # noqa: S608  # constants


def _one_array(found: re.Match[str]) -> str:
    # PostgreSQL: a list as one array.
    return f"{'<> ALL' if found['not'] else '= ANY'} (%({found['name']})s)"


_COMPILED: Final[dict[tuple[str, str], _Compiled]] = {}


def run_many(tx: Transaction, name: str, make: Callable[[], sa.Executable], rows: Sequence[Row]) -> None:
    """Runs one statement with each of `rows`; nothing where there are none.

    Args:
        name: of the statement, which must be the same for the same statement.
        make: gives the statement in Core, for the dialect of `tx`; called once.
        rows: values by the names of its parameters, the same names in each.
    """
    if not rows:
        return
    compiled = _compiled(tx, name, make, list(rows[0]))
    parameters = compiled.parameters(rows)
    cursor = tx.connection.connection.cursor()
    try:
        if len(parameters) == 1:  # psycopg opens a pipeline for many, which costs more than one statement
            cursor.execute(compiled.sql, parameters[0])
        else:
            cursor.executemany(compiled.sql, parameters)
    except tx.connection.dialect.loaded_dbapi.Error as error:
        raise _translate(tx, compiled.sql, error) from error
    finally:
        cursor.close()


def run_one(tx: Transaction, name: str, make: Callable[[], sa.Executable], **values: object) -> int:
    """Runs one statement with one set of values, as `run_many` does. Returns: how many rows it changed."""
    compiled = _compiled(tx, name, make, list(values))
    cursor = tx.connection.connection.cursor()
    try:
        cursor.execute(compiled.sql, compiled.one(values))
        return int(cursor.rowcount)
    except tx.connection.dialect.loaded_dbapi.Error as error:
        raise _translate(tx, compiled.sql, error) from error
    finally:
        cursor.close()


class Query:
    """A SELECT that every batch runs: rows as plain tuples, in the order of its columns.

    Args:
        statement: in Core; a list for an `IN` is `sa.bindparam(…, expanding=True)`.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}  # by dialect

    def rows(self, tx: Transaction, **values: object) -> Sequence[tuple[Any, ...]]:
        """All rows, for values by the names of its parameters."""
        dialect = tx.connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect, None)
        cursor = tx.connection.connection.cursor()
        try:
            cursor.execute(compiled.sql, compiled.one(values))
            found: Sequence[tuple[Any, ...]] = cursor.fetchall()
        except tx.connection.dialect.loaded_dbapi.Error as error:
            raise _translate(tx, compiled.sql, error) from error
        finally:
            cursor.close()
        if not compiled.readers or not found:
            return found
        read = [list(row) for row in found]
        for position, processor in compiled.readers:
            for row in read:
                row[position] = processor(row[position])
        return [tuple(row) for row in read]

    def value(self, tx: Transaction, **values: object) -> Any:
        """The first column of the first row; None where there is no row."""
        found = self.rows(tx, **values)
        return found[0][0] if found else None


def _compiled(
    tx: Transaction, name: str, make: Callable[[], sa.Executable], names: Sequence[str]
) -> _Compiled:
    dialect = tx.connection.dialect
    key = (name, dialect.name)
    compiled = _COMPILED.get(key)
    if compiled is None:
        compiled = _COMPILED[key] = _Compiled(make(), dialect, names)
    return compiled


@contextlib.contextmanager
def together(tx: Transaction) -> Iterator[None]:
    """Sends what is written in the block without waiting for each answer; PostgreSQL's pipeline mode.

    What the database refuses is raised at the end of the block at the latest, and no count of rows is known in it.
    """
    if tx.is_sqlite:
        yield
        return
    try:
        with tx.connection.connection.driver_connection.pipeline():  # type: ignore[union-attr]
            yield
    except tx.connection.dialect.loaded_dbapi.Error as error:
        raise _translate(tx, "a pipeline", error) from error


def _translate(tx: Transaction, sql: str, error: Exception) -> SQLAlchemyError:
    """A driver's error as SQLAlchemy's, as everywhere in the store; one that ended the connection gives it up."""
    connection, dialect = tx.connection, tx.connection.dialect
    gone = dialect.is_disconnect(error, connection.connection.driver_connection, None)  # type: ignore[arg-type]
    if gone:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql, None, error, dialect.loaded_dbapi.Error, connection_invalidated=gone, dialect=dialect
    )
