"""PUBLISH and PUBACK as bytes, the two packets that every hello costs, both ways: MQTT 5 and 3.1.1, §3.3 and §3.4.

Pure: no socket and no state. All other packets are paho's (`session.py`).
"""

from typing import Final, NamedTuple

from provisioning.errors import FleetgateError

PUBLISH: Final = 0x30
PUBACK: Final = 0x40
_DUPLICATE: Final = 0x08  # §3.3.1.1
_QOS_1: Final = 0x02
_REFUSED_FROM: Final = 0x80  # reason codes of failure (MQTT 5 §2.4)
_RESPONSE_TOPIC: Final = 0x08  # MQTT 5 §2.2.2.2
_CORRELATION_DATA: Final = 0x09
_FIXED: Final = {0x01: 1, 0x02: 4, 0x23: 2}  # payload format, expiry, topic alias
_VARIABLE: Final = 0x0B  # subscription identifier
_STRINGS: Final = {
    0x03: 1,
    _RESPONSE_TOPIC: 1,
    _CORRELATION_DATA: 1,
    0x26: 2,
}  # how many, each with its length


class PacketError(FleetgateError):
    """What the broker sent is no packet of MQTT."""


class Published(NamedTuple):
    """A PUBLISH that was received."""

    topic: str
    payload: bytes
    qos: int
    mid: int  # the packet identifier; 0 with QoS 0
    response_topic: str | None = None  # MQTT 5 §3.3.2.3.5
    correlation: bytes | None = None  # MQTT 5 §3.3.2.3.6


def take_packets(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Takes the whole packets from the front of `buffer`, which keeps the rest.

    Returns: of each, its first byte and what follows its length.

    Raises:
        PacketError: a length of more than four bytes (§2.1.4): nothing after it can be read.
    """
    found: list[tuple[int, bytes]] = []
    at, end = 0, len(buffer)
    with memoryview(buffer) as view:
        while end - at >= 2:
            length, shift, start = 0, 0, at + 1
            while start < end:
                byte = view[start]
                start += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 21:
                    raise PacketError("a packet's length has more than four bytes")
            else:
                break
            if start + length > end:
                break
            found.append((view[at], bytes(view[start : start + length])))
            at = start + length
    del buffer[:at]
    return found


def parse_publish(first: int, body: bytes, *, is_v5: bool) -> Published:
    """Reads a PUBLISH.

    Args:
        first: the packet's first byte.
        body: what follows its length.

    Raises:
        PacketError: it ends too early, or has a property that a PUBLISH cannot have. `find_mid` may still find
            the number to acknowledge.
    """
    try:
        topic, at = _take_bytes(body, 0)
        qos, mid = (first >> 1) & 3, 0
        if qos:
            mid, at = int.from_bytes(body[at : at + 2], "big"), at + 2
        response_topic = correlation = None
        if is_v5:
            if body[at] == 0:  # no properties
                at += 1
            else:
                response_topic, correlation, at = _parse_properties(body, at)
    except IndexError:
        raise PacketError("a PUBLISH ends too early") from None
    if at > len(body):
        raise PacketError("a PUBLISH ends too early")
    return Published(topic.decode("utf-8", "replace"), body[at:], qos, mid, response_topic, correlation)


def find_mid(body: bytes) -> int:
    """The packet identifier of a PUBLISH with QoS 1 that cannot be read as a whole; 0 where there is none."""
    after_topic = 2 + int.from_bytes(body[:2], "big")
    return int.from_bytes(body[after_topic : after_topic + 2], "big")


def parse_puback(body: bytes) -> tuple[int, bool]:
    """Of a PUBACK: the packet identifier, and whether it refuses (MQTT 5 §3.4.2.1; 3.1.1 never does)."""
    return int.from_bytes(body[:2], "big"), len(body) > 2 and body[2] >= _REFUSED_FROM


def pack_publish(topic: str, payload: bytes, mid: int, *, is_v5: bool, correlation: bytes | None) -> bytes:
    """A PUBLISH with QoS 1, or with QoS 0 where `mid` is 0; correlation data go with MQTT 5 alone."""
    name = topic.encode()
    parts = [len(name).to_bytes(2, "big"), name]
    if mid:
        parts.append(mid.to_bytes(2, "big"))
    if is_v5:
        if correlation is None:
            parts.append(b"\0")
        else:
            held = b"\x09" + len(correlation).to_bytes(2, "big") + correlation
            parts += (_pack_length(len(held)), held)
    parts.append(payload)
    first = PUBLISH | (_QOS_1 if mid else 0)
    return b"".join((bytes((first,)), _pack_length(sum(map(len, parts))), *parts))


def pack_again(packet: bytes) -> bytes:
    """A PUBLISH as it is sent again, on the next connection (§4.4)."""
    return bytes((packet[0] | _DUPLICATE,)) + packet[1:]


def pack_puback(mid: int) -> bytes:
    """The acknowledgement of a PUBLISH with QoS 1: success."""
    return bytes((PUBACK, 2, mid >> 8, mid & 0xFF))


def _parse_properties(body: bytes, at: int) -> tuple[str | None, bytes | None, int]:
    """Response topic, correlation data, and where the payload begins; the others are passed over unread."""
    length, at = _take_variable(body, at)
    end = at + length
    response_topic = correlation = None
    while at < end:
        name, at = body[at], at + 1
        if name in _FIXED:
            at += _FIXED[name]
        elif name == _VARIABLE:
            _, at = _take_variable(body, at)
        elif name in _STRINGS:
            value = b""
            for _ in range(_STRINGS[name]):
                value, at = _take_bytes(body, at)
            if name == _RESPONSE_TOPIC:
                response_topic = value.decode("utf-8", "replace")
            elif name == _CORRELATION_DATA:
                correlation = value
        else:
            raise PacketError(f"property {name:#04x} in a PUBLISH")
    if at != end:
        raise PacketError("the properties of a PUBLISH are longer than they say")
    return response_topic, correlation, end


def _take_bytes(body: bytes, at: int) -> tuple[bytes, int]:
    """A field with its length in two bytes (§1.5.4, §1.5.6), and where the next one begins."""
    start = at + 2
    end = start + (body[at] << 8 | body[at + 1])
    if end > len(body):
        raise IndexError
    return body[start:end], end


def _take_variable(body: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer (MQTT 5 §1.5.5), and where the next field begins."""
    value = 0
    for shift in (0, 7, 14, 21):
        byte, at = body[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PacketError("an integer has more than four bytes")


def _pack_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    packed = bytearray()
    while length >= 0x80:
        packed.append(length & 0x7F | 0x80)
        length >>= 7
    packed.append(length)
    return bytes(packed)
