"""A simulated fleet: each device has its own key, certificate and mutual-TLS connection to the real broker.

One thread serves all devices of a process with one selector around paho's `loop_read`, `loop_write` and
`loop_misc`. A device says its signed hello, repeats it with a new nonce until it is answered, answers
challenges, and then stays connected and beats its heart. A connection that is lost stays lost.
"""

import contextlib
import secrets
import selectors
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway.device.factory import DeviceCertificate
from gateway.device.messages import (
    Presence,
    Profile,
    Reply,
    Result,
    Voice,
    load_identity,
    new_nonce,
    parse_reply,
)
from provisioning.topics import DEFAULT_PREFIX, Up

REPEAT_SECONDS: Final = 10.0
MISC_SECONDS: Final = 5.0
SELECT_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where devices dial."""

    host: str
    port: int
    cafile: Path
    audience: str
    prefix: str = DEFAULT_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One device, and what is to be expected of it: None means a welcome, else the reason of its refusal."""

    name: str
    made: DeviceCertificate
    profile: Profile
    expected: str | None = None
    clock_offset_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a device saw."""

    name: str
    result: str = ""
    reason: str | None = None
    product: str | None = None
    cohort: str | None = None
    latency_ms: float | None = None
    hellos: int = 0

    @property
    def done(self) -> bool:
        """Whether it was welcomed or refused for good."""
        return self.result in (Result.WELCOME, Result.REJECTED)


@dataclass(slots=True, kw_only=True)
class FleetReport:
    """What a fleet saw."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def welcomed(self) -> list[Outcome]:
        """Those that were welcomed."""
        return [outcome for outcome in self.outcomes if outcome.result == Result.WELCOME]

    @property
    def refused(self) -> Counter[str]:
        """Refusals by reason."""
        return Counter(outcome.reason or "" for outcome in self.outcomes if outcome.result == Result.REJECTED)

    @property
    def by_product(self) -> Counter[str]:
        """Welcomes by product."""
        return Counter(outcome.product or "" for outcome in self.welcomed)

    def latency_ms(self, share: float) -> float | None:
        """The latency below which `share` (0–1) of the welcomes lie, hello published → reply received."""
        times = sorted(outcome.latency_ms for outcome in self.welcomed if outcome.latency_ms is not None)
        return round(times[min(len(times) - 1, int(len(times) * share))], 3) if times else None


class SimulatedDevice:
    """One device and its connection."""

    def __init__(self, plan: Plan, broker: Broker) -> None:
        self.plan = plan
        self.outcome = Outcome(name=plan.name)
        self._broker = broker
        identity = load_identity(plan.made.pem, plan.made.key_pem)
        self._voice = Voice(identity, audience=broker.audience, prefix=broker.prefix, profile=plan.profile)
        self._nonce = ""
        self._said_at = 0.0
        self._challenge: str | None = None
        self._repeat_at = float("inf")
        self._beat_at = float("inf")
        self._heartbeat_seconds = 60.0
        self.client = self._new_client()

    def _new_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._voice.identity.topic_name,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set_context(_context(self._broker.cafile, self.plan.made))
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self.say_hello()
        client.on_message = self._message
        return client

    def connect(self) -> None:
        """Connects; raises OSError where the broker does not let it in."""
        will = self._voice.begin_connection()
        self.client.will_set(self._voice.topic(Up.PRESENCE), will, qos=1)
        self.client.connect(self._broker.host, self._broker.port, keepalive=300)

    def leave(self) -> None:
        """Says goodbye and disconnects."""
        self.client.publish(self._voice.topic(Up.PRESENCE), self._voice.presence(Presence.OFFLINE), qos=1)
        self.client.disconnect()

    def say_hello(self) -> None:
        """Says a new hello."""
        self._nonce = new_nonce()
        clock = int((time.time() + self.plan.clock_offset_seconds) * 1000)
        hello = self._voice.hello(
            nonce=self._nonce, ts=None if self._challenge else clock, challenge=self._challenge
        )
        self._challenge = None
        self.outcome.hellos += 1
        self._said_at = time.perf_counter()
        self._repeat_at = self._said_at + REPEAT_SECONDS * (0.5 + secrets.randbelow(1000) / 1000)
        self.client.publish(self._voice.topic(Up.HELLO), hello, qos=1)

    def tend(self, now: float) -> None:
        """Keeps connection and session alive, and repeats a hello that was not answered."""
        self.client.loop_misc()
        if now > self._beat_at:
            self._beat_at = now + self._heartbeat_seconds
            online = self._voice.presence(Presence.ONLINE)
            self.client.publish(self._voice.topic(Up.PRESENCE), online, qos=1)
        if now > self._repeat_at and not self.outcome.done:
            self.say_hello()

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if not reason.is_failure:
            client.subscribe(self._voice.reply_topic, 1)

    def _message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        heard_at = time.perf_counter()
        reply: Reply = parse_reply(bytes(message.payload))
        if reply.nonce not in (self._nonce, None):
            return
        if reply.result == Result.CHALLENGE:
            self._challenge = reply.challenge
            self.say_hello()
            return
        outcome = self.outcome
        outcome.result, outcome.reason = str(reply.result), reply.reason
        outcome.product, outcome.cohort = reply.product, reply.cohort
        outcome.latency_ms = (heard_at - self._said_at) * 1000
        if reply.result == Result.WELCOME:
            self._heartbeat_seconds = reply.heartbeat_seconds or self._heartbeat_seconds
            self._beat_at = heard_at + self._heartbeat_seconds * (0.5 + secrets.randbelow(500) / 1000)


class Fleet:
    """Runs many devices in this thread.

    Args:
        plans: the devices.
        broker: where they dial.
        connects_per_second: pace of the connects; 0: as fast as they go.
    """

    def __init__(self, plans: Sequence[Plan], broker: Broker, *, connects_per_second: float = 0.0) -> None:
        self.devices = [SimulatedDevice(plan, broker) for plan in plans]
        self._pause = 1.0 / connects_per_second if connects_per_second else 0.0
        self._selector = selectors.DefaultSelector()
        self._next_misc = 0.0

    def run(
        self,
        seconds: float,
        *,
        on_change: Callable[["Fleet"], None] = lambda _: None,
        until_done: bool = True,
    ) -> FleetReport:
        """Connects all, and serves them until each is answered, or the time is over.

        Args:
            seconds: time limit.
            on_change: called some twenty times a second, for a view.
            until_done: end as soon as every device has its answer.
        """
        ends = time.monotonic() + seconds
        waiting: Iterator[SimulatedDevice] = iter(self.devices)
        next_connect = time.monotonic()
        more = True
        while time.monotonic() < ends:
            if more and time.monotonic() >= next_connect:
                device = next(waiting, None)
                more = device is not None
                if device is not None:
                    self._connect(device)
                    next_connect += self._pause
            self.serve(0.0 if more and not self._pause else SELECT_SECONDS)
            on_change(self)
            if until_done and not more and all(device.outcome.done for device in self.devices):
                break
        return self.report()

    def report(self) -> FleetReport:
        """What the devices have seen so far."""
        return FleetReport(outcomes=[device.outcome for device in self.devices])

    def serve(self, wait_seconds: float) -> None:
        """One round over all connections."""
        for key, events in self._selector.select(wait_seconds):
            client: paho.Client = key.data.client
            if events & selectors.EVENT_READ:
                client.loop_read()
            if client.socket() is None:
                self._selector.unregister(key.fileobj)
        now = time.perf_counter()
        tend = now >= self._next_misc
        if tend:
            self._next_misc = now + MISC_SECONDS
        for device in self.devices:
            if tend and device.client.is_connected():
                device.tend(now)
            while device.client.want_write() and device.client.socket() is not None:
                device.client.loop_write()

    def close(self) -> None:
        """Every device says goodbye."""
        for device in self.devices:
            if device.client.is_connected():
                device.leave()
        for device in self.devices:
            with contextlib.suppress(OSError, ValueError):
                while device.client.want_write() and device.client.socket() is not None:
                    device.client.loop_write()
        self._selector.close()

    def _connect(self, device: SimulatedDevice) -> None:
        try:
            device.connect()
        except OSError as error:
            device.outcome.result, device.outcome.reason = str(Result.REJECTED), f"broker: {error}"
            return
        self._selector.register(device.client.socket(), selectors.EVENT_READ, device)  # type: ignore[arg-type]


def _context(cafile: Path, made: DeviceCertificate) -> ssl.SSLContext:
    """The device's TLS context; OpenSSL reads certificates from files alone, so they live for a moment in one."""
    context = ssl.create_default_context(cafile=str(cafile))
    with tempfile.TemporaryDirectory() as folder:
        cert, key = made.write(Path(folder))
        context.load_cert_chain(cert, key)
    return context
