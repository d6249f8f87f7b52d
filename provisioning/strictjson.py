"""JSON from strangers, read so that no two readers can understand it differently (protocol, section 4).

Decides what counts as JSON here: RFC 8259 in UTF-8 without a byte order mark, and of that only what every
implementation reads alike: no repeated members, no NaN or Infinity, no number beyond its type, no lone
surrogates, no NUL, at most 32 levels. Python's own parser accepts all of these. What the document means is
left to the caller.
"""

import json
import math
from typing import Final, NoReturn

from provisioning.errors import MessageError, RejectReason

MAX_MESSAGE_BYTES: Final = 16_384
"""The largest message of protocol v1; the broker's `message_size_limit` is the same."""

MAX_DEPTH: Final = 32
"""Levels of arrays and objects; protocol v1 itself needs 4."""

MAX_INTEGER: Final = 2**63 - 1
"""What a signed 64-bit column, and any client's integer, can hold."""

_MAX_INTEGER_DIGITS: Final = 20  # sign and 19 digits; nothing longer can be in range


def parse_json(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> object:
    """Read one JSON document.

    Args:
        data: the document, UTF-8.
        max_bytes: the most that `data` may measure, in bytes.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        MessageError: MESSAGE_TOO_LARGE, or MALFORMED_JSON with the position and kind of the fault, never
            with the content.
    """
    if len(data) > max_bytes:
        raise MessageError(
            RejectReason.MESSAGE_TOO_LARGE, f"message of {len(data)} bytes, at most {max_bytes} are read"
        )
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8 at byte {error.start}")
    try:
        document = _decode(text)
    except json.JSONDecodeError as error:
        # `msg` is one of the parser's fixed phrases.
        _refuse(f"{error.msg} at character {error.pos}")
    except RecursionError:
        _refuse(f"nested deeper than {MAX_DEPTH} levels")
    # Both faults below need these bytes to be there; most messages are spared the walk.
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        _check_tree(document)
    return document


def _decode(text: str) -> object:
    """The document; what begins and ends without blanks, as nearly all do, is spared the search for them."""
    if text[:1] == "{":
        document, end = _DECODER.raw_decode(text)
        if end == len(text):
            return document
    return _DECODER.decode(text)


def _refuse(detail: str) -> NoReturn:
    raise MessageError(RejectReason.MALFORMED_JSON, detail) from None


def _read_object(members: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(members)
    if len(found) != len(members):
        _refuse("an object names a member twice")
    return found


def _read_integer(digits: str) -> int:
    if len(digits) <= _MAX_INTEGER_DIGITS:
        number = int(digits)
        if -MAX_INTEGER <= number <= MAX_INTEGER:
            return number
    _refuse("an integer beyond 63 bits")


def _read_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        _refuse("a number beyond a double's range")
    return number


def _read_constant(_: str) -> NoReturn:
    _refuse("NaN and Infinity are not JSON")


def _check_tree(document: object) -> None:
    """Refuse depth, lone surrogates and NUL anywhere, members' names included; without recursion."""
    waiting: list[tuple[object, int]] = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                _refuse(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
                waiting.extend((child, depth + 1) for child in value.values())
            else:
                waiting.extend((child, depth + 1) for child in value)


def _check_text(text: str) -> None:
    if "\x00" in text:
        _refuse("a NUL in a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _refuse("a lone surrogate in a string")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_read_object,
    parse_int=_read_integer,
    parse_float=_read_float,
    parse_constant=_read_constant,
    strict=True,
)
