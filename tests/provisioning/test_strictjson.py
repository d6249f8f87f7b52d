"""Strict JSON: what is refused, and that everything else is read exactly as it was written."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.errors import MessageError, RejectReason
from provisioning.strictjson import MAX_DEPTH, MAX_INTEGER, MAX_MESSAGE_BYTES, parse_json


def _refusal(data: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        parse_json(data)
    assert caught.value.reason is RejectReason.MALFORMED_JSON
    return caught.value.detail


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "Expecting value at character 0"),
        (b"\xef\xbb\xbf{}", "Expecting value at character 0"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        (b'{"a":1,"a":1}', "an object names a member twice"),
        (b'{"a":1,"\\u0061":2}', "an object names a member twice"),
        (b'[{"b":{"a":1,"a":2}}]', "an object names a member twice"),
        (b"NaN", "NaN and Infinity are not JSON"),
        (b"[-Infinity]", "NaN and Infinity are not JSON"),
        (b"1e400", "a number beyond a double's range"),
        (b"[-1e400]", "a number beyond a double's range"),
        (b"9223372036854775808", "an integer beyond 63 bits"),
        (b"-9223372036854775808", "an integer beyond 63 bits"),
        (b"1" * 5000, "an integer beyond 63 bits"),
        (b'"\\ud800"', "a lone surrogate in a string"),
        (b'{"\\udc00":1}', "a lone surrogate in a string"),
        (b'[["\\ud800\\u0041"]]', "a lone surrogate in a string"),
        (b'"\\u0000"', "a NUL in a string"),
        (b'{"a\\u0000":1}', "a NUL in a string"),
        (b'{"a":1} x', "Extra data at character 8"),
        (b'"a\nb"', "Invalid control character at at character 2"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32 levels"),
        (b"[" * 8000 + b"]" * 8000, "nested deeper than 32 levels"),
    ],
)
def test_refused(data: bytes, detail: str) -> None:
    assert _refusal(data) == detail


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"9223372036854775807", MAX_INTEGER),
        (b"-9223372036854775807", -MAX_INTEGER),
        (b"1.5e3", 1500.0),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'" [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ "', " " + "[" * 38 + " "),
        (b'{"a":{"a":[]}}', {"a": {"a": []}}),
        (b" [true, false, null]\r\n\t", [True, False, None]),
    ],
)
def test_read(data: bytes, value: object) -> None:
    assert parse_json(data) == value


def test_depth_limit_is_exact() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None
    # Wide is not deep: many brackets side by side are read.
    assert parse_json(b"[" + b",".join([b"[]"] * 500) + b"]") == [[]] * 500


def test_size_limit_is_exact() -> None:
    assert parse_json(b'"' + b"a" * (MAX_MESSAGE_BYTES - 2) + b'"') is not None
    with pytest.raises(MessageError) as caught:
        parse_json(b'"' + b"a" * (MAX_MESSAGE_BYTES - 1) + b'"')
    assert caught.value.reason is RejectReason.MESSAGE_TOO_LARGE
    assert caught.value.detail == "message of 16385 bytes, at most 16384 are read"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), children
        )
    ),
    max_leaves=30,
)


@given(JSON, st.booleans())
def test_reads_what_was_written(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), 1_000_000) == value


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    # Nothing but our own error comes out: no RecursionError, no ValueError.
    with contextlib.suppress(MessageError):
        parse_json(data)
