"""A load generator that is never the bottleneck: MQTT 3.1.1 packets made beforehand, written to a raw TLS socket.

One connection speaks for all devices: the benchmark's copy of the gateway listener's ACL file lets `bench` write
every hello and read every reply and offer. It does not wait for anything but the window it was given.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.mqtt.packets import pack_publish

PUBLISH: Final = 0x30
PUBACK: Final = 0x40
_MOST_IDS: Final = 60_000  # packet identifiers have 16 bits (MQTT 3.1.1 §2.3.1)
_AT_ONCE: Final = 64
"""Packets in one write."""
STALLED_SECONDS: Final = 60.0


class StalledError(Exception):
    """Nothing came for a long time: the run would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the gateway's listener is reached, and as whom."""

    port: int
    cafile: Path
    certfile: Path
    keyfile: Path


def text(value: str) -> bytes:
    """A UTF-8 string (MQTT 3.1.1 §1.5.3)."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, body: bytes) -> bytes:
    """A control packet (MQTT 3.1.1 §2.2)."""
    length, rest = b"", len(body)
    while True:
        rest, digit = rest >> 7, rest & 0x7F
        length += bytes([digit | 0x80 if rest else digit])
        if not rest:
            return bytes([kind]) + length + body


def connect_packet(client_id: str) -> bytes:
    """CONNECT with a clean session and a keepalive of ten minutes."""
    return packet(0x10, text("MQTT") + b"\x04\x02\x02\x58" + text(client_id))


def subscribe_packet(topic_filter: str, qos: int) -> bytes:
    """SUBSCRIBE to one filter, with packet identifier 1."""
    return packet(0x82, b"\x00\x01" + text(topic_filter) + bytes([qos]))


def publish_packet(topic: str, payload: bytes, number: int) -> bytes:
    """PUBLISH at QoS 1; `number` counts a run's messages."""
    return pack_publish(topic, payload, number % _MOST_IDS + 1, is_v5=False, correlation=None)


class Line:
    """One connection, not thread-safe: what is written waits for the socket, what comes is read when asked for."""

    def __init__(self, access: Access, client_id: str) -> None:
        context = ssl.create_default_context(cafile=str(access.cafile))
        context.load_cert_chain(access.certfile, access.keyfile)
        plain = socket.create_connection(("localhost", access.port), timeout=10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = context.wrap_socket(plain, server_hostname="localhost")
        self._in = bytearray()
        self._out = b""
        self._sock.sendall(connect_packet(client_id))
        self._expect(0x20)
        self._sock.setblocking(False)
        self._poll = select.poll()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """Subscribes, and waits until the broker has it."""
        self._sock.setblocking(True)
        self._sock.settimeout(10)
        self._sock.sendall(subscribe_packet(topic_filter, qos))
        self._expect(0x90)
        self._sock.setblocking(False)

    @property
    def idle(self) -> bool:
        """Whether everything that was written has left."""
        return not self._out

    def write(self, data: bytes) -> None:
        """Adds to what is to be sent, and sends what the socket takes."""
        self._out = self._out + data if self._out else data
        self.flush()

    def flush(self) -> None:
        """Sends what the socket takes."""
        try:
            while self._out:
                sent = self._sock.send(self._out)
                self._out = self._out[sent:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass

    def wait(self, seconds: float) -> None:
        """Waits until there is something to read or room to write, at most so long."""
        if self._sock.pending():
            return
        self._poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
        self._poll.poll(max(0.0, seconds) * 1000)
        if self._out:
            self.flush()

    def read(self) -> Iterator[tuple[int, bytes]]:
        """The packets that have come, as first byte and body; returns when there are no more."""
        pieces = []
        try:
            for _ in range(256):
                piece = self._sock.recv(65536)
                if not piece:
                    raise StalledError("the broker closed the connection")
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if pieces:
            self._in += b"".join(pieces)
            yield from self._packets()

    def _packets(self) -> Iterator[tuple[int, bytes]]:
        data, at, end = bytes(self._in), 0, len(self._in)
        while end - at >= 2:
            length = data[at + 1]
            body = at + 2
            if length & 0x80:
                if end - at < 3:
                    break
                length = (length & 0x7F) | data[
                    at + 2
                ] << 7  # two digits: at most 16,383 bytes, as all of ours
                body = at + 3
            if end - body < length:
                break
            yield data[at], data[body : body + length]
            at = body + length
        del self._in[:at]

    def _expect(self, kind: int) -> None:
        while not (packets := list(self._packets())):
            self._in += self._sock.recv(4096)
        (found, body), *more = packets
        if found != kind or body[-1] not in (0, 1) or more:
            raise StalledError(f"expected packet {kind:#x}, got {found:#x} {body.hex()} and {len(more)} more")


Heard = Callable[[bytes], bool]
"""Is given the body of each PUBLISH that comes; whether it was one of those waited for."""


def drive(line: Line, packets: Sequence[bytes], *, window: int, heard: Heard | None) -> float:
    """Publishes everything, with at most `window` messages unanswered.

    Args:
        packets: PUBLISH packets at QoS 1.
        heard: counts answers; None: the broker's PUBACK is the answer.

    Returns:
        The seconds from the first write to the last answer.
    """
    sent = answered = 0
    started = moved = time.perf_counter()
    while answered < len(packets):
        while sent < len(packets) and line.idle and sent - answered + _AT_ONCE <= window:
            burst = packets[sent : sent + _AT_ONCE]
            line.write(b"".join(burst))
            sent += len(burst)
        line.wait(1.0)
        before = answered
        for kind, body in line.read():
            if kind & 0xF0 == PUBLISH:
                answered += heard is not None and heard(body)
            elif kind == PUBACK:
                answered += heard is None
        now = time.perf_counter()
        if answered > before:
            moved = now
        elif now - moved > STALLED_SECONDS:
            raise StalledError(f"{answered} of {len(packets)} answered, {sent} sent, then nothing more")
    return time.perf_counter() - started


def pace(
    line: Line, packets: Sequence[bytes], per_second: float, index_of: Callable[[bytes], int]
) -> list[float]:
    """Publishes evenly, whatever is answered meanwhile.

    Args:
        index_of: which of `packets` the body of a PUBLISH answers; -1: none.

    Returns:
        Seconds from when each message was due to when its answer was read. A late write counts against the
        gateway, as it would for a device that waits.
    """
    took = [0.0] * len(packets)
    sent = answered = 0
    started = time.perf_counter()
    while answered < len(packets):
        now = time.perf_counter() - started
        due = min(len(packets), int(now * per_second) + 1)
        if due > sent:
            line.write(b"".join(packets[sent:due]))
            sent = due
        line.wait(
            min(0.01, sent / per_second - (time.perf_counter() - started)) if sent < len(packets) else 0.01
        )
        for kind, body in line.read():
            index = index_of(body) if kind & 0xF0 == PUBLISH else -1
            if index >= 0 and not took[index]:
                took[index] = time.perf_counter() - started - index / per_second
                answered += 1
        if now - len(packets) / per_second > STALLED_SECONDS:
            raise StalledError(f"{answered} of {len(packets)} answered, then nothing more")
    return took
