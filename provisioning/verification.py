"""Chain verification: from a device's certificates to the product that vouches for it (protocol, section 5).

Decides which registered CA stands behind a chain and whether it, the chain and the device's certificate hold
at a given time. The product is that of the registered CA nearest the leaf, never what the device says. Path
validation proper (RFC 5280 §6) is the library's, with exactly one trust anchor; the checks here give exact
reasons, and cover what the library lets pass. Blocked keys, and whether the device may enroll, are decided
elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509

from provisioning.anchors import Anchor, TrustAnchors
from provisioning.authorities import AuthorityState
from provisioning.certificates import CertificateFacts
from provisioning.chain_steps import (
    STEPS,
    Case,
    check_authority_time,
    check_certificate_time,
    check_state,
    refuse,
    time,
)
from provisioning.decision import Rule
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import AuthorityId, Fingerprint, KeyId, ProductId, TopicName

__all__ = [
    "Anchor",
    "EndedIdentityError",
    "TrustAnchors",
    "VerifiedIdentity",
    "check_sender",
    "check_validity",
    "explain_chain",
    "verify_chain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedIdentity:
    """Proof that a chain was verified: only this module makes one.

    Attributes:
        key_id: SHA-256 of `spki`.
        spki: the device's public key, DER.
        topic_name: its CN.
        authority_id: the registered CA nearest the leaf.
        product_id: that CA's product.
        fingerprint: SHA-256 of the device's certificate.
        valid_from: the first instant of its validity.
        valid_until: the earliest end among the device's certificate and the intermediates above it.
        read_certificate: gives what the device's certificate says; for a known key few decisions ask, and
            reading it costs as much as verifying a signature.
    """

    key_id: KeyId
    spki: bytes
    topic_name: TopicName
    authority_id: AuthorityId
    product_id: ProductId
    fingerprint: Fingerprint
    valid_from: datetime
    valid_until: datetime
    read_certificate: Callable[[], CertificateFacts] = field(compare=False, repr=False)

    @property
    def certificate(self) -> CertificateFacts:
        """What the device's certificate says."""
        return self.read_certificate()


class EndedIdentityError(VerificationError):
    """A chain that a proven CA did sign, but that time or an operator has ended: genuine, and refused.

    `identity` may be shown to operators once the message's own signature is verified with its key.
    """

    def __init__(self, reason: RejectReason, detail: str, identity: VerifiedIdentity) -> None:
        super().__init__(reason, detail)
        self.identity = identity


def verify_chain(
    chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime
) -> VerifiedIdentity:
    """Prove whose device a chain belongs to.

    Args:
        chain: as `certificates.parse_chain` returned it.
        anchors: every registered CA, in every state: a revoked one must be found to be named.
        now: the time of the check, aware.

    Raises:
        EndedIdentityError: CA_REVOKED, CA_EXPIRED, CERTIFICATE_NOT_YET_VALID, CERTIFICATE_EXPIRED.
        VerificationError: CERTIFICATE_NAME, UNKNOWN_CA, CHAIN_INVALID, CA_NOT_ACTIVE, CERTIFICATE_PROFILE,
            KEY_NOT_ALLOWED.
    """
    case = Case(chain, anchors, now)
    for step in STEPS:
        try:
            step.check(case)
        except VerificationError as error:
            if error.reason in _ENDED and case.found().state is not AuthorityState.PENDING:
                raise EndedIdentityError(error.reason, error.detail, _identity(case)) from None
            raise
    return _identity(case)


def explain_chain(chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime) -> list[Rule]:
    """The steps of `verify_chain`, each with its outcome; it raises nothing and changes nothing.

    Args:
        chain: as `certificates.parse_chain` returned it.
        anchors: every registered CA, in every state.
        now: the time of the check, aware.
    """
    case = Case(chain, anchors, now)
    rules: list[Rule] = []
    failed = False
    for step in STEPS:
        if failed:
            rules.append(Rule(name=step.name, passed=None, detail="not reached"))
            continue
        try:
            step.check(case)
        except VerificationError as error:
            failed = True
            rules.append(
                Rule(
                    name=step.name,
                    passed=False,
                    detail=error.detail,
                    changes_at=_valid_from(case, error.reason),
                    reason=error.reason,
                )
            )
        else:
            detail, changes_at = step.describe(case)
            rules.append(Rule(name=step.name, passed=True, detail=detail, changes_at=changes_at))
    return rules


def check_sender(identity: VerifiedIdentity, key_id: KeyId, topic_name: TopicName) -> None:
    """Whether the certificate is that of the key which is said to have signed, and of the topic it came on.

    Args:
        key_id: as the envelope names it.
        topic_name: as the broker's ACL proved it.

    Raises:
        VerificationError: KEY_MISMATCH, WRONG_TOPIC.
    """
    if identity.key_id != key_id:
        refuse(RejectReason.KEY_MISMATCH, f"keyid is not that of the certificate, {identity.key_id}")
    if identity.topic_name != topic_name:
        refuse(
            RejectReason.WRONG_TOPIC,
            f"the certificate is {identity.topic_name!r}, the topic is {topic_name!r}",
        )


def check_validity(identity: VerifiedIdentity, anchor: Anchor, now: datetime) -> None:
    """The checks that time and operators can change, repeated on every message of a known key.

    Args:
        identity: as remembered from when its chain was verified.
        anchor: the CA that it was verified by, as it stands now.
        now: the time of the check, aware.

    Raises:
        EndedIdentityError: CA_REVOKED, CA_EXPIRED, CERTIFICATE_NOT_YET_VALID, CERTIFICATE_EXPIRED.
        VerificationError: CA_NOT_ACTIVE.
    """
    try:
        check_state(anchor)
        check_authority_time(anchor.certificate, now)
        if identity.valid_from <= now <= identity.valid_until:
            return
        check_certificate_time(identity.certificate, now)
        if now > identity.valid_until:
            refuse(
                RejectReason.CA_EXPIRED,
                f"an intermediate above certificate of device '{identity.certificate.common_name}' expired:"
                f" valid until {time(identity.valid_until)}, checked at {time(now)}",
            )
    except VerificationError as error:
        if error.reason in _ENDED:
            raise EndedIdentityError(error.reason, error.detail, identity) from None
        raise


_ENDED: Final = frozenset(
    {
        RejectReason.CA_REVOKED,
        RejectReason.CA_EXPIRED,
        RejectReason.CERTIFICATE_EXPIRED,
        RejectReason.CERTIFICATE_NOT_YET_VALID,
    }
)
"""Found only after the signatures of the chain were checked, so what they refuse is genuine."""


def _identity(case: Case) -> VerifiedIdentity:
    facts, anchor = case.facts, case.found()
    assert facts is not None
    return VerifiedIdentity(
        key_id=facts.key_id,
        spki=facts.spki,
        topic_name=TopicName(facts.common_name),
        authority_id=anchor.authority_id,
        product_id=anchor.product_id,
        fingerprint=facts.fingerprint,
        valid_from=facts.not_before,
        read_certificate=lambda: facts,
        valid_until=min(issued.not_valid_after_utc for issued in case.chain[: case.depth + 1]),
    )


def _valid_from(case: Case, reason: RejectReason) -> datetime | None:
    if reason is RejectReason.CERTIFICATE_NOT_YET_VALID:
        return case.chain[0].not_valid_before_utc
    return None
