"""A look at one device's topics, both ways, beside the work: nothing is acknowledged, shared or kept for it.

What it hears is what the broker passes on, whichever worker answers it.
"""

import queue
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from paho.mqtt import client as paho

from gateway.mqtt import connection
from gateway.mqtt.connection import TransportSettings
from provisioning.errors import FleetgateError

_KEPT: Final = 1000
"""Messages that wait for a slow reader; what comes on top is dropped and counted."""


class BrokerAwayError(FleetgateError):
    """The broker cannot be reached, or refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One message as it passed."""

    topic: str
    payload: bytes
    received_at: datetime


class Listening:
    """A subscription of its own; a context manager.

    Args:
        settings: the worker's way to the broker.
        topics: to hear.

    Raises:
        BrokerAwayError: the broker cannot be reached, or does not let the gateway hear that.
    """

    def __init__(
        self, settings: TransportSettings, topics: Sequence[str], timeout_seconds: float = 10.0
    ) -> None:
        own = replace(settings, client_id=f"watch-{secrets.token_hex(16)}", session_expiry_seconds=0)
        self._heard: queue.Queue[Heard] = queue.Queue(_KEPT)
        self._topics = topics
        self._answer: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.dropped = 0
        client = self._client = connection.new_client(own, keeps_session=False)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        try:
            connection.connect(client, own)
            client.loop_start()
            fault = self._answer.get(timeout=timeout_seconds)
        except OSError as error:
            fault = str(error)
        except queue.Empty:
            fault = f"no answer within {timeout_seconds:.0f} s"
        if fault:
            self.close()
            raise BrokerAwayError(
                f"broker {settings.host}:{settings.port}: {fault}; `fleetgate doctor` checks it"
            )

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next(self, timeout_seconds: float) -> Heard | None:
        """The next message, or None where none came in time."""
        try:
            return self._heard.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the connection."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self._answer.put(f"it refused the connection: {reason}")
            return
        client.subscribe([(topic, 0) for topic in self._topics])

    def _subscribed(self, _client: Any, _data: Any, _mid: int, reasons: list[Any], _more: Any) -> None:
        refused = any(reason.is_failure for reason in reasons)
        self._answer.put(
            "its ACL file does not let the gateway hear what devices are told" if refused else ""
        )

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        heard = Heard(topic=message.topic, payload=bytes(message.payload), received_at=datetime.now(UTC))
        try:
            self._heard.put_nowait(heard)
        except queue.Full:
            self.dropped += 1
