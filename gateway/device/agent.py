"""The reference device: what a careful client does over one connection after another (protocol, levels 1–3).

It keeps its key and `boot` across reconnects, draws `conn` anew at every CONNECT, signs its will before it
connects, repeats its hello with a new nonce until it is answered, answers challenges, and beats its heart. With
a state directory it takes firmware: it verifies, downloads, installs into its spare slot, reboots as a new
boot, and goes back to the old image by choice.
"""

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.device.installer import AddressRefusedError, Installer, InstallError
from gateway.device.messages import (
    LEAST_HEARTBEAT_SECONDS,
    LONGEST_WAIT_SECONDS,
    Presence,
    Profile,
    Reply,
    Result,
    Voice,
    full_jitter,
    load_identity_files,
    new_nonce,
    parse_reply,
    spread,
)
from gateway.device.slots import Image, Slots
from gateway.device.updates import Offer, RefusedOfferError, Trust, check_offer, parse_offer
from provisioning.bundles import BundleStatement
from provisioning.errors import FleetgateError, MessageError
from provisioning.ids import KeyId
from provisioning.strictjson import parse_json
from provisioning.topics import DEFAULT_PREFIX, Up

LOOP_SECONDS: Final = 0.2
HELLO_LIFE_SECONDS: Final = 300
MOST_REFUSALS: Final = 3
"""Refused addresses in a row, each after a fresh offer, before an update has failed."""
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
        self._slots: Slots | None = None
        if settings.state is not None:
            factory = Image(version=profile.version, bundle_seq=profile.bundle_seq)
            self._slots = Slots(settings.state, factory)
            running = self._slots.running
            profile = replace(profile, version=running.version, bundle_seq=running.bundle_seq)
        self._voice = Voice(
            load_identity_files(settings.cert, settings.key),
            audience=settings.audience,
            prefix=settings.prefix,
            profile=profile,
        )
        self._steps: queue.SimpleQueue[tuple[str, str, dict[str, Any]]] = queue.SimpleQueue()
        self._installing: threading.Thread | None = None
        self._reboots = False
        self._refused = threading.Event()
        self._refusals = 0
        self._product = ""
        self._stopping = threading.Event()
        self._nonce = ""
        self._tries = 0
        self._known = False
        self._act_at = 0.0
        self._act: Callable[[], None] | None = None
        self._heartbeat_seconds = 60.0
        self.last_reply: Reply | None = None

    def stop(self) -> None:
        """Ends `run` after a goodbye."""
        self._stopping.set()

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
                if self._reboots:
                    self._boot()
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
            self._report_steps(client)
            if self._refused.is_set() and self._installing is not None:
                self._installing.join()
                self._refused.clear()
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
            last_update=None if self._slots is None else self._slots.state.last_update,
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
            with contextlib.suppress(MessageError):
                self._take_offer(parse_json(bytes(message.payload)))
            return
        try:
            reply = parse_reply(bytes(message.payload))
        except MessageError as error:
            self._tell(f"a reply that cannot be read: {error.detail}")
            return
        if reply.nonce is not None and reply.nonce != self._nonce:
            return
        self.last_reply = reply
        match reply.result:
            case Result.CHALLENGE:
                self._tell(f"challenged ({reply.reason}); answering")
                self._known = self._known and reply.reason != "chain_required"
                self._say_hello(client, reply.challenge)
            case Result.WELCOME:
                self._tell(f"welcome: {reply.identifier} of product {reply.product}, cohort {reply.cohort}")
                self._tries, self._known, self._product = 0, True, reply.product or ""
                if self._slots is not None:
                    self._slots.settle()
                    self._take_offer(reply.offer or (None if self._refusals else self._slots.state.offer))
                self._heartbeat_seconds = max(
                    LEAST_HEARTBEAT_SECONDS, reply.heartbeat_seconds or self._heartbeat_seconds
                )
                self._beat_later(client)
            case Result.PENDING | Result.BUSY | Result.REJECTED:
                wait = spread(reply.retry_after_seconds or LONGEST_WAIT_SECONDS)
                self._tell(f"{reply.result}: {reply.reason}; trying again in {wait:.0f} s")
                self._after(wait, lambda: self._say_hello(client))

    def _beat_later(self, client: paho.Client) -> None:
        def beat() -> None:
            online = self._voice.presence(Presence.ONLINE)
            client.publish(self._voice.topic(Up.PRESENCE), online, qos=1)
            self._beat_later(client)

        self._after(self._heartbeat_seconds * (0.8 + secrets.randbelow(200) / 1000), beat)

    # --- Firmware

    def _take_offer(self, document: object) -> None:
        slots, offer = self._slots, parse_offer(document)
        if slots is None or offer is None or offer.revision < slots.state.revision:
            return
        if not self._product:
            return  # it came before the welcome, which says whose device this is, and carries it again
        if self._installing is not None and self._installing.is_alive():
            return  # the same again, or one that comes when this one is through
        if offer.cancelled:
            self._tell(f"the offer was taken back: {offer.offer_id}")
            slots.take_offer(None, offer.revision)
            return
        profile = self._voice.profile
        trust = Trust(
            keys=self._settings.signing_keys,
            product=self._product,
            hardware_model=profile.model,
            hardware_revision=profile.revision or "",
            running_seq=profile.bundle_seq or 0,
            highest_seq=slots.state.highest_seq,
        )
        try:
            statement = check_offer(offer, trust)
        except RefusedOfferError as error:
            self._tell(f"offer of {offer.version} refused: {error}")
            self._steps.put((offer.offer_id, "rejected", {"reason": error.reason}))
            slots.take_offer(None, offer.revision)
            slots.end_update(offer.offer_id, "rejected", error.reason)
            return
        assert isinstance(document, dict)
        slots.take_offer(document, offer.revision)
        self._tell(f"offered {statement.version} (bundle {statement.bundle_seq})")
        self._steps.put((offer.offer_id, "accepted", {}))
        self._installing = threading.Thread(
            target=self._install, args=(slots, offer, statement), name="installer", daemon=True
        )
        self._installing.start()

    def _install(self, slots: Slots, offer: Offer, statement: BundleStatement) -> None:
        def tell(state: str, more: dict[str, Any]) -> None:
            self._steps.put((offer.offer_id, state, more))

        try:
            Installer(slots, offer, statement, tell, self._stopping).run()
        except AddressRefusedError as error:
            self._refusals += 1
            self._tell(f"an address was refused ({error.word}); asking for fresh ones")
            if self._refusals < MOST_REFUSALS:
                self._refused.set()
                return
            self._refusals = 0
            slots.end_update(offer.offer_id, "failed", "url_refused")
            tell("failed", {"reason": "url_refused", "detail": error.word})
            return
        except InstallError as error:
            if self._stopping.is_set():
                return  # it goes on at the next start
            slots.end_update(offer.offer_id, "failed", error.reason)
            tell("failed", {"reason": error.reason, "detail": error.detail})
            return
        slots.begin_trial(Image(version=statement.version, bundle_seq=statement.bundle_seq), offer.offer_id)
        tell("rebooting", {})

    def _report_steps(self, client: paho.Client) -> None:
        while not self._steps.empty():
            offer_id, state, more = self._steps.get()
            self._tell(f"update: {state}{' (' + str(more['reason']) + ')' if more.get('reason') else ''}")
            report = self._voice.progress(offer_id=offer_id, state=state, **more)
            client.publish(self._voice.topic(Up.PROGRESS), report, qos=1)
            self._reboots = self._reboots or state == "rebooting"

    def _boot(self) -> None:
        """A new life of the device, on what its slots say."""
        assert self._slots is not None
        self._reboots = False
        last = self._slots.state.last_update
        if self._settings.rolls_back and self._slots.state.trial is not None and last is not None:
            self._slots.roll_back(last["offer_id"], "health_check_failed")
        image = self._slots.running
        self._voice.reboot(version=image.version, bundle_seq=image.bundle_seq)
        self._tell(f"booted {image.version}")

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._act_at, self._act = time.monotonic() + seconds, act


class AgentError(FleetgateError):
    """The agent cannot start as asked."""
