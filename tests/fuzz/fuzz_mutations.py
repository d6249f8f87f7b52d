"""Valid inputs made invalid by their structure: JSON by members and values, DER by its nesting, anything by bytes.

Every choice comes from `choose(n)`, a number below n: hypothesis draws it in one driver, a seeded generator in the
other, so both know the same tricks.
"""

import base64
import binascii
import copy
import json
from collections.abc import Callable
from typing import Any, Final

Choose = Callable[[int], int]

NASTY: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**400, 1.0, 1.5, -0.0, 1e308, 5e-324,
    float("inf"), float("nan"), "", "\0", "\ud800", "\U0010ffff", "é" * 300, "x" * 65, "x" * 5000, "1" * 5000,
    "..", "../../etc/passwd", "$SYS/#", "a\nb", "true", [], {}, [None], [[]], [{}] * 40, {"": ""},
    {f"k{number}": number for number in range(900)}, {f"bad key {number}": [] for number in range(400)},
    ["A" * 10_000] * 2, {"payload": ""}, "cancelled", "succeeded", "offline", "+00:00", "Ａ", "=" * 32,
)  # fmt: skip


def mutate_json(data: bytes, choose: Choose) -> bytes:
    """A document with some members changed; bytes where it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, choose)
    for _ in range(1 + choose(3)):
        document = _change(document, choose)
    try:
        text = json.dumps(document, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return mutate_bytes(data, choose)
    return mutate_bytes(text, choose) if choose(6) == 0 else text


def _change(document: Any, choose: Choose) -> Any:
    places = _places(document)
    if not places or choose(40) == 0:
        return _wrapped(document, choose)
    holder, key = places[choose(len(places))]
    value = holder[key]
    match choose(9):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1:
            holder[key] = _wrapped(value, choose)
        case 2:
            other, place = places[choose(len(places))]
            holder[key] = (
                json.loads(json.dumps(other[place])) if place in other or isinstance(place, int) else 0
            )
        case 3 if isinstance(value, list):
            holder[key] = value * (2 + choose(40))
        case 4 if isinstance(value, str) and len(value) > 100:
            holder[key] = _recoded(value, choose)
        case 5 if isinstance(value, str):
            holder[key] = mutate_bytes(value.encode("utf-8", "replace"), choose).decode("utf-8", "replace")
        case 6 if isinstance(value, int):
            holder[key] = value + (1 << choose(66)) * (-1 if choose(2) else 1)
        case 7 if isinstance(holder, dict):
            holder[f"{key}{choose(3)}"] = value
        case _:
            # A copy: what is changed again must not change the list, nor come to hold itself.
            holder[key] = copy.deepcopy(NASTY[choose(len(NASTY))])
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every member and element, at most some hundred."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(found) < 300:
        value = waiting.pop()
        keys = (
            list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        )
        for key in keys:
            found.append((value, key))
            waiting.append(value[key])
    return found


def _wrapped(value: Any, choose: Choose) -> Any:
    for _ in range((1, 5, 31, 32, 33, 400)[choose(6)]):
        value = [value] if choose(2) else {"a": value}
    return value


def _recoded(text: str, choose: Choose) -> str:
    """What base64 holds, changed as what it looks like."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text[: choose(len(text))]
    changed = mutate_json(raw, choose) if raw[:1] == b"{" else mutate_der(raw, choose)
    return base64.b64encode(changed).decode()


# --- DER

Node = tuple[int, Any]
"""A tag, and its bytes or its parts."""


def mutate_der(data: bytes, choose: Choose) -> bytes:
    """A structure with some parts changed and all lengths right; now and then also its bytes."""
    nodes = _parse_der(data, 0)
    if nodes is None:
        return mutate_bytes(data, choose)
    for _ in range(1 + choose(2)):
        _change_der(nodes, choose)
    changed = b"".join(_encode_der(node) for node in nodes)[:20_000]
    return mutate_bytes(changed, choose) if choose(8) == 0 else changed


def _parse_der(data: bytes, depth: int) -> list[Node] | None:
    nodes: list[Node] = []
    at = 0
    while at < len(data):
        if at + 2 > len(data) or depth > 30:
            return None
        tag, length, at = data[at], data[at + 1], at + 2
        if length > 127:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        content, at = data[at : at + length], at + length
        if len(content) != length:
            return None
        # Extensions' values and keys are structures within strings.
        inside = _parse_der(content, depth + 1) if tag & 0x20 or tag == 0x04 else None
        nodes.append((tag, inside if inside else content))
    return nodes


def _encode_der(node: Node) -> bytes:
    tag, inside = node
    content = inside if isinstance(inside, bytes) else b"".join(_encode_der(part) for part in inside)
    length = len(content)
    if length < 128:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def _change_der(nodes: list[Node], choose: Choose) -> None:
    lists: list[list[Node]] = []
    waiting = [nodes]
    while waiting:
        parts = waiting.pop()
        lists.append(parts)
        waiting.extend(inside for _, inside in parts if isinstance(inside, list))
    parts = lists[choose(len(lists))]
    at = choose(len(parts)) if parts else 0
    if not parts:
        parts.append((0x05, b""))
        return
    tag, inside = parts[at]
    match choose(8):
        case 0:
            del parts[at]
        case 1:
            parts.extend([parts[at]] * (1, 2, 40, 200)[choose(4)])
        case 2:
            parts[at] = ((0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x13, 0x16, 0x17, 0x18, 0x1E, 0x30, 0x31, 0x80, 0x82,
                          0x86, 0x87, 0xA0, 0xA3)[choose(19)], inside)  # fmt: skip
        case 3:
            other = lists[choose(len(lists))]
            if other:
                copied, content = other[choose(len(other))]
                # As bytes: a part that held itself would have no end.
                parts[at] = (
                    copied,
                    content
                    if isinstance(content, bytes)
                    else b"".join(_encode_der(part) for part in content),
                )
        case 4 if isinstance(inside, bytes):
            parts[at] = (tag, mutate_bytes(inside, choose))
        case 5:
            parts[at] = (tag, bytes((choose(256),)) * (0, 1, 2, 20, 21, 64, 400, 3000)[choose(8)])
        case 6:
            for _ in range((1, 10, 100)[choose(3)]):
                inside = [(0x30, inside)]
            parts[at] = (tag, inside)
        case _:
            parts[at] = (
                tag,
                [(0x06, b"\x55\x1d" + bytes((choose(60),))), (0x01, b"\xff"), (0x04, b"\x30\x00")],
            )


# --- Bytes


def mutate_bytes(data: bytes, choose: Choose) -> bytes:
    """Some bytes changed, taken away, put in or said twice."""
    for _ in range(1 + choose(3)):
        at = choose(len(data) + 1)
        end = min(len(data), at + 1 + choose(16))
        match choose(6):
            case 0:
                data = data[:at] + bytes((choose(256),)) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:end] + data[at:]
            case 3:
                data = data[:at]
            case 4:
                data = data[:at] + data[at:end] * (2 + choose(60)) + data[end:]
            case _:
                data = data[:at] + TOKENS[choose(len(TOKENS))] + data[at:]
    return data[:40_000]


TOKENS: Final = (
    b"\xff", b"\0", b"\n", b'"', b"{", b"}", b"[" * 40, b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"\\ud800"', b"1e999",
    b"-0", b"NaN", b'"v":1,', b",", b"/", b"=", b"\\", b"9" * 5000, b"\xd9\xa1",
    b"\x30\x80", b"\x30\x84\xff\xff\xff\xff",
)  # fmt: skip
