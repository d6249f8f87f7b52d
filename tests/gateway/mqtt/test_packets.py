"""PUBLISH and PUBACK as bytes, against the specification's examples and against paho's own reading and writing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.mqtt import packets
from gateway.mqtt.packets import PacketError, Published

TOPICS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="+#\ufeff"), min_size=1, max_size=300
)
PAYLOADS = st.binary(max_size=20_000)


class Capture(paho.Client):
    """A client that keeps what it would send."""

    def __init__(self, *, is_v5: bool) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5 if is_v5 else paho.MQTTv311)
        self.sent: list[bytes] = []
        self._sock: Any = object()  # so that it counts as connected

    def _packet_queue(self, command: int, packet: Any, *_: Any, **__: Any) -> Any:
        self.sent.append(bytes(packet))
        return paho.MQTT_ERR_SUCCESS

    def _reset_sockets(self, sockpair_only: bool = False) -> None:
        self._sock = None


def paho_publish(topic: str, payload: bytes, *, is_v5: bool, properties: Properties | None = None) -> bytes:
    """The PUBLISH that paho writes; its packet identifier is 1."""
    client = Capture(is_v5=is_v5)
    client.publish(topic, payload, qos=1, properties=properties)
    return client.sent[0]


def take_one(packet: bytes, *, is_v5: bool) -> Published:
    buffer = bytearray(packet)
    ((first, body),) = packets.take_packets(buffer)
    assert not buffer
    return packets.parse_publish(first, body, is_v5=is_v5)


@given(topic=TOPICS, payload=PAYLOADS, is_v5=st.booleans())
def test_what_paho_writes_is_read(topic: str, payload: bytes, is_v5: bool) -> None:
    packet = paho_publish(topic, payload, is_v5=is_v5)
    assert take_one(packet, is_v5=is_v5) == Published(topic, payload, 1, 1)
    assert packets.pack_publish(topic, payload, 1, is_v5=is_v5, correlation=None) == packet


@given(
    correlation=st.binary(max_size=500),
    reply=TOPICS,
    value=st.text(st.characters(exclude_categories=("Cs", "Cc"))),
)
def test_every_property_of_a_publish_is_read_or_passed_over(
    correlation: bytes, reply: str, value: str
) -> None:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.MessageExpiryInterval = 7
    properties.ContentType = "application/json"
    properties.ResponseTopic = reply
    properties.CorrelationData = correlation
    properties.UserProperty = [("name", value), ("name", "again")]
    properties.TopicAlias = 3
    properties.SubscriptionIdentifier = 268_435_455
    packet = paho_publish("a/b", b"payload", is_v5=True, properties=properties)
    assert take_one(packet, is_v5=True) == Published("a/b", b"payload", 1, 1, reply, correlation)


@given(correlation=st.binary(max_size=500), payload=PAYLOADS)
def test_correlation_data_are_written_as_paho_writes_them(correlation: bytes, payload: bytes) -> None:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = correlation
    written = packets.pack_publish("a", payload, 1, is_v5=True, correlation=correlation)
    assert written == paho_publish("a", payload, is_v5=True, properties=properties)


def test_without_acknowledgement_there_is_no_number() -> None:
    packet = packets.pack_publish("a/b", b"x", 0, is_v5=False, correlation=b"left out")
    assert packet == b"\x30\x06\x00\x03a/bx"
    assert take_one(packet, is_v5=False) == Published("a/b", b"x", 0, 0)


def test_a_publish_is_sent_again_as_a_duplicate() -> None:
    packet = packets.pack_publish("a", b"x", 5, is_v5=True, correlation=None)
    assert packets.pack_again(packet)[0] == 0b0011_1010
    assert packets.pack_again(packet)[1:] == packet[1:]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\x01\x02", (258, False)),
        (b"\x00\x07\x10\x00", (7, False)),  # nobody subscribes
        (b"\x00\x07\x87\x00", (7, True)),  # not authorized
    ],
)
def test_pubacks_are_read(body: bytes, expected: tuple[int, bool]) -> None:
    assert packets.parse_puback(body) == expected


def test_a_puback_is_written() -> None:
    assert packets.pack_puback(0x1234) == b"\x40\x02\x12\x34"


@given(st.lists(st.tuples(st.sampled_from([0x30, 0x40, 0xD0]), PAYLOADS), max_size=6), st.data())
def test_packets_come_whole_however_they_are_cut(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(bytes((first,)) + packets._pack_length(len(body)) + body for first, body in sent)
    buffer, found, at = bytearray(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        buffer += stream[at : at + size]
        at += size
        found += packets.take_packets(buffer)
    assert found == sent
    assert not buffer


def test_a_length_of_five_bytes_ends_the_connection() -> None:
    with pytest.raises(PacketError, match="more than four bytes"):
        packets.take_packets(bytearray(b"\x30\xff\xff\xff\xff\x01"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "ends too early"),
        (b"\x00\x05abc", "ends too early"),
        (b"\x00\x01a\x00", "ends too early"),
        (b"\x00\x01a\x00\x09", "ends too early"),
        (b"\x00\x01a\x00\x09\x03\x09\x00\x05", "ends too early"),
        (b"\x00\x01a\x00\x09\x05\x01\x00", "longer than they say|ends too early"),
        (b"\x00\x01a\x00\x09\x02\x11\x00", "property 0x11"),
        (b"\x00\x01a\x00\x09\x01\x01\x00", "longer than they say"),
        (b"\x00\x01a\x00\x09\x06\x0b\xff\xff\xff\xff\x01", "more than four bytes"),
    ],
)
def test_a_publish_that_is_none_is_said_and_its_number_found(body: bytes, why: str) -> None:
    with pytest.raises(PacketError, match=why):
        packets.parse_publish(0x32, body, is_v5=True)
    if len(body) > 4:
        assert packets.find_mid(body) in (0, 9)


@given(first=st.sampled_from([0x30, 0x32, 0x3A]), body=st.binary(max_size=64), is_v5=st.booleans())
def test_whatever_comes_is_read_or_refused(first: int, body: bytes, is_v5: bool) -> None:
    try:
        published = packets.parse_publish(first, body, is_v5=is_v5)
    except PacketError:
        packets.find_mid(body)
    else:
        assert published.payload == body[len(body) - len(published.payload) :]
