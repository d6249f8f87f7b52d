"""An offer as a careful device sees it: read, verified against pinned keys, and refused with a word (protocol 14).

Pure: what is trusted, what runs and what was ever installed are arguments. `slots` keeps them for the agent,
`simulated` in memory for the fleet.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from provisioning.bundles import REFUSAL_WORDS, BundleStatement, check_update, verify_statement
from provisioning.decision import first_failed
from provisioning.errors import FleetgateError, MessageError, RejectReason, VerificationError
from provisioning.ids import KeyId


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedArtifact:
    """Where an artifact is, and what it must be."""

    name: str
    url: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An offer as sent; nothing in it is proven but what `statement` says once it is verified."""

    offer_id: str
    revision: int
    cancelled: bool = False
    version: str = ""
    statement: bytes = b""
    artifacts: tuple[OfferedArtifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a device was made with, and what it has become.

    Attributes:
        keys: SPKI by id of the keys that may sign its firmware; pinned, they never come from the gateway.
        product: the product that the welcome named.
        running_seq, highest_seq: of the running image, and of the newest that ever ran here.
    """

    keys: Mapping[KeyId, bytes]
    product: str
    hardware_model: str
    hardware_revision: str
    running_seq: int
    highest_seq: int


class RefusedOfferError(FleetgateError):
    """An offer that the device does not take; `reason` is what it reports."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def parse_offer(document: object) -> Offer | None:
    """Takes an offer apart; None where it is none.

    Args:
        document: from `strictjson.parse_json`, or from the device's own state.
    """
    if not isinstance(document, dict):
        return None
    try:
        return Offer(
            offer_id=_text(document["offer_id"]),
            revision=_integer(document["revision"]),
            cancelled=document.get("cancelled", False) is True,
            version=_text(document.get("version", "")),
            statement=json.dumps(document.get("statement", {})).encode(),
            artifacts=tuple(_artifact(one) for one in document.get("artifacts", ())),
        )
    except (KeyError, TypeError):
        return None


class Heard(StrEnum):
    """What an offer is to a device that has heard others before."""

    IGNORE = "ignore"
    SAME = "same"
    CANCEL = "cancel"
    TAKE = "take"


def place_offer(
    offer: Offer, *, welcomed: bool, highest_revision: int, open_offer: str | None, installing: bool
) -> tuple[Heard, int]:
    """What an offer is to this device, and the highest revision that it keeps from now on.

    SAME is the open offer with fresh addresses. TAKE says that it is this device's turn to prove it (`check_offer`).

    Args:
        welcomed: whether this life of the device was welcomed: only then it knows its product.
        highest_revision: that it has seen, 0 for none.
        open_offer: the id of the one that is under way, if any.
        installing: whether that one can no longer be called off.
    """
    if not welcomed or offer.revision < highest_revision:
        return Heard.IGNORE, highest_revision
    same = offer.offer_id == open_offer
    if offer.cancelled:
        heard = Heard.CANCEL if same and not installing else Heard.IGNORE
    elif same and offer.revision == highest_revision:
        heard = Heard.SAME
    else:
        heard = Heard.IGNORE if installing else Heard.TAKE
    return heard, offer.revision


def check_offer(offer: Offer, trust: Trust) -> BundleStatement:
    """Proves an offer's statement, and that the device may install it; its artifacts must be the statement's.

    Raises:
        RefusedOfferError: with the word to report.
    """
    try:
        statement = verify_statement(offer.statement, trust.keys, product=trust.product)
    except (MessageError, VerificationError) as error:
        word = (
            REFUSAL_WORDS["product"] if error.reason is RejectReason.BUNDLE_PRODUCT else "statement_invalid"
        )
        raise RefusedOfferError(word, error.detail) from error
    rule = first_failed(
        check_update(
            statement,
            product=trust.product,
            model=trust.hardware_model,
            revision=trust.hardware_revision,
            highest_seq=trust.highest_seq,
            running_seq=trust.running_seq,
        )
    )
    if rule is not None:
        raise RefusedOfferError(REFUSAL_WORDS[rule.name], rule.detail)
    offered = {(one.name, one.size, one.sha256) for one in offer.artifacts}
    signed = {(one.name, one.size, one.sha256) for one in statement.artifacts}
    if offered != signed:
        raise RefusedOfferError("statement_invalid", "the artifacts are not those of the signed statement")
    return statement


def _artifact(document: Any) -> OfferedArtifact:
    return OfferedArtifact(
        name=_text(document["name"]),
        url=_text(document["url"]),
        size=_integer(document["size"]),
        sha256=_text(document["sha256"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no string")
    return value


def _integer(value: object) -> int:
    """A number of 1 or more. A float is none, whatever its value: infinity has no integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError("no integer of 1 or more")
    return value
