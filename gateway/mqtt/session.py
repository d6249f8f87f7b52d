"""The gateway's session at the broker: paho's client, except for the two packets that every hello costs.

paho connects, subscribes, pings and ends. PUBLISH and PUBACK are read and written here, because paho takes ten
times as long for them (docs/decisions/0009-two-packets-of-our-own.md), and because it refuses to read some that
mosquitto passes on (a user property with U+FEFF in it, for one): it then closes the connection, the broker sends
the message again, and one device has silenced the gateway for ever.

The state that MQTT 5 §4.1 asks of a client is what was published and not acknowledged; it goes out again on the
next connection. One thread at a time may `read` and `write`; `publish` and `acknowledge` may be called by any.
"""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MQTTException

from gateway.mqtt import packets
from gateway.mqtt.packets import PacketError, Published

_RECORD_BYTES: Final = 16384  # TLS gives and takes one record at a time: 2^14 bytes (RFC 8446 §5.1)
_READS_AT_ONCE: Final = 400  # records read before writing has its turn
_CONNACK: Final = 0x20
_AWAITS: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class Session(paho.Client):
    """The client; see the module. `on_message` and `on_publish` of paho are not called for QoS 0 and 1."""

    def __init__(self, *arguments: Any, is_v5: bool, **named: Any) -> None:
        self._is_v5 = is_v5
        self._sending = threading.Lock()  # the four below; held for moments
        self._is_open = False  # the broker has taken CONNECT, and the connection stands
        self._unsent = bytearray()
        self._unanswered: dict[int, tuple[bytes, object]] = {}  # by packet identifier: the packet, its token
        self._unread = bytearray()
        self.unreadable = 0
        """Messages that could not be read: acknowledged, and nothing of them used."""
        self.on_published: Callable[[Published], None] = lambda _: None
        """Called for each message received, by the thread that reads."""
        self.on_acknowledged: Callable[[object, bool], None] = lambda *_: None
        """Called with the token of each message that the broker has taken, and whether it refused it."""
        super().__init__(*arguments, **named)

    @property
    def outstanding(self) -> int:
        """Messages published and not yet acknowledged."""
        return len(self._unanswered)

    def want_write(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._unsent or self._out_packet)

    def send(self, topic: str, payload: bytes, *, qos: int, token: object, correlation: bytes | None) -> None:
        """Publishes with QoS 0 or 1; what has QoS 1 goes out again on each connection until it is acknowledged."""
        if qos == 0:
            packet = packets.pack_publish(topic, payload, 0, is_v5=self._is_v5, correlation=correlation)
        with self._sending:
            if qos:
                mid = self._mid_generate()
                while mid in self._unanswered:
                    mid = self._mid_generate()
                packet = packets.pack_publish(topic, payload, mid, is_v5=self._is_v5, correlation=correlation)
                self._unanswered[mid] = packet, token
            if self._is_open:
                self._unsent += packet

    def acknowledge(self, mid: int) -> None:
        """Acknowledges a message of this connection."""
        with self._sending:
            if self._is_open:
                self._unsent += packets.pack_puback(mid)

    def read(self, enough: Callable[[], bool]) -> bool:
        """Reads what is there, until it is `enough`. Returns: False where the connection is lost."""
        for _ in range(_READS_AT_ONCE):
            if self._sock is None:
                return False
            try:
                data = self._sock.recv(_RECORD_BYTES)
            except _AWAITS:
                break
            except OSError:
                data = b""
            if not data:
                return self._end(MQTTErrorCode.MQTT_ERR_CONN_LOST)
            self._last_bytes_received = time.monotonic()
            self._unread += data
            try:
                found = packets.take_packets(self._unread)
            except PacketError:
                return self._end(MQTTErrorCode.MQTT_ERR_PROTOCOL)
            for first, body in found:
                if not self._handle(first, body):
                    return False
            if enough():
                break
        return True

    def write(self) -> bool:
        """Writes what waits, as far as the socket takes it. Returns: False where the connection is lost."""
        if self._out_packet:
            self._packet_write()  # paho's own packets join the others, by way of _sock_send
        while self._unsent:
            if self._sock is None:
                return False
            with self._sending:
                chunk = bytes(self._unsent[:_RECORD_BYTES])
            try:
                sent = self._sock.send(chunk)
            except _AWAITS:
                break
            except OSError:
                return self._end(MQTTErrorCode.MQTT_ERR_CONN_LOST)
            with self._sending:
                del self._unsent[:sent]
            self._last_msg_out = time.monotonic()
        return True

    # --- What paho calls

    def _sock_send(self, buf: bytes | bytearray) -> int:
        with self._sending:
            self._unsent += buf
        return len(buf)

    def _sock_close(self) -> None:
        with self._sending:
            if (
                self._sock is not None and self._unsent
            ):  # a DISCONNECT is to leave; of a lost connection nothing does
                with contextlib.suppress(OSError):
                    self._sock.send(bytes(self._unsent[:_RECORD_BYTES]))
            self._is_open = False
            self._unsent.clear()
            self._unread.clear()
        super()._sock_close()

    # --- One packet

    def _handle(self, first: int, body: bytes) -> bool:
        kind = first & 0xF0
        if kind == packets.PUBLISH:
            self._take_publish(first, body)
            return True
        if kind == packets.PUBACK:
            mid, refused = packets.parse_puback(body)
            with self._sending:
                found = self._unanswered.pop(mid, None)
            if found is not None:
                self.on_acknowledged(found[1], refused)
                return True
        return self._hand_over(first, body)

    def _take_publish(self, first: int, body: bytes) -> None:
        try:
            published = packets.parse_publish(first, body, is_v5=self._is_v5)
        except PacketError:
            self.unreadable += 1
            if first & 0x06:
                self.acknowledge(packets.find_mid(body))
            return
        self.on_published(published)

    def _hand_over(self, first: int, body: bytes) -> bool:
        """Has paho work a packet of its own."""
        self._in_packet = {
            "command": first,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        try:
            result = self._packet_handle()
        except MQTTException:  # MalformedPacket is one
            result = MQTTErrorCode.MQTT_ERR_PROTOCOL
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return self._end(result)
        if first == _CONNACK and self.is_connected():
            self._resume()
        return self._sock is not None

    def _resume(self) -> None:
        """The broker has taken CONNECT: what it has not acknowledged before goes out again (§4.4)."""
        with self._sending:
            self._is_open = True
            for packet, _ in self._unanswered.values():
                self._unsent += packets.pack_again(packet)

    def _end(self, result: MQTTErrorCode) -> bool:
        self._loop_rc_handle(result)
        return False
