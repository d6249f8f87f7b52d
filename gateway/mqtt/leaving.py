"""The session of a worker that left for good, taken over to be emptied, and then ended.

It connects under that worker's client id, first takes the session's subscriptions back, so that nothing new comes,
and then receives what the broker kept, as any other connection does. It knows that it has come to the end by a
marker: a message to itself, which the broker puts behind everything that waited before.
"""

import queue
import secrets
import threading
from dataclasses import replace
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from gateway.mqtt import connection
from gateway.mqtt.client import Transport
from gateway.mqtt.connection import TransportSettings
from gateway.mqtt.listening import BrokerAwayError
from gateway.mqtt.packets import Published
from provisioning.topics import Down

_ANSWER_SECONDS: Final = 10.0


class LeavingTransport(Transport):
    """A transport that only empties the session of `settings.client_id`."""

    def __init__(self, settings: TransportSettings) -> None:
        super().__init__(settings)
        # Below the devices' names, where the gateway's ACL file lets it write and read; no device has this one.
        self._marker = f"{settings.prefix}/leaving-{secrets.token_hex(16)}/{Down.REPLY}"
        self._heard_in: int | None = None  # the generation of the connection that brought the marker

    @property
    def drained(self) -> bool:
        """Whether everything that the broker kept has been received and taken, on the connection that stands."""
        heard_in, stats = self._heard_in, self.stats()
        # What a lost connection brought and nobody acknowledged comes again, and the marker after it.
        return stats.connected and heard_in == stats.generation and stats.queued == 0

    def _connected(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, more: Any) -> None:
        if reason.is_failure:
            super()._connected(client, data, flags, reason, more)
            return
        client.on_unsubscribe = self._unsubscribed
        client.unsubscribe(connection.subscriptions(self._settings))

    def _unsubscribed(
        self, client: paho.Client, _data: Any, _mid: int, _reasons: list[ReasonCode], _more: Any
    ) -> None:
        client.subscribe(self._marker, 1)

    def _subscribed(self, client: Any, data: Any, mid: int, reasons: list[ReasonCode], more: Any) -> None:
        super()._subscribed(client, data, mid, reasons, more)
        client.publish(self._marker, b"", qos=1)

    def _take(self, published: Published) -> None:
        if published.topic != self._marker:
            super()._take(published)
            return
        assert self._session is not None
        self._session.acknowledge(published.mid)
        self._heard_in = self._generation


def end_session(settings: TransportSettings) -> None:
    """Ends the session of `settings.client_id` at the broker, with whatever is in it.

    Raises:
        BrokerAwayError: the broker did not answer; the session may be there still.
        SetupError: a certificate or key cannot be read.
    """
    # MQTT 5 §3.1.2.11.2: with an expiry of 0 the session ends with the connection; 3.1.1: a clean one.
    own = replace(settings, session_expiry_seconds=0)
    client = connection.new_client(own, keeps_session=False)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    client.on_connect = lambda _client, _data, _flags, reason, _more: answers.put(
        str(reason) if reason.is_failure else ""
    )
    ended = threading.Event()
    client.on_disconnect = lambda *_: ended.set()
    try:
        connection.connect(client, own)
        client.loop_start()
        fault = answers.get(timeout=_ANSWER_SECONDS)
    except OSError as error:
        fault = str(error)
    except queue.Empty:
        fault = f"no answer within {_ANSWER_SECONDS:.0f} s"
    client.disconnect()
    if not fault and not ended.wait(_ANSWER_SECONDS):
        fault = "the connection did not end"
    client.loop_stop()
    if fault:
        raise BrokerAwayError(f"broker {settings.host}:{settings.port}: {fault}")
