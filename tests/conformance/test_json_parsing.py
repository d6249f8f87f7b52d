"""JSONTestSuite: every `y_` is read, and every other vector refused."""

import base64
from typing import Any

from provisioning.errors import MessageError
from provisioning.strictjson import parse_json

REFUSED_ALTHOUGH_VALID = {
    "y_object_duplicated_key.json": "a repeated member is read differently by different readers",
    "y_object_duplicated_key_and_value.json": "the same",
    "y_object_escaped_null_in_key.json": "NUL ends strings in C and is refused by PostgreSQL",
    "y_string_null_escape.json": "the same",
}
"""`y_` vectors that RFC 8259 allows and we refuse on purpose."""

MAX_BYTES = 1_000_000
"""Above the message limit, so that deep nesting is refused for what it is, not for its size."""


def _is_read(data: bytes) -> bool:
    try:
        parse_json(data, MAX_BYTES)
    except MessageError:
        return False
    return True


def test_outcomes(vectors: Any) -> None:
    cases = vectors.load("json-parsing.json")
    vectors.ran("JSON parsing", len(cases))
    read = {case["name"] for case in cases if _is_read(base64.b64decode(case["base64"]))}
    names = {case["name"] for case in cases}
    expected = {name for name in names if name.startswith("y_")} - REFUSED_ALTHOUGH_VALID.keys()
    assert read - expected == set(), "read, and should be refused"
    assert expected - read == set(), "refused, and should be read"


def test_exceptions_exist(vectors: Any) -> None:
    names = {case["name"] for case in vectors.load("json-parsing.json")}
    unknown = REFUSED_ALTHOUGH_VALID.keys() - names
    assert unknown == set(), "an exception for a vector that is not there"
