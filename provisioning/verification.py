"""Whether a registered CA vouches for a certificate, and which: the product is that of the nearest one.

Steps, each a rule: the nearest registered CA is found from the leaf upwards; it is active or retiring and in
its validity; the leaf is in its validity; the leaf is of the device profile; the path validates (RFC 5280
§6, by `cryptography`'s verifier with that one CA as its only anchor). `verify_chain` raises at the first
that fails; `explain_chain` lists them all. Revocation lists are not looked at.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
)
from cryptography.x509.verification import VerificationError as PathError

from provisioning.authorities import AuthorityState
from provisioning.certificates import PARSE_ERRORS, CertificateFacts, check_profile, read_facts
from provisioning.decision import Rule
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import AuthorityId, KeyId, ProductId, TopicName

MAX_INTERMEDIATES: Final = 2
_LEAF: Final = (
    ExtensionPolicy.webpki_defaults_ee()
    .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
)
_AUTHORITY: Final = ExtensionPolicy.webpki_defaults_ca()
_LEGACY_AUTHORITY: Final = ExtensionPolicy.webpki_defaults_ca().may_be_present(
    x509.KeyUsage, Criticality.AGNOSTIC, None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A registered CA as verification sees it."""

    authority_id: AuthorityId
    product_id: ProductId
    certificate: x509.Certificate
    key_id: KeyId
    state: AuthorityState
    legacy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedIdentity:
    """Proof that a registered CA vouches for a key. Made here and from what was proven here before."""

    key_id: KeyId
    spki: bytes
    topic_name: TopicName
    authority_id: AuthorityId
    product_id: ProductId
    certificate: CertificateFacts


class TrustAnchors:
    """Every proven CA, findable by subject; never changes."""

    def __init__(self, anchors: Iterable[Anchor]) -> None:
        self._by_subject: dict[bytes, list[Anchor]] = {}
        self._by_id: dict[AuthorityId, Anchor] = {}
        self._builders: dict[AuthorityId, PolicyBuilder] = {}
        for anchor in anchors:
            self._by_id[anchor.authority_id] = anchor
            self._by_subject.setdefault(anchor.certificate.subject.public_bytes(), []).append(anchor)

    def by_id(self, authority_id: AuthorityId) -> Anchor | None:
        """The CA of that number, if it is registered and proven."""
        return self._by_id.get(authority_id)

    def issuer_of(self, certificate: x509.Certificate) -> Anchor | None:
        """The registered CA that signed `certificate` itself, or None."""
        for anchor in self._by_subject.get(certificate.issuer.public_bytes(), ()):
            try:
                certificate.verify_directly_issued_by(anchor.certificate)
            except (InvalidSignature, TypeError, *PARSE_ERRORS):
                continue
            return anchor
        return None

    def policy_of(self, anchor: Anchor) -> PolicyBuilder:
        """The path policy with `anchor` as the only one trusted."""
        builder = self._builders.get(anchor.authority_id)
        if builder is None:
            authority = _LEGACY_AUTHORITY if anchor.legacy else _AUTHORITY
            builder = (
                PolicyBuilder()
                .store(Store([anchor.certificate]))
                .max_chain_depth(MAX_INTERMEDIATES)
                .extension_policies(ca_policy=authority, ee_policy=_LEAF)
            )
            self._builders[anchor.authority_id] = builder
        return builder


def verify_chain(
    chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime
) -> VerifiedIdentity:
    """Proves a chain.

    Args:
        chain: leaf first, as `certificates.parse_chain` returns it.
        anchors: every proven CA.
        now: aware UTC.

    Raises:
        VerificationError: CERTIFICATE_NAME, UNKNOWN_CA, CA_NOT_ACTIVE, CA_REVOKED, CA_EXPIRED,
            CERTIFICATE_EXPIRED, CERTIFICATE_NOT_YET_VALID, CERTIFICATE_PROFILE, CHAIN_INVALID.
    """
    identity: VerifiedIdentity | None = None
    for step in _steps(chain, anchors, now):
        if isinstance(step, VerifiedIdentity):
            identity = step
        elif step.passed is False:
            raise VerificationError(step.reason or RejectReason.CHAIN_INVALID, step.detail)
    assert identity is not None
    return identity


def explain_chain(
    chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime
) -> tuple[list[Rule], VerifiedIdentity | None]:
    """The same steps as a list of rules, and the identity where all of them pass."""
    rules: list[Rule] = []
    for step in _steps(chain, anchors, now):
        if isinstance(step, VerifiedIdentity):
            return rules, step
        rules.append(step)
        if step.passed is False:
            break
    return rules, None


def check_validity(certificate: CertificateFacts, anchor: Anchor, now: datetime) -> None:
    """The checks that are repeated on every message of a known key: state and validity of CA and certificate.

    Raises:
        VerificationError: as `verify_chain`.
    """
    for rule in _validity(certificate, anchor, now):
        if rule.passed is False:
            raise VerificationError(rule.reason or RejectReason.CHAIN_INVALID, rule.detail)


def _steps(
    chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime
) -> Iterator[Rule | VerifiedIdentity]:
    leaf = chain[0]
    try:
        facts = read_facts(leaf)
    except VerificationError as error:
        yield Rule(name="certificate_name", passed=False, detail=error.detail, reason=error.reason)
        return
    yield Rule(name="certificate_name", passed=True, detail=f"{facts.common_name} may be a topic name")
    found = next(
        (
            (place, anchor)
            for place, link in enumerate(chain)
            if (anchor := anchors.issuer_of(link)) is not None
        ),
        None,
    )
    if found is None:
        yield Rule(
            name="registered_ca",
            passed=False,
            detail=f"no registered CA signed the certificate of {facts.common_name!r}; "
            f"its issuer is {chain[-1].issuer.rfc4514_string()!r}",
            reason=RejectReason.UNKNOWN_CA,
        )
        return
    place, anchor = found
    yield Rule(name="registered_ca", passed=True, detail=f"signed by {_name_of(anchor.certificate)}")
    yield from _validity(facts, anchor, now)
    try:
        check_profile(leaf)
    except VerificationError as error:
        yield Rule(name="device_profile", passed=False, detail=error.detail, reason=error.reason)
        return
    yield Rule(name="device_profile", passed=True, detail="a client certificate of the device profile")
    try:
        anchors.policy_of(anchor).time(now).build_client_verifier().verify(leaf, list(chain[1 : place + 1]))
    except (PathError, *PARSE_ERRORS) as error:
        detail = f"the chain of {facts.common_name!r} does not validate: {str(error).splitlines()[0]}"
        yield Rule(name="path", passed=False, detail=detail, reason=RejectReason.CHAIN_INVALID)
        return
    yield Rule(name="path", passed=True, detail="validates up to the CA")
    yield VerifiedIdentity(
        key_id=facts.key_id,
        spki=facts.spki,
        topic_name=TopicName(facts.common_name),
        authority_id=anchor.authority_id,
        product_id=anchor.product_id,
        certificate=facts,
    )


def _validity(certificate: CertificateFacts, anchor: Anchor, now: datetime) -> Iterator[Rule]:
    name = _name_of(anchor.certificate)
    until = anchor.certificate.not_valid_after_utc
    state_reason = {
        AuthorityState.PENDING: RejectReason.CA_NOT_ACTIVE,
        AuthorityState.REVOKED: RejectReason.CA_REVOKED,
    }.get(anchor.state)
    checks = (
        ("ca_state", state_reason is None, state_reason, f"CA {name} is {anchor.state}",
         f"CA {name} is {anchor.state}", None),
        ("ca_valid", anchor.certificate.not_valid_before_utc <= now <= until, RejectReason.CA_EXPIRED,
         f"CA {name} is valid until {until.isoformat()}",
         f"CA {name} is outside its validity, which ends {until.isoformat()}; checked at {now.isoformat()}",
         until),
        ("certificate_begun", certificate.not_before <= now, RejectReason.CERTIFICATE_NOT_YET_VALID,
         f"valid from {certificate.not_before.isoformat()}",
         f"certificate of device {certificate.common_name!r} is not valid yet: valid from "
         f"{certificate.not_before.isoformat()}, checked at {now.isoformat()}", certificate.not_before),
        ("certificate_valid", now <= certificate.not_after, RejectReason.CERTIFICATE_EXPIRED,
         f"valid until {certificate.not_after.isoformat()}",
         f"certificate of device {certificate.common_name!r} expired: valid until "
         f"{certificate.not_after.isoformat()}, checked at {now.isoformat()}", certificate.not_after),
    )  # fmt: skip
    for rule, ok, reason, yes, no, changes_at in checks:
        if not ok:
            yield Rule(name=rule, passed=False, detail=no, reason=reason)
            return
        yield Rule(name=rule, passed=True, detail=yes, changes_at=changes_at)


@lru_cache(maxsize=256)
def _name_of(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string())
