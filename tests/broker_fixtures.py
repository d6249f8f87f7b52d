"""A real mosquitto on the shipped configuration, and parties that connect to it, for every test folder."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.installation import Installation, create_installation
from gateway.mqtt import pki
from gateway.mqtt.broker import LocalBroker
from gateway.mqtt.client import Transport, TransportSettings

DEADLINE_SECONDS = 15.0


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = DEADLINE_SECONDS) -> None:
    """Waits for a condition of another thread or process; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        threading.Event().wait(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledBroker:
    """An installation and the mosquitto that runs from it."""

    installation: Installation
    broker: LocalBroker

    def settings(self, **changes: Any) -> TransportSettings:
        """The gateway's settings for this broker; reconnects fast."""
        place = self.installation
        values: dict[str, Any] = {
            "host": "localhost",
            "port": place.gateway_port,
            "cafile": place.broker_ca,
            "certfile": place.gateway_certificate,
            "keyfile": place.gateway_key,
            "client_id": "fg-the-gateway-of-a-test",
            "group": place.group,
            "prefix": place.prefix,
            "reconnect_min_seconds": 0.05,
            "reconnect_max_seconds": 0.2,
        }
        return TransportSettings(**(values | changes))

    def transport(self, **changes: Any) -> Transport:
        """A gateway's transport, ready."""
        transport = Transport(self.settings(**changes))
        transport.start()
        assert transport.wait_ready(DEADLINE_SECONDS), transport.stats()
        return transport


def install(directory: Path, **changes: Any) -> InstalledBroker:
    """An installation in `directory` on free ports, not started."""
    arguments: dict[str, Any] = {
        "device_host": "localhost",
        "device_port": 0,
        "gateway_port": 0,
        "http_port": 0,
        "download_port": 0,
    }
    installation = create_installation(directory, now=datetime.now(UTC), **(arguments | changes))
    return InstalledBroker(installation=installation, broker=installation.local_broker())


@pytest.fixture(scope="module")
def installed_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledBroker]:
    """A running broker for the module's tests, started anew with an empty capath."""
    installed = install(tmp_path_factory.mktemp("installed") / "fleetgate")
    with installed.broker:
        yield installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and key on disk."""

    certificate: Path
    key: Path


def device_pair(directory: Path, authority: pki.Signed, common_name: str) -> Pair:
    """A device's certificate for any CN whatever, which a careful factory would not make."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{x509.random_serial_number():x}"
    pair = Pair(certificate=directory / f"{stem}.pem", key=directory / f"{stem}.key")
    signed = pki.Signed(certificate=certificate, key=key)
    pair.certificate.write_bytes(signed.pem)
    pair.key.write_bytes(signed.key_pem)
    return pair


class RefusedError(Exception):
    """The broker did not let the party in."""


class Party:
    """An MQTT client of a test, on any listener; a context manager that disconnects in order."""

    def __init__(
        self,
        installed: InstalledBroker,
        pair: Pair,
        *,
        client_id: str = "",
        v5: bool = True,
        port: int | None = None,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.received: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self._answers: queue.Queue[str] = queue.Queue()
        self._done: dict[int, ReasonCode] = {}
        self._changed = threading.Condition()
        self._v5 = v5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"test-{x509.random_serial_number():x}"[:23],
            protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set(str(installed.installation.broker_ca), str(pair.certificate), str(pair.key))
        client.max_inflight_messages_set(0)
        if will is not None:
            client.will_set(will[0], will[1], qos=1)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = lambda _client, _data, message: self.received.put(message)
        client.on_publish = lambda _client, _data, mid, reason, _more: self._note(mid, reason)
        client.on_subscribe = lambda _client, _data, mid, reasons, _more: self._note(mid, reasons[0])
        self.client = client
        self._port = port or installed.installation.device_port

    def __enter__(self) -> "Party":
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def connect(self) -> "Party":
        try:
            self.client.connect("localhost", self._port, keepalive=60)
        except OSError as error:
            raise RefusedError(str(error)) from error
        self.client.loop_start()
        answer = self._answers.get(timeout=DEADLINE_SECONDS)
        if answer:
            self.client.loop_stop()
            raise RefusedError(answer)
        return self

    def publish(self, topic: str, payload: bytes, *, properties: Properties | None = None) -> int:
        """Publishes with QoS 1 and waits for the PUBACK; returns its reason code (0 on 3.1.1)."""
        return self._wait(self.client.publish(topic, payload, qos=1, properties=properties).mid)

    def publish_many(self, topic: str, payloads: list[bytes]) -> None:
        """Publishes all at once and waits for every PUBACK."""
        for mid in [self.client.publish(topic, payload, qos=1).mid for payload in payloads]:
            assert self._wait(mid) in (0, 0x10)

    def subscribe(self, topic_filter: str) -> int:
        """Subscribes with QoS 1 and waits for the SUBACK; returns its reason code."""
        _, mid = self.client.subscribe(topic_filter, 1)
        assert mid is not None
        return self._wait(mid)

    def drop(self) -> None:
        """Vanishes without DISCONNECT, as a device does that loses its power: the will is due."""
        sock = self.client.socket()
        assert sock is not None
        sock.close()
        self.client.loop_stop()

    def wait_disconnected(self) -> None:
        """Waits until the broker has ended the connection."""
        assert self._answers.get(timeout=DEADLINE_SECONDS).startswith("disconnected")

    def _wait(self, mid: int) -> int:
        with self._changed:
            assert self._changed.wait_for(lambda: mid in self._done, DEADLINE_SECONDS), f"no answer to {mid}"
            return self._done.pop(mid).value

    def _note(self, mid: int, reason: ReasonCode) -> None:
        with self._changed:
            self._done[mid] = reason
            self._changed.notify_all()

    def _connected(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        self._answers.put(str(reason) if reason.is_failure else "")

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        self._answers.put(f"disconnected: {reason}")


def response_properties(topic: str, correlation: bytes) -> Properties:
    """MQTT 5 properties of a request (§3.3.2.3.5 and §3.3.2.3.6)."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = topic
    properties.CorrelationData = correlation
    return properties
