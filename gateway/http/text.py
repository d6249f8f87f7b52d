"""Text that no database keeps is refused at the door: PostgreSQL has no NUL in a text."""

from typing import Any, Final

from fastapi import Request

from provisioning.errors import InvalidError

_NUL: Final = "\0"


def has_nul(value: Any) -> bool:
    """Whether a JSON value has the character U+0000 anywhere in it."""
    match value:
        case str():
            return _NUL in value
        case list():
            return any(has_nul(item) for item in value)
        case dict():
            return any(_NUL in key or has_nul(item) for key, item in value.items())
        case _:
            return False


def refuse_nul(request: Request) -> None:
    """Refuses a path or query with the character U+0000.

    Raises:
        InvalidError: it has one.
    """
    parts = [
        *request.path_params.values(),
        *(part for pair in request.query_params.multi_items() for part in pair),
    ]
    if any(_NUL in str(part) for part in parts):
        raise InvalidError("the path and the query must not have the character U+0000", field="path")
