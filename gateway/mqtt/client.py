"""The gateway's connection to the broker: a persistent session, manual acknowledgements, a bounded queue.

Reading, writing and pinging are one step, which one thread at a time has the turn to do: the one that waits in
`drain`, because what it reads there it works next, and two threads at one interpreter cost a hello twice its time.
While nobody drains (a batch takes long, the database is away) the transport's own thread takes the turn, so that
the broker is answered whatever happens. Callbacks run in the thread that has the turn and must be quick.

A message is acknowledged only by `acknowledge`, and what was not is sent again by the broker after the next
connection. Packet identifiers belong to a connection: when it is lost, the queue is discarded and the
generation grows, so that a late acknowledgement cannot strike another message with the same identifier.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from gateway.mqtt import connection
from gateway.mqtt.connection import (
    UPTIME_TOPIC,
    Protocol,
    TransportSettings,
    TransportStats,
    tls_socket,
)
from gateway.mqtt.intake import Incoming, Intake
from gateway.mqtt.packets import Published
from gateway.mqtt.rates import TopicRates
from gateway.mqtt.session import Session
from gateway.mqtt.turns import Turns
from provisioning.errors import InvalidError, SetupError

__all__ = ["Incoming", "Protocol", "Transport", "TransportSettings", "TransportStats"]

# Publishes that wait for their PUBACK. Packet identifiers have 16 bits (MQTT 5 §2.2.1); none is used twice.
MAX_OUTSTANDING: Final = 30_000
_CONNACK_SECONDS: Final = 10.0
_STABLE_SECONDS: Final = 10.0  # a connection that lived this long starts the backoff anew
_log = structlog.get_logger(__name__)


class Transport:
    """The connection; see the module. All methods are thread-safe."""

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._turns = Turns()
        self._intake = Intake(settings.queue_limit, self._turns.wake)
        self._rates = TopicRates(per_minute=settings.rate_per_minute, burst=settings.rate_burst)
        self._serving = False  # there is a connection to take turns at
        self._lock = threading.Lock()  # the generation
        self._generation = 0
        self._ready = threading.Event()
        self._stopped = False
        self._closing = threading.Event()
        self._flush_until = 0.0
        self._received = self._rate_limited = self._published = self._refused = 0
        self._last_error: str | None = None
        self._published_callback: Callable[[object], None] | None = None
        self._uptime_callback: Callable[[int], None] | None = None
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._session: Session | None = None

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
            self._session = session = connection.new_session(self._settings)
        except SetupError:
            self._turns.close()
            raise
        session.on_connect = self._connected
        session.on_disconnect = self._disconnected
        session.on_subscribe = self._subscribed
        session.on_published = self._take
        session.on_acknowledged = self._puback
        self._thread.start()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Whether, within `timeout_seconds`, the broker has taken the subscriptions."""
        return self._ready.wait(timeout_seconds)

    def drain(self, max_messages: int = 200, timeout_seconds: float = 1.0) -> list[Incoming]:
        """Waits for one message, then takes what is there already, up to `max_messages`. For one thread.

        Returns: messages in the order they came; none after the timeout, or at once when reading has stopped.
        """
        until = time.monotonic() + timeout_seconds
        if self._serving and not self._stopped:
            with self._turns.work():
                self._step_until(until, max_messages)
        return self._intake.take(max_messages, until - time.monotonic())

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        token: object = None,
        correlation: bytes | None = None,
    ) -> bool:
        """Sends a message, with what else waits to be written.

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
        session = self._session
        if session is None or not self._ready.is_set() or session.outstanding >= MAX_OUTSTANDING:
            return False
        session.send(topic, payload, qos=qos, token=token, correlation=correlation)
        self._turns.wake()
        return True

    def acknowledge(self, incoming: Incoming) -> None:
        """Tells the broker that a message is done; one of an earlier connection comes again, so not then."""
        if self._session is None or incoming.qos == 0:
            return
        with self._lock:
            if incoming.generation != self._generation:
                return
            self._session.acknowledge(incoming.mid)
        self._turns.wake()

    def stop_reading(self) -> None:
        """Ends the intake, the first step of a stop in order.

        What is queued can be drained, answered and acknowledged. What still comes is left unacknowledged, so
        that the broker keeps it.
        """
        self._stopped = True
        self._intake.close()
        self._turns.notice()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Ends the connection in order: waits for the broker's acknowledgements, up to the timeout.

        The session stays at the broker, for its expiry.
        """
        self.stop_reading()
        self._flush_until = time.monotonic() + timeout_seconds
        self._closing.set()
        self._turns.notice()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds + 5.0)
        if not self._thread.is_alive():
            self._turns.close()

    def stats(self) -> TransportStats:
        """What it is doing and has done."""
        session = self._session
        return TransportStats(
            connected=self._ready.is_set(),
            generation=self._generation,
            queued=len(self._intake),
            paused=self._intake.full,
            pauses=self._intake.pauses,
            received=self._received,
            rate_limited=self._rate_limited,
            unreadable=0 if session is None else session.unreadable,
            discarded=self._intake.discarded,
            published=self._published,
            refused=self._refused,
            outstanding=0 if session is None else session.outstanding,
            last_error=self._last_error,
        )

    # --- The transport's own thread: connects, and serves the connection while nobody drains

    def _run(self) -> None:
        assert self._session is not None
        failures = 0
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                connection.connect(self._session, self._settings)
                self._serve(self._session)
            except OSError as error:  # refused, unreachable, a failed TLS handshake
                self._note_error(f"{type(error).__name__}: {error}")
            except Exception as error:  # a fault must not end the service: a new connection starts clean
                self._note_fault(error)
            self._lose()
            failures = 0 if time.monotonic() - started >= _STABLE_SECONDS else failures + 1
            ceiling = min(
                self._settings.reconnect_max_seconds,
                self._settings.reconnect_min_seconds * 2 ** min(failures, 16),
            )
            self._closing.wait(random.SystemRandom().uniform(0, ceiling))

    def _serve(self, session: Session) -> None:
        """Works on one connection until it is lost or we are closing."""
        connack_until = time.monotonic() + _CONNACK_SECONDS
        self._serving = True
        while self._serving:
            alone = self._stopped or self._closing.is_set() or not self._ready.is_set()
            with self._turns.keep(alone=alone) as ours:
                if not ours:
                    continue
                if self._closing.is_set() and self._flushed(session):
                    session.disconnect()
                    session.write()
                    return
                if not self._step(math.inf, self._settings.queue_limit):
                    return
                if not session.is_connected() and time.monotonic() > connack_until:
                    self._note_error("the broker did not answer CONNECT")
                    return

    def _flushed(self, session: Session) -> bool:
        if time.monotonic() > self._flush_until or not session.is_connected():
            return True
        return not session.outstanding and not session.want_write()

    def _lose(self) -> None:
        """The connection is gone: nothing of it may be worked on or acknowledged any more."""
        was_ready = self._ready.is_set()
        self._ready.clear()
        with self._turns.stop():
            self._serving = False
            with self._lock:
                self._generation += 1
            discarded = self._intake.discard()
        if was_ready and not self._closing.is_set():
            _log.warning(
                "connection to the broker lost",
                action="broker_lost",
                discarded=discarded,
                error=self._last_error,
            )

    def _note_fault(self, error: Exception) -> None:
        _log.exception("network thread", action="broker_fault")
        self._note_error(f"{type(error).__name__}: {error}")

    def _note_error(self, text: str) -> None:
        if text != self._last_error:  # repeats say nothing new
            _log.warning("broker", action="broker_unreachable", error=text)
        self._last_error = text

    # --- A turn at the connection

    def _step_until(self, until: float, enough: int) -> None:
        """Steps until there are messages and no more to be read at once, or until the time has come."""
        queued = -1
        while self._serving and not self._stopped:
            remaining = until - time.monotonic()
            before, queued = queued, len(self._intake)
            if queued >= enough or (queued and queued == before) or (remaining <= 0 and before >= 0):
                return
            try:
                stands = self._step(0 if queued else remaining, enough)
            except Exception as error:  # as in _run: a new connection starts clean
                self._note_fault(error)
                stands = False
            if not stands:
                self._serving = False
                self._turns.notice()

    def _step(self, timeout_seconds: float, enough: int) -> bool:
        """Writes what waits, waits for something to read, and reads it. Returns: False if the connection is lost.

        Args:
            enough: messages in the queue at which reading ends.
        """
        session = self._session
        assert session is not None
        if session.want_write() and not session.write():
            return False
        sock = tls_socket(session)
        if sock is None:
            return False
        # Acknowledgements of the broker come by the same stream: who waits for them may not wait for us.
        reading = self._stopped or not self._intake.full or session.outstanding > MAX_OUTSTANDING // 2
        buffered = reading and sock.pending() > 0  # TLS holds decrypted bytes that poll does not see
        readable = self._turns.wait(
            sock,
            reading=reading,
            writing=session.want_write(),
            timeout_seconds=0 if buffered else timeout_seconds,
        )
        if (buffered or readable) and not session.read(
            lambda: len(self._intake) >= enough and not self._stopped
        ):
            return False
        if session.want_write() and not session.write():
            return False
        if session.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._note_error("the broker did not answer a ping")
            return False
        return tls_socket(session) is not None

    # --- Callbacks, in the thread that has the turn

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

    def _puback(self, token: object, refused: bool) -> None:
        self._published += 1
        self._refused += refused
        if self._published_callback is not None:
            self._published_callback(token)

    def _take(self, published: Published) -> None:
        if published.topic == UPTIME_TOPIC:
            seconds = published.payload.partition(b" ")[0]
            if self._uptime_callback is not None and seconds.isdigit():
                self._uptime_callback(int(seconds))
            return
        if self._stopped:
            return
        self._received += 1
        if not self._rates.allow(published.topic, time.monotonic()):
            self._rate_limited += 1
            if published.qos and self._session is not None:
                self._session.acknowledge(published.mid)
            return
        self._intake.put(
            Incoming(
                topic=published.topic,
                payload=published.payload,
                received_at=datetime.now(UTC),
                response_topic=published.response_topic,
                correlation=published.correlation,
                mid=published.mid,
                qos=published.qos,
                generation=self._generation,
            )
        )
