"""What is not the strict JSON of section 4, as the envelope and as the payload in it."""

from typing import Any

from making.keys import compact
from making.messages import payload_of, sealed

DEPTH = 32


def add(cases: Any) -> None:
    """Each fault twice: in the envelope, and in a payload that is rightly signed."""
    envelope = compact(sealed("ed25519", "hello", payload_of("ed25519", "hello")))
    payload = payload_of("ed25519", "hello")
    for name, about, data in _faults(envelope):
        cases.add(f"envelope-{name}", f"The envelope {about}", "malformed_json", data)
    for name, about, data in _faults(payload):
        cases.signed(f"payload-{name}", f"The payload {about} It is rightly signed.", "malformed_json", data)
    cases.signed(
        "payload-depth-32", "Nothing is wrong: the payload is nested 32 deep, in a member that nobody knows.", None,
        _with(payload, b'"deep":' + _nested(DEPTH - 1)),
    )  # fmt: skip
    cases.signed(
        "payload-largest-integer", "Nothing is wrong: 2⁶³−1 is the largest integer.", None,
        payload_of("ed25519", "hello", seq=2**63 - 1),
    )  # fmt: skip
    cases.signed(
        "payload-escaped-pair", "Nothing is wrong: `\\ud83d\\udeb0` is a pair of surrogates, one character.", None,
        _with(payload, b'"extra":"\\ud83d\\udeb0"'),
    )  # fmt: skip


def _faults(right: bytes) -> list[tuple[str, str, bytes]]:
    """Name, end of the sentence, bytes."""
    first = right[1 : right.index(b",")]
    return [
        ("empty", "is empty.", b""),
        ("cut-off", "is cut off.", right[:-1]),
        ("trailing-comma", "has a comma after its last member.", right[:-1] + b",}"),
        ("trailing-text", "is followed by a second value.", right + b"{}"),
        ("single-quotes", "has a string in single quotes.", _with(right, b"'extra':1")),
        ("comment", "has a comment.", _with(right, b'"extra":1/*?*/')),
        ("raw-line-feed", "has a line feed within a string.", _with(right, b'"extra":"a\nb"')),
        ("leading-zero", "has a number with a leading zero.", _with(right, b'"extra":01')),
        ("bom", "begins with a byte order mark.", b"\xef\xbb\xbf" + right),
        ("utf-16", "is UTF-16.", right.decode().encode("utf-16-le")),
        ("not-utf-8", "has a byte that is not UTF-8.", _with(right, b'"extra":"\xff"')),
        ("repeated-member", "names its first member twice, with the same value.", _with(right, first)),
        (
            "repeated-inner-member",
            "has a member twice in an object that nobody knows.",
            _with(right, b'"extra":{"a":1,"a":1}'),
        ),
        ("nan", "has NaN in a member that nobody knows.", _with(right, b'"extra":NaN')),
        ("infinity", "has -Infinity in a member that nobody knows.", _with(right, b'"extra":-Infinity')),
        ("number-too-large", "has a number beyond a double.", _with(right, b'"extra":1e400')),
        ("integer-too-large", "has the integer 2⁶³.", _with(right, b'"extra":9223372036854775808')),
        ("lone-surrogate", "has half of a pair of surrogates.", _with(right, b'"extra":"\\ud83d"')),
        ("nul", "has a NUL within a string.", _with(right, b'"extra":"a\\u0000b"')),
        ("too-deep", "is nested 33 deep.", _with(right, b'"extra":' + _nested(DEPTH))),
    ]


def _with(document: bytes, member: bytes) -> bytes:
    """The object with one more member at its end."""
    return document[:-1] + b"," + member + b"}"


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels
