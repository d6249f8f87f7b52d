"""ETags of single objects, and edits that hold only if the object is still as it was seen (RFC 9110 §13.1.1).

A tag names what operators decide over. What devices change by themselves (connection, last seen, how many have
enrolled) is left out: with it, no edit of a living fleet would ever match. It is therefore no tag to cache by.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel

from gateway.http import views
from gateway.http.problems import PreconditionError
from provisioning.errors import InvalidError
from provisioning.products import Cohort, Product
from store.authorities import Authority
from store.devices import DeviceView

_LIVING: Final[dict[type[BaseModel], set[str]]] = {
    views.ProductOut: {"enrolled"},
    views.DeviceOut: {"connection", "last_seen_at"},
}


def make_etag(shown: BaseModel) -> str:
    """The tag of an object as it is shown."""
    text = shown.model_dump_json(exclude=_LIVING.get(type(shown), set()))
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def parse_if_match(header: str) -> Callable[[object], None]:
    """What to call with an object that is about to be changed.

    Returns: a function that raises PreconditionError where the header has another tag than the object.

    Raises:
        InvalidError: the header is neither `*` nor a list of strong tags.
    """
    tags = [tag.strip() for tag in header.split(",")]
    if tags == ["*"]:
        return lambda _: None
    if not all(len(tag) > 2 and tag[0] == tag[-1] == '"' for tag in tags):
        raise InvalidError(
            f"If-Match must be * or ETags in double quotes, as a GET gave them, got {header[:80]!r}",
            field="If-Match",
        )

    def check(found: object) -> None:
        shown = _show(found)
        now = make_etag(shown)
        if now not in tags:
            raise PreconditionError(
                f"the {type(shown).__name__.removesuffix('Out').lower()} has changed since you read it: its ETag "
                f"is {now}, If-Match has {', '.join(tags)}. GET it again, see what has changed, and send the edit "
                "with the new ETag"
            )

    return check


def _show(found: Any) -> BaseModel:
    match found:
        case Product():
            return views.ProductOut.of(found)
        case Cohort():
            return views.CohortOut.of(found)
        case DeviceView():
            return views.DeviceOut.of(found)
        case Authority():
            return views.AuthorityOut.of(found)
        case _:
            raise TypeError(f"{type(found).__name__} has no ETag")
