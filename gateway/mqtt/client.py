"""The gateway's connection to the broker: a persistent session, manual acknowledgements, a bounded queue.

One thread does all network work, with `poll` around paho's `loop_read`, `loop_write` and `loop_misc`, because
a thread of paho's own would read on when the queue is full. Callbacks run in that thread and must be quick.

A message is acknowledged only by `acknowledge`, and what was not is sent again by the broker after the next
connection. Packet identifiers belong to a connection: when it is lost, the queue is discarded and the
generation grows, so that a late acknowledgement cannot strike another message with the same identifier.
"""

import random
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from gateway.mqtt import connection
from gateway.mqtt.connection import (
    UPTIME_TOPIC,
    Protocol,
    TransportSettings,
    TransportStats,
    Waker,
    tls_socket,
)
from gateway.mqtt.intake import Incoming, Intake
from gateway.mqtt.rates import TopicRates
from provisioning.errors import InvalidError, SetupError

__all__ = ["Incoming", "Protocol", "Transport", "TransportSettings", "TransportStats"]

# Publishes that wait for their PUBACK. Packet identifiers have 16 bits (MQTT 5 §2.2.1); none is used twice.
MAX_OUTSTANDING: Final = 30_000
_CONNACK_SECONDS: Final = 10.0
_STABLE_SECONDS: Final = 10.0  # a connection that lived this long starts the backoff anew
_READS_AT_ONCE: Final = 200  # packets read before writes get their turn
_log = structlog.get_logger(__name__)


class Transport:
    """The connection; see the module. All methods are thread-safe."""

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._waker = Waker()
        self._intake = Intake(settings.queue_limit, self._waker.wake)
        self._rates = TopicRates(per_minute=settings.rate_per_minute, burst=settings.rate_burst)
        self._lock = threading.Lock()  # generation and tokens; never taken inside a callback of paho's
        self._generation = 0
        self._tokens: dict[int, object] = {}
        self._acknowledged: deque[tuple[int, bool]] = deque()  # mid, refused
        self._ready = threading.Event()
        self._stopped = False
        self._closing = threading.Event()
        self._flush_until = 0.0
        self._received = self._rate_limited = self._published = self._refused = 0
        self._last_error: str | None = None
        self._published_callback: Callable[[object], None] | None = None
        self._uptime_callback: Callable[[int], None] | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._client: connection.TolerantClient | None = None

    # --- What the service calls

    def on_published(self, callback: Callable[[object], None]) -> None:
        """Has `callback` called with the token of each message that the broker has acknowledged."""
        self._published_callback = callback

    def on_uptime(self, callback: Callable[[int], None]) -> None:
        """Has `callback` called with the broker's uptime in seconds: at each connection, and every 10 s."""
        self._uptime_callback = callback

    def start(self) -> None:
        """Starts connecting, for ever; returns at once.

        Raises:
            SetupError: a certificate or key cannot be read.
        """
        try:
            self._client = client = connection.new_client(self._settings)
            client.reads_ahead = True
        except SetupError:
            self._waker.close()
            raise
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        client.on_publish = self._puback
        self._thread.start()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Whether, within `timeout_seconds`, the broker has taken the subscriptions."""
        return self._ready.wait(timeout_seconds)

    def drain(self, max_messages: int = 200, timeout_seconds: float = 1.0) -> list[Incoming]:
        """Waits for one message, then takes what is queued already, up to `max_messages`.

        Returns: messages in the order they came; none after the timeout, or at once when reading has stopped.
        """
        return self._intake.take(max_messages, timeout_seconds)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        token: object = None,
        correlation: bytes | None = None,
    ) -> bool:
        """Hands a message to the network thread.

        Args:
            qos: 0 or 1; for 0 nothing is reported afterwards.
            token: given to `on_published` once the broker has acknowledged, also over a reconnection.
            correlation: MQTT 5 correlation data; left out on 3.1.1.

        Returns: False where it was not taken, because there is no connection or too much waits for the
            broker: publish it again later.

        Raises:
            InvalidError: more than 16 KiB, which the broker would drop.
        """
        if len(payload) > connection.MAX_PAYLOAD_BYTES:
            raise InvalidError(
                f"{len(payload)} bytes for {topic}: a message has at most {connection.MAX_PAYLOAD_BYTES}"
            )
        client = self._client
        if client is None or not self._ready.is_set():
            return False
        properties = None
        if self._settings.is_v5 and correlation is not None:
            properties = connection.properties(PacketTypes.PUBLISH, CorrelationData=correlation)
        with self._lock:
            if len(self._tokens) >= MAX_OUTSTANDING:
                return False
            # The lock is held over both steps, so that the PUBACK is not looked up before its token is there.
            info = client.publish(topic, payload, qos=qos, properties=properties)
            if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                return False
            if qos > 0:
                self._tokens[info.mid] = token
        self._waker.wake()
        return True

    def acknowledge(self, incoming: Incoming) -> None:
        """Tells the broker that a message is done; one of an earlier connection comes again, so not then."""
        client = self._client
        if client is None or incoming.qos == 0:
            return
        with self._lock:
            if incoming.generation != self._generation:
                return
            client.ack(incoming.mid, incoming.qos)
        self._waker.wake()

    def stop_reading(self) -> None:
        """Ends the intake, the first step of a stop in order.

        What is queued can be drained, answered and acknowledged. What still comes is left unacknowledged, so
        that the broker keeps it.
        """
        self._stopped = True
        self._intake.close()
        self._waker.wake()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Ends the connection in order: waits for the broker's acknowledgements, up to the timeout.

        The session stays at the broker, for its expiry.
        """
        self.stop_reading()
        self._flush_until = time.monotonic() + timeout_seconds
        self._closing.set()
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds + 5.0)
        if not self._thread.is_alive():
            self._waker.close()

    def stats(self) -> TransportStats:
        """What it is doing and has done."""
        with self._lock:
            outstanding, generation = len(self._tokens), self._generation
        return TransportStats(
            connected=self._ready.is_set(),
            generation=generation,
            queued=len(self._intake),
            paused=self._intake.full,
            pauses=self._intake.pauses,
            received=self._received,
            rate_limited=self._rate_limited,
            unreadable=self._client.unreadable if self._client is not None else 0,
            discarded=self._intake.discarded,
            published=self._published,
            refused=self._refused,
            outstanding=outstanding,
            last_error=self._last_error,
        )

    # --- The network thread

    def _run(self) -> None:
        assert self._client is not None
        self._waker.own()
        failures = 0
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                connection.connect(self._client, self._settings)
                self._serve(self._client)
            except OSError as error:  # refused, unreachable, a failed TLS handshake
                self._note_error(f"{type(error).__name__}: {error}")
            except Exception as error:
                # A fault of ours or of paho's must not end the service: a new connection starts clean.
                _log.exception("network thread", action="broker_fault")
                self._note_error(f"{type(error).__name__}: {error}")
            self._lose()
            failures = 0 if time.monotonic() - started >= _STABLE_SECONDS else failures + 1
            ceiling = min(
                self._settings.reconnect_max_seconds,
                self._settings.reconnect_min_seconds * 2 ** min(failures, 16),
            )
            self._closing.wait(random.SystemRandom().uniform(0, ceiling))

    def _serve(self, client: connection.TolerantClient) -> None:
        """Works on one connection until it is lost or we are closing."""
        connack_until = time.monotonic() + _CONNACK_SECONDS
        while (sock := tls_socket(client)) is not None:
            if self._closing.is_set() and self._flushed(client):
                client.disconnect()
                while client.socket() is not None and client.want_write():
                    client.loop_write()
                return
            # Acknowledgements of the broker come by the same stream: who waits for them may not wait for us.
            reading = self._stopped or not self._intake.full or len(self._tokens) > MAX_OUTSTANDING // 2
            # TLS holds decrypted bytes that poll does not see.
            buffered = reading and (client.has_read_ahead or sock.pending() > 0)
            events = self._waker.wait(sock, reading=reading, writing=client.want_write(), block=not buffered)
            readable = buffered or events & (select.POLLIN | select.POLLHUP | select.POLLERR)
            if readable and not self._read(client, sock):
                return
            self._report_published()
            if client.want_write() and client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            if client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._note_error("the broker did not answer a ping")
                return
            if not client.is_connected() and time.monotonic() > connack_until:
                self._note_error("the broker did not answer CONNECT")
                return

    def _read(self, client: connection.TolerantClient, sock: ssl.SSLSocket) -> bool:
        """Reads packets until there are none, the queue is full, or it is others' turn; False if lost."""
        for _ in range(_READS_AT_ONCE):
            if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or client.socket() is None:
                return False
            if self._intake.full and not self._stopped:
                break
            if not client.has_read_ahead and sock.pending() == 0:
                break
        return True

    def _flushed(self, client: paho.Client) -> bool:
        if time.monotonic() > self._flush_until or not client.is_connected():
            return True
        with self._lock:
            return not self._tokens and not client.want_write()

    def _lose(self) -> None:
        """The connection is gone: nothing of it may be worked on or acknowledged any more."""
        was_ready = self._ready.is_set()
        self._ready.clear()
        with self._lock:
            self._generation += 1
        discarded = self._intake.discard()
        self._report_published()
        if was_ready and not self._closing.is_set():
            _log.warning(
                "connection to the broker lost",
                action="broker_lost",
                discarded=discarded,
                error=self._last_error,
            )

    def _report_published(self) -> None:
        while self._acknowledged:
            mid, refused = self._acknowledged.popleft()
            with self._lock:
                if mid not in self._tokens:
                    continue
                token = self._tokens.pop(mid)
            self._published += 1
            self._refused += refused
            if self._published_callback is not None:
                self._published_callback(token)

    def _note_error(self, text: str) -> None:
        if text != self._last_error:  # repeats say nothing new
            _log.warning("broker", action="broker_unreachable", error=text)
        self._last_error = text

    # --- paho's callbacks, in the network thread

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _more: Any
    ) -> None:
        if reason.is_failure:
            self._note_error(f"the broker refused the connection: {reason}")
            return
        connection.subscribe(client, self._settings)

    def _subscribed(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _more: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._note_error(f"the broker refused a subscription: {[str(reason) for reason in reasons]}")
            return
        self._last_error = None
        self._ready.set()
        _log.info("connected to the broker", action="broker_connected", port=self._settings.port)

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        if not self._closing.is_set():
            self._note_error(f"disconnected: {reason}")

    def _puback(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _more: Any) -> None:
        # paho holds a lock of its own here that publish() takes under ours: only note it.
        self._acknowledged.append((mid, reason.is_failure))

    def _message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        topic = bytes(message._topic).decode("utf-8", "replace")  # message.topic raises where it is no UTF-8
        if topic == UPTIME_TOPIC:
            seconds = message.payload.partition(b" ")[0]
            if self._uptime_callback is not None and seconds.isdigit():
                self._uptime_callback(int(seconds))
            return
        if self._stopped:
            return
        self._received += 1
        if not self._rates.allow(topic, time.monotonic()):
            self._rate_limited += 1
            client.ack(message.mid, message.qos)
            return
        properties = message.properties if self._settings.is_v5 else None
        self._intake.put(
            Incoming(
                topic=topic,
                payload=bytes(message.payload),
                received_at=datetime.now(UTC),
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=getattr(properties, "CorrelationData", None),
                mid=message.mid,
                qos=message.qos,
                generation=self._generation,
            )
        )
