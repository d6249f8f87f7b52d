"""The messages of protocol v1 as types: untrusted JSON in, frozen models out (docs/protocol.md, section 4).

What is read here is well formed and nothing more: who sent it is `verification`'s to say, whether it is
fresh is `freshness`'s, and what follows is `enrollment`'s and `sessions`'.
"""

import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from provisioning.envelope import Envelope, payload_type
from provisioning.errors import MessageError, RejectReason
from provisioning.ids import TopicName
from provisioning.strictjson import parse_json
from provisioning.topics import Up, UpTopic

VERSION: Final = 1
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_MAX_CHAIN_BASE64: Final = 11_000  # base64 of 8 KiB of DER

Hex16 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Nonce = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]
MediumText = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
AttributeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
AttributeValue = bool | int | float | ShortText


class _Wire(BaseModel):
    # Unknown members are ignored, so that a newer device can talk to an older gateway.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Hardware(_Wire):
    """What the device is built of."""

    model: ShortText
    revision: ShortText = ""  # where it says none


class Firmware(_Wire):
    """The running image: never the one that was just written."""

    version: ShortText
    bundle_seq: Annotated[int, Field(ge=0)] | None = None


class Previous(_Wire):
    """The old key's word for a new key: a signature over `envelope.previous_statement`."""

    keyid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, StringConstraints(min_length=4, max_length=2048)]


class LastUpdate(_Wire):
    """How the last offered update ended, repeated until it was answered."""

    offer_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    result: Literal["succeeded", "failed", "rolled_back", "rejected"]
    reason: MediumText = ""


class _Signed(_Wire):
    v: int
    aud: Annotated[str, StringConstraints(max_length=256)]
    topic: Annotated[str, StringConstraints(max_length=512)]
    conn: Hex16
    boot: Hex16
    seq: Annotated[int, Field(ge=0)]


class Hello(_Signed):
    """A device introduces itself; opens a session when accepted."""

    seq: Annotated[int, Field(ge=1)]
    nonce: Nonce
    hardware: Hardware
    firmware: Firmware
    stays: bool = True
    ts: Annotated[int, Field(ge=0)] | None = None
    challenge: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    chain: Annotated[
        list[Annotated[str, StringConstraints(max_length=_MAX_CHAIN_BASE64)]], Field(max_length=3)
    ] = Field(default_factory=list)
    time_zone: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] | None = None
    attributes: Annotated[dict[AttributeName, AttributeValue], Field(max_length=32)] = Field(
        default_factory=dict
    )
    last_update: LastUpdate | None = None
    previous: Previous | None = None

    @field_validator("chain")
    @classmethod
    def _not_empty_members(cls, chain: list[str]) -> list[str]:
        if any(not member for member in chain):
            raise ValueError("an empty certificate")
        return chain


class PresenceState(StrEnum):
    """What a device says of itself between hellos."""

    ONLINE = "online"
    OFFLINE = "offline"
    SLEEPING = "sleeping"
    REBOOTING = "rebooting"


class Presence(_Signed):
    """A heartbeat, a goodbye or, with `seq` 0, the will."""

    state: Annotated[PresenceState, Field(strict=False)]


class Progress(_Signed):
    """How an update goes. Read and verified from the first day; counted once there are offers."""

    seq: Annotated[int, Field(ge=1)]
    offer_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    state: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")]
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    reason: MediumText = ""
    detail: MediumText = ""
    defer_until: Annotated[int, Field(ge=0)] | None = None


Message = Hello | Presence | Progress


def parse_message(envelope: Envelope, topic: UpTopic, *, full_topic: str, audience: str) -> Message:
    """Reads an envelope's payload as the message its topic's verb promises.

    Args:
        envelope: parsed, not yet verified.
        topic: where it arrived, taken apart.
        full_topic: where it arrived, as the broker says it.
        audience: this gateway's name; a message for another gateway is refused.

    Raises:
        MessageError: MALFORMED_ENVELOPE (a type for another verb), MALFORMED_JSON, MALFORMED_MESSAGE,
            UNSUPPORTED_VERSION, WRONG_AUDIENCE, WRONG_TOPIC.
    """
    expected = payload_type(topic.verb)
    if envelope.payload_type != expected:
        raise MessageError(RejectReason.MALFORMED_ENVELOPE, f"payloadType must be {expected} on this topic")
    document = parse_json(envelope.payload)
    if not isinstance(document, dict):
        raise MessageError(RejectReason.MALFORMED_MESSAGE, "the payload must be a JSON object")
    if document.get("v") != VERSION or isinstance(document.get("v"), bool):
        raise MessageError(RejectReason.UNSUPPORTED_VERSION, f"v must be {VERSION}")
    model: type[Hello | Presence | Progress]
    match topic.verb:
        case Up.HELLO:
            model = Hello
        case Up.PRESENCE:
            model = Presence
        case Up.PROGRESS:
            model = Progress
        case _:
            assert_never(topic.verb)
    try:
        message = model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        place = ".".join(str(part) if isinstance(part, int) else _known(part) for part in first["loc"])
        detail = f"{place or 'payload'}: {first['type'].replace('_', ' ')}"
        raise MessageError(RejectReason.MALFORMED_MESSAGE, detail) from error
    if message.aud != audience:
        raise MessageError(RejectReason.WRONG_AUDIENCE, f"aud must be {audience!r}")
    if message.topic != full_topic:
        raise MessageError(RejectReason.WRONG_TOPIC, f"topic must be the one it came on, {full_topic!r}")
    return message


_FIELDS: Final = frozenset(
    name
    for model in (Hello, Presence, Progress, Hardware, Firmware, Previous, LastUpdate)
    for name in model.model_fields
)


def _known(part: str) -> str:
    """A field's name, or a stand-in: names that a stranger made up reach no log."""
    return part if part in _FIELDS else "member"


def decode_chain(hello: Hello) -> tuple[bytes, ...]:
    """The certificates that a hello carries, DER, leaf first; empty where it carries none.

    Raises:
        MessageError: MALFORMED_MESSAGE, a member is not base64.
    """
    try:
        return tuple([binascii.a2b_base64(member, strict_mode=True) for member in hello.chain])
    except ValueError as error:  # binascii.Error is one
        raise MessageError(RejectReason.MALFORMED_MESSAGE, "chain: a member is not base64") from error


class Result(StrEnum):
    """The kinds of reply."""

    WELCOME = "welcome"
    PENDING = "pending"
    CHALLENGE = "challenge"
    REJECTED = "rejected"
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a device is told. `for_nonce` is None where its hello could not be read."""

    topic_name: TopicName
    result: Result
    for_nonce: str | None
    reason: RejectReason | None = None
    retry_after_seconds: int | None = None
    challenge: str | None = None
    device_id: str | None = None
    identifier: str | None = None
    product: str | None = None
    cohort: str | None = None
    heartbeat_seconds: int | None = None
    offer: Mapping[str, object] | None = None

    def encode(self, now: datetime) -> bytes:
        """The reply as JSON, UTF-8, with `server_time` in milliseconds."""
        body: dict[str, object] = {
            "v": VERSION,
            "for": self.for_nonce,
            "result": self.result,
            "reason": self.reason,
            "retry_after_seconds": self.retry_after_seconds,
            "server_time": int(now.timestamp() * 1000),
        }
        if self.challenge is not None:
            body["challenge"] = self.challenge
        if self.device_id is not None:
            body["device"] = {"id": self.device_id, "identifier": self.identifier}
            body["product"] = self.product
        if self.cohort is not None:
            body["cohort"] = self.cohort
        if self.heartbeat_seconds is not None:
            body["heartbeat_seconds"] = self.heartbeat_seconds
        if self.offer is not None:
            body["offer"] = self.offer
        return _ENCODER.encode(body).encode()
