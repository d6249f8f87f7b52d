"""Rows of a table as the frozen values that decisions see: a field for each column of its name.

Columns are read by position: SQLAlchemy takes as long to look one up by its name as SQLite takes to read it
(measured: a row of twenty columns 15 µs by name, 6 by position).
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

Converter = Callable[[Any], Any]
Made = TypeVar("Made")
Member = TypeVar("Member", bound=Enum)


class RowReader(Generic[Made]):
    """Makes values of one type of rows that hold all columns of a table side by side, in its order.

    Args:
        made: a dataclass, or what makes a value of columns by their names.
        table: whose columns they are.
        converters: by field, from what the column holds.
        takes: the columns that `made` takes; None: those of the dataclass's fields. Others are passed over.
        start: where in the row the table begins.
    """

    def __init__(
        self,
        made: Callable[..., Made],
        table: sa.Table,
        converters: Mapping[str, Converter],
        *,
        takes: Iterable[str] | None = None,
        start: int = 0,
    ) -> None:
        known = {field.name for field in fields(made)} if takes is None else set(takes)  # type: ignore[arg-type]
        self._made: Final = made
        # Interned, as a call's keywords are: else each is compared with each, letter by letter.
        self._names: Final = tuple(sys.intern(str(column.name)) for column in table.columns)
        self._left_out: Final = tuple(name for name in self._names if name not in known)
        self._converters: Final = tuple(converters.items())
        self._part: Final = slice(start, start + len(self._names))

    def __call__(self, row: Sequence[Any]) -> Made:
        values: dict[str, Any] = dict(zip(self._names, row[self._part], strict=True))
        for name in self._left_out:
            del values[name]
        for name, convert in self._converters:
            values[name] = convert(values[name])
        return self._made(**values)


def by_value(members: type[Member]) -> Callable[[Any], Member]:
    """A converter to an enum, faster than calling it; KeyError over a value that it does not have."""
    return {member.value: member for member in members}.__getitem__
