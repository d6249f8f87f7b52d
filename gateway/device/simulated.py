"""One simulated device: what it does, by plan, over one real connection after another.

It says its signed hello, repeats it with a new nonce until it is answered, honours what it is told to wait,
answers challenges, beats its heart, and dials again after a loss. By choice it has a bad clock, leaves and
comes back, signs wrongly, or shares its key with a clone; and it takes firmware, to whatever end the plan says.
"""

import base64
import json
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.device.factory import DeviceCertificate, new_key
from gateway.device.messages import (
    Presence,
    Reply,
    Result,
    Voice,
    full_jitter,
    load_identity,
    new_nonce,
    parse_reply,
)
from gateway.device.plans import Broker, Fate, Forgery, Outcome, Plan
from gateway.device.replies import Action, decide_next
from gateway.device.updates import (
    Heard,
    Offer,
    RefusedOfferError,
    Trust,
    check_offer,
    parse_offer,
    place_offer,
)
from provisioning.envelope import payload_type, sign_envelope
from provisioning.errors import MessageError
from provisioning.strictjson import parse_json
from provisioning.topics import Up

HELLO_LIFE_SECONDS: Final = 300
REBOOT_SECONDS: Final = 0.5
STEP_SECONDS: Final = 0.4


class Engine(Protocol):
    """What a device needs of the fleet that runs it."""

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` once, after so long."""

    def dial(self, device: "SimulatedDevice") -> None:
        """Connects a device when its turn comes."""

    def touched(self, device: "SimulatedDevice") -> None:
        """Says that a device has something to write."""

    def download(self, offer: Offer, then: Callable[[bool], None]) -> None:
        """Gets and checks every artifact of an offer in the background; `then` is called in the fleet's thread."""


class SimulatedDevice:
    """One device and its connection. For one thread."""

    def __init__(self, plan: Plan, broker: Broker, engine: Engine) -> None:
        self.plan = plan
        self.outcome = Outcome(name=plan.name, version=plan.profile.version)
        self._broker = broker
        self._engine = engine
        identity = load_identity(plan.made.pem, plan.made.key_pem)
        self._voice = Voice(identity, audience=broker.audience, prefix=broker.prefix, profile=plan.profile)
        self._nonce = ""
        self._said_at = 0.0
        self._tries = 0
        self._challenges = 0
        self._losses = 0
        self._life = 0  # grows with every connection: what an earlier one meant to do is forgotten
        self._churned = 0
        self._known = False
        self._leaving = False
        self._heartbeat_seconds = 60.0
        self._highest_seq = plan.profile.bundle_seq or 0
        self._revision = 0
        self._offer: Offer | None = None
        self._last_update: dict[str, str] | None = None
        self._context = _context(broker.cafile, plan.made)
        self.client: paho.Client | None = None

    # --- The connection

    def connect(self) -> None:
        """Connects; raises OSError where the broker does not let it in."""
        self._life += 1
        self._leaving = False
        self.outcome.connects += 1
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._voice.identity.topic_name,
            protocol=paho.MQTTv5 if self.plan.mqtt5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set_context(self._context)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        client.will_set(self._voice.topic(Up.PRESENCE), self._voice.begin_connection(), qos=1)
        client.connect(self._broker.host, self._broker.port, keepalive=300)
        self.client = client

    def lost(self) -> None:
        """The connection is gone: dials again, later with every loss, unless it left on purpose."""
        self._life += 1
        self.client = None
        if self.plan.expected == "broker":
            self.outcome.result, self.outcome.reason = str(Result.REJECTED), "broker"
        if self.plan.expected is not None and self.outcome.done:
            return
        if not self._leaving:
            self._losses += 1
            self._engine.after(full_jitter(self._losses, first=0.5), lambda: self._engine.dial(self))

    def leave(self) -> None:
        """Says goodbye and disconnects; it does not come back by itself."""
        self._leaving = True
        client = self.client
        if client is not None and client.is_connected():
            self._say(Up.PRESENCE, self._voice.presence(Presence.OFFLINE))
            client.disconnect()
            self._engine.touched(self)

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if not reason.is_failure:
            client.subscribe([(self._voice.reply_topic, 1), (self._voice.offer_topic, 1)])
            self._engine.touched(self)

    def _subscribed(self, *_: Any) -> None:
        self._say_hello()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """Acts later, if this connection still stands then."""
        life = self._life
        self._engine.after(seconds, lambda: act() if life == self._life else None)

    def _say(self, verb: Up, payload: bytes, properties: Properties | None = None) -> None:
        if self.client is not None:
            self.client.publish(self._voice.topic(verb), payload, qos=1, properties=properties)
            self._engine.touched(self)

    # --- Hello

    def _say_hello(self, challenge: str | None = None) -> None:
        self._nonce = nonce = new_nonce()
        self._tries += 1
        offset = self.plan.clock_offset_seconds
        ts = None if offset is None or challenge else int((time.time() + offset) * 1000)
        hello = self._voice.hello(
            nonce=nonce,
            ts=None if ts is None else max(0, ts),
            challenge=challenge,
            with_chain=not self._known,
            last_update=self._last_update,
        )
        self.outcome.hellos += 1
        self._said_at = time.perf_counter()
        self._say(Up.HELLO, self._forge(hello), self._properties(nonce))

        def again() -> None:
            if self._nonce == nonce:
                self._say_hello()

        self._later(5.0 + full_jitter(self._tries), again)

    def _properties(self, nonce: str) -> Properties | None:
        if not self.plan.mqtt5:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = self._voice.reply_topic
        properties.CorrelationData = nonce.encode()
        properties.MessageExpiryInterval = HELLO_LIFE_SECONDS
        return properties

    def _forge(self, hello: bytes) -> bytes:
        match self.plan.forgery:
            case None:
                return hello
            case Forgery.WRONG_TOPIC:
                payload = json.loads(_payload_of(hello))
                payload["topic"] = f"{self._broker.prefix}/somebody-else/hello"
                return sign_envelope(
                    self._voice.identity.key, payload_type(Up.HELLO), json.dumps(payload).encode()
                )
            case Forgery.BAD_SIGNATURE:
                envelope = json.loads(hello)
                other = json.loads(sign_envelope(new_key(), payload_type(Up.HELLO), _payload_of(hello)))
                envelope["signatures"][0]["sig"] = other["signatures"][0]["sig"]
                return json.dumps(envelope).encode()

    def _message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        heard_at = time.perf_counter()
        if message.topic == self._voice.offer_topic:
            self._take_offer(_json(bytes(message.payload)))
            return
        try:
            reply: Reply = parse_reply(bytes(message.payload))
        except MessageError:
            self.outcome.unreadable += 1
            return
        following = decide_next(reply, nonce=self._nonce, hellos=self._tries, challenges=self._challenges)
        if following.action is Action.IGNORE:
            return
        self._nonce = ""
        if following.action is Action.ANSWER:
            self._challenges += 1
            self._known = self._known and not following.with_chain
            self._say_hello(following.challenge)
            return
        self._challenges = 0
        outcome = self.outcome
        outcome.result, outcome.reason = str(reply.result), reply.reason
        outcome.product, outcome.cohort = reply.product, reply.cohort
        if outcome.latency_ms is None:
            outcome.latency_ms = (heard_at - self._said_at) * 1000
        if following.action is Action.WAIT:
            self._later(following.wait_seconds, self._say_hello)
            return
        self._tries, self._losses, self._known = 0, 0, True
        if reply.result is Result.WELCOME and self._voice.conn not in outcome.conns[-1:]:
            outcome.conns.append(self._voice.conn)
        self._heartbeat_seconds = following.heartbeat_seconds or self._heartbeat_seconds
        self._later(self._heartbeat_seconds * (0.5 + secrets.randbelow(500) / 1000), self._beat)
        self._settle_update()
        if reply.offer is not None:
            self._take_offer(reply.offer)
        self._maybe_churn()

    def _beat(self) -> None:
        self._say(Up.PRESENCE, self._voice.presence(Presence.ONLINE))
        self._later(self._heartbeat_seconds * (0.8 + secrets.randbelow(200) / 1000), self._beat)

    def _maybe_churn(self) -> None:
        churn = self.plan.churn
        if churn is None or self._churned >= churn.times:
            return
        self._churned += 1

        def go() -> None:
            if churn.goodbye:
                self.leave()
            elif self.client is not None and (line := self.client.socket()) is not None:
                self._leaving = True
                line.close()  # no DISCONNECT: the broker says the will
                self._engine.touched(self)
            self._engine.after(churn.after_seconds, lambda: self._engine.dial(self))

        self._later(churn.after_seconds, go)

    # --- Updates

    def _take_offer(self, document: object) -> None:
        offer = parse_offer(document)
        if offer is None or not self.plan.keys:
            return
        heard, self._revision = place_offer(
            offer,
            welcomed=self.outcome.product is not None,
            highest_revision=self._revision,
            open_offer=None if self._offer is None else self._offer.offer_id,
            installing=False,
        )
        if heard is Heard.CANCEL:
            self._offer = None
            self.outcome.updates[offer.offer_id] = "cancelled"
        if heard is not Heard.TAKE:
            return
        self._offer = offer
        profile = self._voice.profile
        trust = Trust(
            keys=self.plan.keys,
            product=self.outcome.product or "",
            hardware_model=profile.model,
            hardware_revision=profile.revision or "",
            running_seq=profile.bundle_seq or 0,
            highest_seq=self._highest_seq,
        )
        try:
            check_offer(offer, trust)
        except RefusedOfferError as error:
            self._end_update(offer, "rejected", error.reason)
            return
        self._begin_update(offer)

    def _begin_update(self, offer: Offer) -> None:
        match self.plan.fate:
            case Fate.SILENT:
                return
            case Fate.REJECT:
                self._end_update(offer, "rejected", "battery_low")
                return
            case Fate.DEFER if self.outcome.updates.get(offer.offer_id) != "deferred":
                self.outcome.updates[offer.offer_id] = "deferred"
                self._offer = None
                until = int((time.time() + self.plan.defer_seconds) * 1000)
                self._report(offer, "deferred", defer_until=until)
                return
            case _:
                pass
        self._report(offer, "accepted")
        self._report(offer, "downloading", percent=0)
        self._engine.download(offer, lambda ok: self._downloaded(offer, ok))

    def _downloaded(self, offer: Offer, ok: bool) -> None:
        if self._offer is not offer:
            return
        if not ok:
            self._end_update(offer, "failed", "download_failed")
            return
        self._report(offer, "downloaded")
        self._report(offer, "verified")
        self._report(offer, "installing", percent=0)
        self._engine.after(
            STEP_SECONDS * (0.5 + secrets.randbelow(1000) / 1000), lambda: self._installed(offer)
        )

    def _installed(self, offer: Offer) -> None:
        if self._offer is not offer:
            return
        if self.plan.fate is Fate.FAIL:
            self._end_update(offer, "failed", "install_failed")
            return
        self._report(offer, "rebooting")
        self._say(Up.PRESENCE, self._voice.presence(Presence.REBOOTING))
        self._engine.after(REBOOT_SECONDS, lambda: self._reboot(offer))

    def _reboot(self, offer: Offer) -> None:
        """Comes back as a new boot: on the new image, or on the old one where the new one did not start."""
        profile = self._voice.profile
        if self.plan.fate is Fate.ROLL_BACK:
            self._voice.reboot(version=profile.version, bundle_seq=profile.bundle_seq)
            self._last_update = {
                "offer_id": offer.offer_id,
                "result": "rolled_back",
                "reason": "health_check_failed",
            }
        else:
            seq = json.loads(_payload_of(offer.statement))["bundle_seq"]
            self._voice.reboot(version=offer.version, bundle_seq=seq)
            self._highest_seq = max(self._highest_seq, seq)
            self._last_update = {"offer_id": offer.offer_id, "result": "succeeded"}
        self.outcome.version = self._voice.profile.version
        self._leaving = True
        if self.client is not None:
            self.client.disconnect()
            self._engine.touched(self)
        self._engine.after(REBOOT_SECONDS, lambda: self._engine.dial(self))

    def _settle_update(self) -> None:
        """The welcome to a hello that said how an update ended: it is known, and need not be said again."""
        last = self._last_update
        if last is not None:
            self.outcome.updates[last["offer_id"]] = last["result"]
            self._last_update = None
            self._offer = None

    def _end_update(self, offer: Offer, result: str, reason: str) -> None:
        self._report(offer, result, reason=reason)
        self.outcome.updates[offer.offer_id] = result
        self._last_update = {"offer_id": offer.offer_id, "result": result, "reason": reason}
        self._offer = None

    def _report(self, offer: Offer, state: str, **more: Any) -> None:
        self._say(Up.PROGRESS, self._voice.progress(offer_id=offer.offer_id, state=state, **more))


def _context(cafile: Path, made: DeviceCertificate) -> ssl.SSLContext:
    """The device's TLS context; OpenSSL reads certificates from files alone, so they live for a moment in one."""
    context = ssl.create_default_context(cafile=str(cafile))
    with tempfile.TemporaryDirectory() as folder:
        cert, key = made.write(Path(folder))
        context.load_cert_chain(cert, key)
    return context


def _payload_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def _json(data: bytes) -> object:
    try:
        return parse_json(data)
    except MessageError:
        return None
