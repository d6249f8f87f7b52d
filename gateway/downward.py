"""What the gateway sends to devices, as types (protocol, sections 7 and 14).

For describing it and for tests: what is really sent is rendered by `provisioning.messages.Reply` and
`provisioning.offers.render_offer`, and a test holds these models to that. A device's own reader ignores members that
it does not know; these refuse them, so that none goes out undescribed.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from provisioning.messages import Nonce
from provisioning.statements import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, FileName, Sha256

Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
OfferId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class SignedEnvelope(_Sent):
    """A DSSE envelope with exactly one signature, as it stands within an offer."""

    payloadType: Literal["application/vnd.fleetgate.bundle.v1+json"]  # noqa: N815  (DSSE's own name)
    payload: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
    signatures: Annotated[list["EnvelopeSignature"], Field(min_length=1, max_length=1)]


class EnvelopeSignature(_Sent):
    """Whose signature, and the signature."""

    keyid: Sha256
    sig: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class OfferedFile(_Sent):
    """An artifact of the statement, and where to get it."""

    name: FileName
    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    size: Annotated[int, Field(ge=1, le=MAX_ARTIFACT_BYTES)]
    sha256: Sha256


class Offer(_Sent):
    """The firmware that a device is to run; what counts in it is the signed statement."""

    v: Literal[1]
    offer_id: OfferId
    revision: Annotated[int, Field(ge=1)]
    version: ShortText
    bundle_seq: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    statement: SignedEnvelope
    artifacts: Annotated[list[OfferedFile], Field(min_length=1, max_length=MAX_ARTIFACTS)]
    deadline: Annotated[int, Field(ge=0)]


class Cancellation(_Sent):
    """An offer that is taken back."""

    v: Literal[1]
    offer_id: OfferId
    revision: Annotated[int, Field(ge=1)]
    cancelled: Literal[True]
    reason: Word


class _Reply(_Sent):
    v: Literal[1]
    for_: Annotated[Nonce | None, Field(alias="for")]
    reason: Word | None
    retry_after_seconds: Annotated[int, Field(ge=0)] | None
    server_time: Annotated[int, Field(ge=0)]


class WelcomedDevice(_Sent):
    """Who the device is here."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9]+$")]
    identifier: Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Welcome(_Reply):
    """Known and registered; the session is open."""

    result: Literal["welcome"]
    device: WelcomedDevice
    product: ShortText
    cohort: ShortText | None = None  # absent where there is none
    heartbeat_seconds: Annotated[int, Field(ge=1)]
    offer: Offer | None = None


class Challenge(_Reply):
    """Fresh proof is needed, or the chain."""

    result: Literal["challenge"]
    challenge: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Refusal(_Reply):
    """Not now (`busy`), not yet (`pending`), or not for the reason given (`rejected`)."""

    result: Literal["pending", "rejected", "busy"]
