"""What a device says and how it reads what it is told (docs/protocol.md, sections 4 to 8).

Builds the signed payloads of hello, presence and progress for one connection, and takes replies apart. Keeps
the counters that a connection needs (`conn`, `seq`) and nothing else: when to speak, and how it travels,
is `agent`'s and `fleet`'s business.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioning.envelope import (
    PrivateKey,
    key_id_of,
    payload_type,
    previous_statement,
    sign,
    sign_envelope,
    spki_of,
)
from provisioning.errors import InvalidError, MessageError, RejectReason
from provisioning.ids import TopicName
from provisioning.strictjson import parse_json
from provisioning.topics import DEFAULT_PREFIX, Up, is_topic_name

PROTOCOL_VERSION: Final = 1
MOST_WAIT_SECONDS: Final = 3600.0
LEAST_HEARTBEAT_SECONDS: Final = 10.0
"""No reply makes a device speak more often: replies are not signed."""
MAX_CHAIN: Final = 3
"""Certificates in a hello, leaf first (protocol, section 5)."""


class Presence(StrEnum):
    """States that a device may report of itself."""

    ONLINE = "online"
    OFFLINE = "offline"
    SLEEPING = "sleeping"
    REBOOTING = "rebooting"


class Result(StrEnum):
    """How a hello was answered."""

    WELCOME = "welcome"
    PENDING = "pending"
    CHALLENGE = "challenge"
    REJECTED = "rejected"
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A device's own name, key and certificates.

    Attributes:
        topic_name: the certificate's CN, the device's address on the broker.
        key: the private key; it never leaves the device.
        chain: DER certificates, leaf first, without the registered CA; at most three.
    """

    topic_name: TopicName
    key: PrivateKey
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a device tells about itself in every hello.

    Attributes:
        model, revision: its hardware.
        version, bundle_seq: its **running** firmware.
        time_zone: IANA name, or None.
        attributes: free key and value pairs that cohort rules and selectors may use.
        stays: whether it stays connected after its reply (levels 2 and 3) or leaves (level 1).
    """

    model: str = "reference"
    revision: str | None = None
    version: str = "1.0.0"
    bundle_seq: int | None = None
    time_zone: str | None = None
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    stays: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply as the device understands it; members it does not know are ignored.

    Attributes:
        nonce: the nonce that is answered (`for`), or None where the gateway could not read the hello.
        result: how it was answered.
        reason: a word of docs/errors.md, or None.
        retry_after_seconds: when to say hello again, or None.
        challenge: what to put in the next hello in place of a time, or None.
        identifier, product, cohort: where the device stands, once welcomed.
        heartbeat_seconds: how often to report `online`, or None.
        server_time: the gateway's clock, milliseconds UTC, or None. Not signed: good for a display only.
        offer: firmware for this device, as it stands in the message, or None.
    """

    nonce: str | None
    result: Result
    reason: str | None = None
    retry_after_seconds: float | None = None
    challenge: str | None = None
    identifier: str | None = None
    product: str | None = None
    cohort: str | None = None
    heartbeat_seconds: float | None = None
    server_time: int | None = None
    offer: Mapping[str, object] | None = None


class Voice:
    """Speaks for one device over one connection after another.

    `boot` is drawn once, when the process starts; `conn` anew at every CONNECT, when `seq` starts at 1 again.
    Not thread-safe.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        audience: str,
        prefix: str = DEFAULT_PREFIX,
        profile: Profile | None = None,
        previous_key: PrivateKey | None = None,
    ) -> None:
        """Take an identity and draw `boot`.

        Args:
            identity: name, key and certificates.
            audience: the gateway's name, `aud`: by default the broker host that devices dial.
            prefix: topic prefix of the installation.
            profile: what to tell about the device.
            previous_key: the key that this device was known by before, to prove that the new one is its own.
        """
        self.identity = identity
        self.audience = audience
        self.prefix = prefix
        self.profile = profile or Profile()
        self.boot = new_word()
        self.conn = new_word()
        self._seq = 0
        self._previous = None if previous_key is None else self._hand_over(previous_key)

    @property
    def reply_topic(self) -> str:
        """Where the gateway answers."""
        return f"{self.prefix}/{self.identity.topic_name}/reply"

    @property
    def offer_topic(self) -> str:
        """Where the gateway offers firmware."""
        return f"{self.prefix}/{self.identity.topic_name}/offer"

    def topic(self, verb: Up) -> str:
        """Where this device says `verb`."""
        return f"{self.prefix}/{self.identity.topic_name}/{verb}"

    def begin_connection(self) -> bytes:
        """Draw a new `conn` and give the will for it, signed before CONNECT as it must be.

        A will carries `seq` 0: it cannot know how far the connection will get.
        """
        self.conn = new_word()
        self._seq = 0
        return self._sign(Up.PRESENCE, {**self._head(Up.PRESENCE, 0), "state": str(Presence.OFFLINE)})

    def hello(
        self,
        *,
        nonce: str,
        ts: int | None = None,
        challenge: str | None = None,
        with_chain: bool = True,
        last_update: Mapping[str, str] | None = None,
    ) -> bytes:
        """A signed hello.

        Args:
            nonce: 8–64 of `A–Z a–z 0–9 _ -`, new for each hello.
            ts: milliseconds UTC by the device's clock, or None without a clock.
            challenge: the gateway's, in place of a time.
            with_chain: whether to send the certificates; they may stay away once known.
            last_update: how the last offer ended (`offer_id`, `result`, `reason`), until this is answered.
        """
        profile = self.profile
        payload = self._head(Up.HELLO, self._next_seq())
        payload["stays"] = profile.stays
        payload["nonce"] = nonce
        if challenge is not None:
            payload["challenge"] = challenge
        elif ts is not None:
            payload["ts"] = ts
        if with_chain:
            payload["chain"] = [base64.b64encode(der).decode() for der in self.identity.chain]
        payload["hardware"] = _without_none({"model": profile.model, "revision": profile.revision})
        payload["firmware"] = _without_none({"version": profile.version, "bundle_seq": profile.bundle_seq})
        if profile.time_zone is not None:
            payload["time_zone"] = profile.time_zone
        if profile.attributes:
            payload["attributes"] = dict(profile.attributes)
        if last_update is not None:
            payload["last_update"] = dict(last_update)
        if self._previous is not None:
            payload["previous"] = self._previous
        return self._sign(Up.HELLO, payload)

    def presence(self, state: Presence) -> bytes:
        """A signed presence: a heartbeat (`online`), a goodbye, or what the device is about to do."""
        return self._sign(Up.PRESENCE, {**self._head(Up.PRESENCE, self._next_seq()), "state": str(state)})

    def progress(
        self,
        *,
        offer_id: str,
        state: str,
        percent: int | None = None,
        reason: str | None = None,
        detail: str | None = None,
        defer_until: int | None = None,
    ) -> bytes:
        """A signed progress report on an offer; `defer_until` in milliseconds UTC."""
        payload = self._head(Up.PROGRESS, self._next_seq())
        payload |= _without_none(
            {
                "offer_id": offer_id,
                "state": state,
                "percent": percent,
                "reason": reason,
                "detail": detail,
                "defer_until": defer_until,
            }
        )
        return self._sign(Up.PROGRESS, payload)

    def reboot(self, *, version: str, bundle_seq: int | None = None) -> None:
        """Starts a new life of the device, on this image."""
        self.boot = new_word()
        self.profile = replace(self.profile, version=version, bundle_seq=bundle_seq)

    def _head(self, verb: Up, seq: int) -> dict[str, object]:
        return {
            "v": PROTOCOL_VERSION,
            "aud": self.audience,
            "topic": self.topic(verb),
            "conn": self.conn,
            "boot": self.boot,
            "seq": seq,
        }

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _sign(self, verb: Up, payload: Mapping[str, object]) -> bytes:
        data = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
        return sign_envelope(self.identity.key, payload_type(verb), data)

    def _hand_over(self, previous_key: PrivateKey) -> dict[str, str]:
        spki = spki_of(self.identity.key.public_key())
        statement = previous_statement(self.audience, self.identity.topic_name, spki)
        return {
            "keyid": key_id_of(previous_key.public_key()),
            "signature": base64.b64encode(sign(previous_key, statement)).decode(),
        }


def new_word() -> str:
    """64 random bits in hex, as `boot` and `conn` are."""
    return secrets.token_hex(8)


def new_nonce() -> str:
    """A nonce for one hello: 96 random bits in base64url."""
    return secrets.token_urlsafe(12)


FIRST_WAIT_SECONDS: Final = 5.0
LONGEST_WAIT_SECONDS: Final = 600.0


def full_jitter(tries: int, *, first: float = FIRST_WAIT_SECONDS) -> float:
    """Seconds to wait: anywhere up to a bound that doubles with each try and ends at ten minutes."""
    bound = min(LONGEST_WAIT_SECONDS, first * 2.0 ** min(tries - 1, 16))
    return max(min(first, 0.5), bound * secrets.randbelow(1000) / 1000)


def spread(seconds: float) -> float:
    """A wait that the gateway asked for, and up to a fifth more, so that a herd does not come back at once.

    An hour at most: replies are not signed, and nobody may silence a device with one.
    """
    return min(seconds, MOST_WAIT_SECONDS) * (1.0 + secrets.randbelow(200) / 1000)


def parse_reply(data: bytes) -> Reply:
    """Take a reply apart; a result of a later version is read as `busy`.

    Raises:
        MessageError: MALFORMED_JSON, or MALFORMED_MESSAGE with the member at fault.
    """
    document = parse_json(data)
    if not isinstance(document, dict):
        raise MessageError(RejectReason.MALFORMED_MESSAGE, "expected a JSON object as the reply")
    word = document.get("result")
    if not isinstance(word, str):
        raise MessageError(RejectReason.MALFORMED_MESSAGE, f"'result' is none of {', '.join(Result)}")
    try:
        result = Result(word)
    except ValueError:
        result = Result.BUSY  # a word of a later gateway (docs/protocol.md, section 7)
    nonce = document.get("for", 0)
    if nonce is not None and not isinstance(nonce, str):  # without it, nobody knows what is answered
        raise MessageError(RejectReason.MALFORMED_MESSAGE, "'for' is neither a nonce nor null")
    device = document.get("device")
    offer = document.get("offer")
    return Reply(
        nonce=nonce,
        result=result,
        reason=_text(document, "reason"),
        retry_after_seconds=_seconds(document, "retry_after_seconds"),
        challenge=_text(document, "challenge"),
        identifier=_text(device, "identifier") if isinstance(device, dict) else None,
        product=_text(document, "product"),
        cohort=_text(document, "cohort"),
        heartbeat_seconds=_seconds(document, "heartbeat_seconds"),
        server_time=_integer(document, "server_time"),
        offer=offer if isinstance(offer, dict) else None,
    )


def load_identity(certificates_pem: bytes, key_pem: bytes) -> Identity:
    """Read a device's certificate chain and key.

    Args:
        certificates_pem: the device's certificate and then any intermediates, in PEM.
        key_pem: its private key, PEM, not encrypted.

    Raises:
        InvalidError: not readable, no CN that can be a topic name, or a key that does not fit.
    """
    try:
        certificates = x509.load_pem_x509_certificates(certificates_pem)
        key: object = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"certificate or key cannot be read as PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise InvalidError(f"a key of kind {type(key).__name__}; expected P-256, P-384, RSA or Ed25519")
    leaf = certificates[0]
    if leaf.public_key() != key.public_key():
        raise InvalidError("the private key does not belong to the first certificate of the file")
    names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    name = str(names[0].value) if len(names) == 1 else ""
    if not is_topic_name(name):
        raise InvalidError(
            f"the certificate's CN {name!r} cannot be a topic name: 1–64 of A–Z a–z 0–9 . _ : -"
        )
    chain = tuple(
        certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates[:MAX_CHAIN]
    )
    return Identity(topic_name=TopicName(name), key=key, chain=chain)


def load_identity_files(cert: Path, key: Path) -> Identity:
    """Read a device's certificate chain and key from two PEM files.

    Raises:
        InvalidError: as `load_identity`, or a file that cannot be read.
    """
    try:
        return load_identity(cert.read_bytes(), key.read_bytes())
    except OSError as error:
        raise InvalidError(f"{error.filename} cannot be read: {error.strerror}") from None


def _without_none(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _text(document: Mapping[str, object], member: str) -> str | None:
    value = document.get(member)
    return value if isinstance(value, str) else None


def _seconds(document: Mapping[str, object], member: str) -> float | None:
    """A duration, or None where there is none that could be one."""
    value = _integer(document, member)
    return None if value is None or value < 0 else float(value)


def _integer(document: Mapping[str, object], member: str) -> int | None:
    value = document.get(member)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
