"""Statements that are compiled once and run with many rows: for what every batch writes.

SQLAlchemy Core makes the statement, once for each dialect. Through `execute` it would also look up every parameter
of every row again, which costs more than SQLite takes to write the row (measured: a third of a batch's writing).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from store.database import Transaction

Row = Mapping[str, Any]
_Processors = list[tuple[str, Callable[[Any], Any]]]


class _Prepared:
    """One statement of one dialect."""

    def __init__(self, statement: sa.Executable, dialect: sa.Dialect, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))  # type: ignore[attr-defined]
        self.sql: Final = str(compiled)
        self._order: Final = list(compiled.positiontup) if compiled.positional else None
        self._processors: Final[_Processors] = [
            (name, processor)
            for name, bound in compiled.binds.items()
            if (processor := bound.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]

    def parameters(self, rows: Sequence[Row]) -> list[Any]:
        """Rows as the driver takes them."""
        if self._processors:
            made = [dict(row) for row in rows]
            for name, processor in self._processors:
                for row in made:
                    row[name] = processor(row[name])
            rows = made
        if self._order is None:
            return list(rows)
        order = self._order
        return [tuple([row[name] for name in order]) for row in rows]


_PREPARED: Final[dict[tuple[str, str], _Prepared]] = {}


def run_many(tx: Transaction, name: str, make: Callable[[], sa.Executable], rows: Sequence[Row]) -> None:
    """Runs one statement with each of `rows`; nothing where there are none.

    Args:
        name: of the statement, which must be the same for the same statement.
        make: gives the statement in Core, for the dialect of `tx`; called once.
        rows: values by the names of its parameters, the same names in each.
    """
    if not rows:
        return
    dialect = tx.connection.dialect
    key = (name, dialect.name)
    prepared = _PREPARED.get(key)
    if prepared is None:
        prepared = _PREPARED[key] = _Prepared(make(), dialect, list(rows[0]))
    tx.connection.exec_driver_sql(prepared.sql, prepared.parameters(rows))
