"""How a paho client is set up, connected and subscribed, and how its socket is waited for.

Everything about MQTT 5 against 3.1.1 on the gateway's side is here; `client.py` works on what comes and goes.
"""

import contextlib
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.mqtt.session import Session
from provisioning.errors import SetupError
from provisioning.topics import DEFAULT_PREFIX, Up

# The broker drops what is larger (mosquitto.conf, message_size_limit), with a PUBACK that paho cannot read.
MAX_PAYLOAD_BYTES: Final = 16384
UPTIME_TOPIC: Final = "$SYS/broker/uptime"
_TICK_MILLISECONDS: Final = 500  # keepalive and deadlines are looked at this often


class Protocol(StrEnum):
    """Version of MQTT."""

    V5 = "5"
    V311 = "3.1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """How to reach the broker, and how much may wait."""

    host: str  # must stand in the broker's certificate
    port: int
    cafile: Path
    certfile: Path
    keyfile: Path
    client_id: str  # secret, stable, one per worker; a new group needs a new one
    group: str  # secret, the same for all workers
    prefix: str = DEFAULT_PREFIX
    session_expiry_seconds: int = 3600  # MQTT 5; with 3.1.1 the broker's persistent_client_expiration counts
    protocol: Protocol | str = Protocol.V5
    queue_limit: int = 2000
    keepalive_seconds: int = 120
    rate_per_minute: float = 0.0  # of one topic; 0 is no limit
    rate_burst: int = 30
    reconnect_min_seconds: float = 0.5
    reconnect_max_seconds: float = 30.0

    @property
    def is_v5(self) -> bool:
        """Whether MQTT 5 is spoken."""
        return Protocol(self.protocol) is Protocol.V5


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStats:
    """What a transport is doing and has done since its start."""

    connected: bool
    generation: int  # of the connection, from 0: connections lost, and attempts that failed
    queued: int
    paused: bool
    pauses: int
    received: int
    rate_limited: int
    unreadable: int  # packets that no message could be made of
    discarded: int  # queued when the connection was lost, to come again
    published: int  # acknowledged by the broker
    refused: int  # of these, acknowledged with an error (MQTT 5)
    outstanding: int  # published and not yet acknowledged
    last_error: str | None


class TolerantClient(paho.Client):
    """A client whom no message can stop: what paho refuses to read (see `session.py`) is dropped."""

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except MQTTException:  # MalformedPacket is one
            return MQTTErrorCode.MQTT_ERR_SUCCESS


def new_session(settings: TransportSettings) -> Session:
    """A session that is not connected, and that the broker keeps.

    Raises:
        SetupError: a certificate or key cannot be read.
    """
    session = Session(CallbackAPIVersion.VERSION2, is_v5=settings.is_v5, **_arguments(settings, keeps=True))
    session.tls_set_context(_tls_context(settings))
    # With a callback here paho never writes in the thread that publishes; the loop asks want_write itself.
    session.on_socket_register_write = lambda *_: None
    session.on_socket_open = _send_at_once
    return session


def new_client(settings: TransportSettings, *, keeps_session: bool = True) -> TolerantClient:
    """A plain client of paho's that is not connected, and that acknowledges nothing.

    Args:
        keeps_session: whether the broker keeps what it has not acknowledged.

    Raises:
        SetupError: a certificate or key cannot be read.
    """
    client = TolerantClient(CallbackAPIVersion.VERSION2, **_arguments(settings, keeps=keeps_session))
    client.tls_set_context(_tls_context(settings))
    return client


def _arguments(settings: TransportSettings, *, keeps: bool) -> dict[str, Any]:
    return {
        "client_id": settings.client_id,
        "clean_session": None if settings.is_v5 else not keeps,
        "protocol": paho.MQTTv5 if settings.is_v5 else paho.MQTTv311,
        "manual_ack": True,
    }


def _tls_context(settings: TransportSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(settings.cafile))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.certfile, settings.keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise SetupError(
            f"cannot use {settings.cafile}, {settings.certfile} and {settings.keyfile}: {error}"
        ) from error
    return context


def _send_at_once(_client: paho.Client, _data: Any, sock: Any) -> None:
    """A reply is small and its device waits for it: TCP must not hold it back for the next one (RFC 896)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connect(client: paho.Client, settings: TransportSettings) -> None:
    """Connects, or connects again; returns when CONNECT is on its way.

    Raises:
        OSError: unreachable, or the TLS handshake failed.
    """
    if client.host:
        client.reconnect()
        return
    arguments: dict[str, Any] = {}
    if settings.is_v5:
        expiry = properties(PacketTypes.CONNECT, SessionExpiryInterval=settings.session_expiry_seconds)
        arguments = {"clean_start": False, "properties": expiry}
    client.connect(settings.host, settings.port, keepalive=settings.keepalive_seconds, **arguments)


def subscriptions(settings: TransportSettings) -> list[str]:
    """What a worker's session is subscribed to."""
    return [*(f"$share/{settings.group}/{settings.prefix}/+/{verb}" for verb in Up), UPTIME_TOPIC]


def subscribe(client: paho.Client, settings: TransportSettings) -> None:
    """Subscribes to what devices say, sharing, and to the broker's uptime, not sharing."""
    shared = subscriptions(settings)[:-1]
    if settings.is_v5:
        client.subscribe(
            [(name, SubscribeOptions(qos=1)) for name in shared] + [(UPTIME_TOPIC, SubscribeOptions(qos=0))]
        )
    else:
        client.subscribe([(name, 1) for name in shared] + [(UPTIME_TOPIC, 0)])


def properties(packet_type: int, **values: object) -> Properties:
    """MQTT 5 properties of a packet, by paho's names."""
    made = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves its constructor untyped
    for name, value in values.items():
        setattr(made, name, value)
    return made


def tls_socket(client: paho.Client) -> ssl.SSLSocket | None:
    """The client's socket, which is always one of TLS here; None when it is not connected."""
    return cast(ssl.SSLSocket | None, client.socket())


class Waker:
    """Wakes the network thread out of `poll` when another thread has work for it."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = False
        self._owner: int | None = None

    def own(self) -> None:
        """Says that the calling thread is the one to be woken, which need not wake itself."""
        self._owner = threading.get_ident()

    def wake(self) -> None:
        """Wakes it; again before it has woken up costs nothing."""
        if self._woken or threading.get_ident() == self._owner:
            return
        self._woken = True
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody to wake
            self._writer.send(b"\0")

    def wait(self, sock: socket.socket, *, reading: bool, writing: bool, timeout_seconds: float) -> bool:
        """Waits for `sock` or a wake-up, for as long, and a tick at most.

        Returns: whether there is something to be read of `sock`, or it has ended.
        """
        # Not select(): file descriptors of 1024 and above are common in tests and fleets.
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(sock, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
        ready = dict(poll.poll(max(0, min(timeout_seconds * 1000, _TICK_MILLISECONDS))))
        if ready.pop(self._reader.fileno(), 0):
            self._woken = False  # before the pipe is emptied and work is looked for: no call is lost
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
        return bool(ready.get(sock.fileno(), 0) & (select.POLLIN | select.POLLHUP | select.POLLERR))

    def close(self) -> None:
        """Gives its sockets back; the thread has ended."""
        self._reader.close()
        self._writer.close()
