"""Cursors of lists that come in pages: opaque to callers, so that what is in them may change."""

import base64
import binascii
import json
from typing import Final

from provisioning.errors import InvalidError

_VERSION: Final = 1
_MOST_CHARACTERS: Final = 200


def make_cursor(listed: str, after: int) -> str:
    """The cursor of the page that begins after the object with the number `after`.

    Args:
        listed: what is listed; another list does not take the cursor.
    """
    payload = json.dumps([_VERSION, listed, after], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def parse_cursor(listed: str, cursor: str) -> int:
    """The number in a cursor that `make_cursor` has made for the same list.

    Raises:
        InvalidError: it is no such cursor.
    """
    refusal = InvalidError(
        f"this is no cursor of {listed}; take next_cursor of the page before, or leave it out for the first",
        field="cursor",
    )
    if len(cursor) > _MOST_CHARACTERS:
        raise refusal
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, kind, after = json.loads(text)
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise refusal from error
    if type(after) is not int or not 0 <= after < 1 << 63 or (version, kind) != (_VERSION, listed):
        raise refusal
    return after
