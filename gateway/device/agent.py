"""The reference device: what a careful client does over one connection after another (protocol, levels 1–3).

It keeps its key and `boot` across reconnects, draws `conn` anew at every CONNECT, signs its will before it
connects, repeats its hello with a new nonce until it is answered, answers challenges, and beats its heart. With
a state directory it takes firmware: it verifies, downloads, installs into its spare slot, reboots as a new
boot, and goes back to the old image by choice.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.device.messages import (
    Presence,
    Profile,
    Reply,
    Result,
    Voice,
    full_jitter,
    load_identity_files,
    new_nonce,
    parse_reply,
)
from gateway.device.replies import Action, decide_next
from gateway.device.slots import Image, Slots
from gateway.device.updating import Updating
from provisioning.errors import FleetgateError, MessageError
from provisioning.ids import KeyId
from provisioning.strictjson import parse_json
from provisioning.topics import DEFAULT_PREFIX, Up

LOOP_SECONDS: Final = 0.2
HELLO_LIFE_SECONDS: Final = 300
STABLE_SECONDS: Final = 60.0
"""A connection that held so long starts the waiting anew; one that is taken over at once does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Who the device is, and where it dials.

    Attributes:
        state: where it keeps images and offers; None: it takes no firmware.
        signing_keys: SPKI by id of the keys that may sign its firmware.
        rolls_back: whether new images fail their health check, to see a rollback.
    """

    cert: Path
    key: Path
    host: str
    port: int
    cafile: Path
    audience: str
    prefix: str = DEFAULT_PREFIX
    profile: Profile = field(default_factory=Profile)
    mqtt5: bool = True
    has_clock: bool = True
    state: Path | None = None
    signing_keys: Mapping[KeyId, bytes] = field(default_factory=dict)
    rolls_back: bool = False


class Agent:
    """One device. `run` blocks; `stop` may come from a signal handler or another thread.

    Args:
        settings: who and where.
        tell: is told in words what happens.
    """

    def __init__(self, settings: AgentSettings, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._tell = tell
        profile = settings.profile
        self._updating: Updating | None = None
        if settings.state is not None:
            factory = Image(version=profile.version, bundle_seq=profile.bundle_seq)
            slots = Slots(settings.state, factory)
            self._updating = Updating(slots, profile, settings.signing_keys, settings.cafile, tell)
            profile = self._updating.profile
        self._voice = Voice(
            load_identity_files(settings.cert, settings.key),
            audience=settings.audience,
            prefix=settings.prefix,
            profile=profile,
        )
        self._reboots = False
        self._stopping = threading.Event()
        self._nonce = ""
        self._tries = 0
        self._challenges = 0
        self._known = False
        self._act_at = 0.0
        self._act: Callable[[], None] | None = None
        self._heartbeat_seconds = 60.0
        self.last_reply: Reply | None = None

    def stop(self) -> None:
        """Ends `run` after a goodbye."""
        self._stopping.set()
        if self._updating is not None:
            self._updating.stop()

    def run(self, *, until_answered: bool = False) -> Reply | None:
        """Connects, says hello and stays, connecting again after each loss.

        Args:
            until_answered: leave after the first answer that is final.

        Returns:
            The last reply.
        """
        losses = 0
        while not self._stopping.is_set():
            client = self._new_client()
            try:
                client.connect(self._settings.host, self._settings.port, keepalive=120)
            except OSError as error:
                self._tell(f"cannot connect to {self._settings.host}:{self._settings.port}: {error}")
            else:
                began_at = time.monotonic()
                self._serve(client, until_answered)
                if self._reboots and self._updating is not None:
                    self._boot(self._updating)
                    losses = 0
                    continue
                if time.monotonic() - began_at > STABLE_SECONDS:
                    losses = 0
                if until_answered and self.last_reply is not None:
                    return self.last_reply
            losses += 1
            self._stopping.wait(full_jitter(losses))
        return self.last_reply

    def _new_client(self) -> paho.Client:
        settings = self._settings
        will = self._voice.begin_connection()
        self._act = None  # what the lost connection still meant to say
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._voice.identity.topic_name,
            protocol=paho.MQTTv5 if settings.mqtt5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set(str(settings.cafile), str(settings.cert), str(settings.key))
        client.will_set(self._voice.topic(Up.PRESENCE), will, qos=1)
        client.on_connect = self._connected
        client.on_subscribe = lambda client, *_: self._say_hello(client)
        client.on_message = self._message
        return client

    def _serve(self, client: paho.Client, until_answered: bool) -> None:
        while client.loop(LOOP_SECONDS) == paho.MQTT_ERR_SUCCESS:
            final = self.last_reply is not None and self.last_reply.result != Result.CHALLENGE
            if self._stopping.is_set() or (until_answered and final):
                goodbye = self._voice.presence(Presence.OFFLINE)
                client.publish(self._voice.topic(Up.PRESENCE), goodbye, qos=1)
                client.disconnect()
                while client.want_write():
                    client.loop_write()
                return
            if self._act is not None and time.monotonic() >= self._act_at:
                self._act()
            if self._updating is not None:
                self._report_steps(client, self._updating)
                if self._updating.needs_hello():
                    self._say_hello(client)  # its welcome brings fresh addresses, if it is still offered
            if self._reboots:
                client.publish(
                    self._voice.topic(Up.PRESENCE), self._voice.presence(Presence.REBOOTING), qos=1
                )
                client.disconnect()
                while client.want_write():
                    client.loop_write()
                return
        self._tell("the connection was lost")

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self._tell(f"the broker refused the connection: {reason}")
            return
        self._tell(
            f"connected to {self._settings.host}:{self._settings.port} as {self._voice.identity.topic_name}"
        )
        client.subscribe([(self._voice.reply_topic, 1), (self._voice.offer_topic, 1)])

    def _say_hello(self, client: paho.Client, challenge: str | None = None) -> None:
        self._nonce = new_nonce()
        self._tries += 1
        ts = int(time.time() * 1000) if self._settings.has_clock else None
        hello = self._voice.hello(
            nonce=self._nonce,
            ts=ts,
            challenge=challenge,
            with_chain=not self._known,
            last_update=None if self._updating is None else self._updating.slots.state.last_update,
        )
        client.publish(self._voice.topic(Up.HELLO), hello, qos=1, properties=self._properties())
        self._after(full_jitter(self._tries), lambda: self._say_hello(client))

    def _properties(self) -> Properties | None:
        """Where MQTT 5 has room for it: where to answer, and until when the hello makes sense."""
        if not self._settings.mqtt5:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = self._voice.reply_topic
        properties.CorrelationData = self._nonce.encode()
        properties.MessageExpiryInterval = HELLO_LIFE_SECONDS
        return properties

    def _message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.topic == self._voice.offer_topic:
            if self._updating is not None:
                with contextlib.suppress(MessageError):
                    self._updating.take(parse_json(bytes(message.payload)))
            return
        try:
            reply = parse_reply(bytes(message.payload))
        except MessageError as error:
            self._tell(f"a reply that cannot be read: {error.detail}")
            return
        following = decide_next(reply, nonce=self._nonce, hellos=self._tries, challenges=self._challenges)
        if following.action is Action.IGNORE:
            return
        if (
            reply.nonce is None and self._tries == 0
        ):  # about something other than a hello: that one is answered
            self._tell(f"a message was not understood: {reply.reason}")
            return
        self.last_reply = reply
        if reply.nonce is not None:
            self._nonce = ""  # answered; one with `for: null` may be about an earlier hello
        match following.action:
            case Action.ANSWER:
                self._tell(f"challenged ({reply.reason}); answering")
                self._challenges += 1
                self._known = self._known and not following.with_chain
                self._say_hello(client, following.challenge)
            case Action.WELCOME:
                self._tell(f"welcome: {reply.identifier} of product {reply.product}, cohort {reply.cohort}")
                self._tries, self._challenges = 0, 0
                self._known = True
                if self._updating is not None:
                    self._updating.welcome(reply.product or "", reply.offer)
                self._heartbeat_seconds = following.heartbeat_seconds or self._heartbeat_seconds
                self._beat_later(client)
            case Action.WAIT:
                self._challenges = 0
                self._tell(f"{reply.result}: {reply.reason}; trying again in {following.wait_seconds:.0f} s")
                self._after(following.wait_seconds, lambda: self._say_hello(client))

    def _beat_later(self, client: paho.Client) -> None:
        def beat() -> None:
            online = self._voice.presence(Presence.ONLINE)
            client.publish(self._voice.topic(Up.PRESENCE), online, qos=1)
            self._beat_later(client)

        self._after(self._heartbeat_seconds * (0.8 + secrets.randbelow(200) / 1000), beat)

    def _report_steps(self, client: paho.Client, updating: Updating) -> None:
        for offer_id, state, more in updating.take_steps():
            self._tell(f"update: {state}{' (' + str(more['reason']) + ')' if more.get('reason') else ''}")
            report = self._voice.progress(offer_id=offer_id, state=state, **more)
            client.publish(self._voice.topic(Up.PROGRESS), report, qos=1)
            self._reboots = self._reboots or state == "rebooting"

    def _boot(self, updating: Updating) -> None:
        """A new life of the device, on what its slots say."""
        self._reboots = False
        updating.boot(unwell=self._settings.rolls_back)
        image = updating.slots.running
        self._voice.reboot(version=image.version, bundle_seq=image.bundle_seq)
        self._tell(f"booted {image.version}")

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._act_at, self._act = time.monotonic() + seconds, act


class AgentError(FleetgateError):
    """The agent cannot start as asked."""
