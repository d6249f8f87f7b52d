"""What is wrong with a device's message, for those who write devices (protocol, "No reply after 5 seconds?").

Runs the very checks that the gateway runs before any database, each on its own, so that one mistake does not
hide the next. Registered CAs, revocation and enrollment are not known here. Why a signature fails is found
by trying the usual mistakes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from provisioning.certificates import parse_chain, read_facts, signing_key_of
from provisioning.decision import Rule
from provisioning.envelope import (
    Envelope,
    PublicKey,
    key_id_of,
    pae,
    parse_envelope,
    payload_type,
    spki_of,
    verify_envelope,
)
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.freshness import FUTURE_MS, PAST_MS
from provisioning.messages import Hello, Message, decode_chain, parse_message
from provisioning.mistakes import find_mistake, name_key_id
from provisioning.strictjson import MAX_MESSAGE_BYTES, parse_json
from provisioning.topics import Up, UpTopic, parse_up

_Found = TypeVar("_Found")
NAMES: Final = (
    "envelope",
    "topic",
    "payload_type",
    "payload",
    "audience",
    "topic_in_payload",
    "certificates",
    "key_id",
    "topic_name",
    "signature",
    "time",
)
"""The checks, in the order in which they are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        rules: every check, in the order of `NAMES`; `passed` is None where it could not be made.
        signed: the bytes that a right signature covers; None where the message does not say.
    """

    rules: tuple[Rule, ...]
    signed: bytes | None

    @property
    def reason(self) -> RejectReason | None:
        """The word that a device would be answered for the first failure; None where nothing failed."""
        return next((rule.reason for rule in self.rules if rule.passed is False), None)


def diagnose(
    data: bytes,
    *,
    topic: str,
    prefix: str,
    now: datetime,
    audience: str | None = None,
    certificate: x509.Certificate | None = None,
) -> Diagnosis:
    """Every check of one message; raises nothing and changes nothing.

    Args:
        data: what was published, byte for byte.
        topic: where it was published.
        prefix: of the gateway's topics.
        now: the time to hold `ts` against, aware.
        audience: the gateway's name; None where it is not known, and then not checked.
        certificate: the device's, for messages that carry none; None where it is not at hand.
    """
    return _Examination(topic=topic, prefix=prefix, now=now, audience=audience).run(data, certificate)


class _Examination:
    def __init__(self, *, topic: str, prefix: str, now: datetime, audience: str | None) -> None:
        self._topic = topic
        self._prefix = prefix
        self._now = now
        self._audience = audience
        self._found: dict[str, Rule] = {}

    def run(self, data: bytes, certificate: x509.Certificate | None) -> Diagnosis:
        signed: bytes | None = None
        envelope = self._check("envelope", lambda: parse_envelope(data), _say_envelope)
        up = self._check("topic", self._parse_topic, lambda up: f"{up.verb} of '{up.name}'")
        if envelope is not None and up is not None:
            kind = payload_type(up.verb)
            signed = pae(kind, envelope.payload)
            self._check("payload_type", lambda: _same_type(envelope, kind), lambda _: kind)
            message = self._read_payload(replace(envelope, payload_type=kind), up)
            chain = self._read_certificates(message, certificate)
            if chain is not None:
                self._check_sender(envelope, up, chain)
            if isinstance(message, Hello):
                self._check("time", lambda: self._check_time(message), str)
        rules = tuple(
            self._found.get(name) or Rule(name=name, passed=None, detail="not reached") for name in NAMES
        )
        return Diagnosis(rules=rules, signed=signed)

    def _check(self, name: str, check: Callable[[], _Found], say: Callable[[_Found], str]) -> _Found | None:
        try:
            value = check()
        except (MessageError, VerificationError) as error:
            self._found[name] = Rule(name=name, passed=False, detail=error.detail, reason=error.reason)
            return None
        self._found[name] = Rule(name=name, passed=True, detail=say(value))
        return value

    def _skip(self, name: str, why: str) -> None:
        self._found[name] = Rule(name=name, passed=None, detail=why)

    def _parse_topic(self) -> UpTopic:
        up = parse_up(self._topic, self._prefix)
        if up is None:
            raise MessageError(
                RejectReason.WRONG_TOPIC,
                f"devices publish on {self._prefix}/NAME/VERB, where VERB is {', '.join(Up)} and NAME the CN;"
                " on any other topic the gateway reads nothing and answers nothing",
            )
        return up

    def _read_payload(self, envelope: Envelope, up: UpTopic) -> Message | None:
        own = _read_own(envelope.payload)

        def parse(full_topic: str, audience: str) -> Message:
            return parse_message(envelope, up, full_topic=full_topic, audience=audience)

        message = self._check(
            "payload", lambda: parse(own["topic"], own["aud"]), lambda found: f"a {up.verb}, seq {found.seq}"
        )
        if message is None:
            return None
        self._check("topic_in_payload", lambda: parse(self._topic, own["aud"]), lambda _: self._topic)
        audience = self._audience
        if audience is None:
            self._skip("audience", f"says {own['aud']!r}; the gateway's name was not given")
        else:
            self._check("audience", lambda: parse(own["topic"], audience), lambda _: audience)
        return message

    def _read_certificates(
        self, message: Message | None, certificate: x509.Certificate | None
    ) -> tuple[x509.Certificate, ...] | None:
        chain: tuple[bytes, ...] = ()
        if isinstance(message, Hello) and message.chain:
            found = self._check("certificates", lambda: _read_chain(message), _say_chain)
            if found is not None:
                return found
            chain = _decoded(message)
        elif certificate is not None:
            der = certificate.public_bytes(serialization.Encoding.DER)
            return self._check(
                "certificates",
                lambda: parse_chain((der,)),
                lambda _: "the message has none; that of the file is used",
            )
        else:
            self._skip(
                "certificates", "the message has none: give the device's certificate to check its signature"
            )
        return _readable(chain)

    def _check_sender(self, envelope: Envelope, up: UpTopic, chain: tuple[x509.Certificate, ...]) -> None:
        self._check("topic_name", lambda: _check_name(chain[0], up), lambda name: f"the CN is {name!r}")
        key = signing_key_of(chain[0])
        self._check("key_id", lambda: _check_key_id(envelope, chain, key), str)
        self._check("signature", lambda: _check_signature(envelope, up, chain, key), lambda _: "good")

    def _check_time(self, hello: Hello) -> str:
        now_ms = int(self._now.timestamp() * 1000)
        if hello.challenge is not None:
            return "by challenge, which only the gateway can check"
        if hello.ts is None:
            raise MessageError(
                RejectReason.CLOCK_OFF, "neither ts nor challenge: the gateway answers with a challenge"
            )
        off = hello.ts - now_ms
        if -PAST_MS <= off <= FUTURE_MS:
            return f"{abs(off) / 1000:.1f} s {'ahead of' if off > 0 else 'behind'} this machine's clock"
        unit = "; is it in seconds? milliseconds are needed" if hello.ts < 10**11 else ""
        raise MessageError(
            RejectReason.CLOCK_OFF if abs(off) > PAST_MS else RejectReason.NOT_FRESH,
            f"{abs(off) / 1000:.0f} s {'ahead of' if off > 0 else 'behind'} this machine's clock"
            f" (at most {PAST_MS // 1000} behind, {FUTURE_MS // 1000} ahead){unit}:"
            " the gateway answers with a challenge",
        )


def _say_envelope(envelope: Envelope) -> str:
    size = len(envelope.payload)
    return f"one signature of {len(envelope.signature)} bytes, a payload of {size} bytes"


def _same_type(envelope: Envelope, kind: str) -> None:
    if envelope.payload_type != kind:
        raise MessageError(
            RejectReason.MALFORMED_ENVELOPE, f"payloadType must be {kind} on this topic; it is another"
        )


def _read_own(payload: bytes) -> dict[str, str]:
    """What the payload says of its audience and topic, so that the rest can be read whether they hold or not."""
    own = {"aud": "", "topic": ""}
    try:
        document = parse_json(payload, MAX_MESSAGE_BYTES)
    except MessageError:
        return own
    if isinstance(document, dict):
        own |= {name: value for name in own if isinstance(value := document.get(name), str)}
    return own


def _decoded(hello: Hello) -> tuple[bytes, ...]:
    try:
        return decode_chain(hello)
    except MessageError:
        return ()


def _readable(chain: tuple[bytes, ...]) -> tuple[x509.Certificate, ...] | None:
    """What can be read of a chain that is at fault: all of it, or the first certificate."""
    for part in (chain, chain[:1]):
        try:
            return parse_chain(part) if part else None
        except VerificationError:
            continue
    return None


def _read_chain(hello: Hello) -> tuple[x509.Certificate, ...]:
    chain = parse_chain(decode_chain(hello))
    for number, (certificate, issuer) in enumerate(pairwise(chain), start=1):
        if certificate.issuer != issuer.subject:
            raise VerificationError(
                RejectReason.CHAIN_INVALID,
                f"certificate {number} of {len(chain)} was not issued by the next one: the order is the device's"
                " own first, then each one's issuer, without the registered CA",
            )
    return chain


def _say_chain(chain: tuple[x509.Certificate, ...]) -> str:
    return f"{len(chain)}, each issued by the next" if len(chain) > 1 else "one"


def _check_name(certificate: x509.Certificate, up: UpTopic) -> str:
    name = read_facts(certificate).common_name
    if name != up.name:
        raise VerificationError(
            RejectReason.WRONG_TOPIC, f"the certificate is {name!r}, the topic is {up.name!r}"
        )
    return name


def _check_key_id(envelope: Envelope, chain: tuple[x509.Certificate, ...], key: PublicKey) -> str:
    right = key_id_of(key)
    if envelope.key_id == right:
        return right
    mistake = name_key_id(envelope.key_id, chain, key)
    raise VerificationError(
        RejectReason.KEY_MISMATCH,
        f"keyid must be {right}, the SHA-256 of the key's DER SubjectPublicKeyInfo"
        f" ({len(spki_of(key))} bytes); it is {mistake or 'another'}",
    )


def _check_signature(
    envelope: Envelope, up: UpTopic, chain: tuple[x509.Certificate, ...], key: PublicKey
) -> None:
    right = replace(envelope, payload_type=payload_type(up.verb))
    try:
        verify_envelope(right, key)
    except VerificationError as error:
        mistake = find_mistake(right, chain)
        detail = mistake or f"{error.detail}, and none of the usual mistakes explains it"
        raise VerificationError(error.reason, detail) from None
