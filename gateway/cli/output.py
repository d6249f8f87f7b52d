"""What commands print: data on standard output, everything else on standard error; exit codes by kind of error.

Text that came from devices is shown with its control characters escaped: a terminal obeys some of them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from provisioning.errors import (
    AccessError,
    ConflictError,
    FleetgateError,
    InvalidError,
    NotFoundError,
    TransitionError,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Row = Mapping[str, Any]
_MARKS: Final[Mapping[bool | None, str]] = {True: "ok  ", False: "NO  ", None: "–   "}
_PIPED_WIDTH: Final = 240  # no terminal: wide enough that no column is cut


class ExitCode(IntEnum):
    """What a command ends with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    ACCESS = 4
    CONFLICT = 5
    TIMED_OUT = 6


class TimedOutError(FleetgateError):
    """The gateway did not answer in time; whether it did what was asked is not known."""


def exit_code(error: FleetgateError) -> ExitCode:
    """The exit code for an error."""
    match error:
        case NotFoundError():
            return ExitCode.NOT_FOUND
        case AccessError():
            return ExitCode.ACCESS
        case ConflictError() | TransitionError():
            return ExitCode.CONFLICT
        case TimedOutError():
            return ExitCode.TIMED_OUT
        case InvalidError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILURE


def say(text: str) -> None:
    """A line of progress or advice, on standard error."""
    sys.stderr.write(f"{text}\n")


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_compact(value: object) -> None:
    """One JSON document on a line of its own, at once: for what goes on and on."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """A line of data on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """A list of objects.

    Args:
        rows: the objects as the API gave them, which is also their JSON.
        columns: heading and dotted key of what the table shows.
        as_json: the whole list as JSON instead.
    """
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        say("none")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text_of(_at(row, key))) for _, key in columns))
    _console().print(table)


def print_object(value: Row, *, as_json: bool) -> None:
    """One object: its members line by line, or as JSON."""
    if as_json:
        print_json(value)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, member in _flat(value):
        table.add_row(Text(key.replace("_", " "), style="bold"), Text(text_of(member)))
    _console().print(table)


def print_rules(rules: Iterable[Row]) -> None:
    """Rules of a decision, a line each: passed, failed, or not reached; the reason word, and until when it holds."""
    for rule in rules:
        more = f" ({rule['reason']})" if rule.get("reason") else ""
        if rule.get("changes_at"):
            more += f" (until {rule['changes_at']})"
        print_line(f"{_MARKS[rule['passed']]}{rule['name']}: {text_of(rule['detail'])}{more}")


def text_of(value: object) -> str:
    """A value for people: yes and no, – for none, control characters escaped."""
    match value:
        case None | "" | []:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(text_of(item) for item in value)
        case dict():
            return ", ".join(f"{key}={text_of(item)}" for key, item in value.items()) or "–"
        case _:
            return "".join(
                char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
                for char in str(value)
            )


def _at(row: Row, key: str) -> object:
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _flat(value: Row, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, member in value.items():
        if isinstance(member, Mapping) and member:
            yield from _flat(member, f"{prefix}{key} ")
        else:
            yield prefix + key, member


def _console() -> Console:
    # rich itself honours NO_COLOR and a standard output that is no terminal.
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
