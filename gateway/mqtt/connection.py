"""How a session and a plain client are set up, connected and subscribed.

Everything about MQTT 5 against 3.1.1 on the gateway's side is here; `client.py` works on what comes and goes.
"""

import socket
import ssl
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
