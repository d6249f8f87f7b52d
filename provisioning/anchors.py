"""Registered CAs as trust anchors, and what path validation demands of each (protocol, section 5).

One store for each CA, never one for all: a CA of another product with the same name must not stand in. An
anchor's policies and store are made once and kept, because the hot path cannot afford to make them anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store

from provisioning.authorities import AuthorityState
from provisioning.certificates import MAX_CHAIN
from provisioning.ids import AuthorityId, KeyId, ProductId


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A registered CA.

    Attributes:
        authority_id: the registration.
        product_id: the one product whose devices it vouches for.
        certificate: the CA's certificate; a root or an intermediate.
        key_id: SHA-256 of its SubjectPublicKeyInfo.
        state: as last read from the store.
        legacy: set at registration, where its extensions need the relaxed policy.
    """

    authority_id: AuthorityId
    product_id: ProductId
    certificate: x509.Certificate
    key_id: KeyId
    state: AuthorityState
    legacy: bool


class TrustAnchors:
    """All registered CAs, indexed; immutable, so one may serve many threads until the CAs change."""

    __slots__ = ("_builders", "_by_id", "_by_subject")

    def __init__(self, anchors: Iterable[Anchor]) -> None:
        """Index `anchors`; where subjects repeat, those in use are tried first."""
        self._by_id: dict[AuthorityId, Anchor] = {}
        self._by_subject: dict[x509.Name, tuple[Anchor, ...]] = {}
        self._builders: dict[AuthorityId, PolicyBuilder] = {}
        for anchor in sorted(anchors, key=_preference):
            subject = anchor.certificate.subject
            self._by_id[anchor.authority_id] = anchor
            self._by_subject[subject] = (*self._by_subject.get(subject, ()), anchor)
            self._builders[anchor.authority_id] = _policy_of(anchor)

    def __len__(self) -> int:
        return len(self._by_id)

    def by_id(self, authority_id: AuthorityId) -> Anchor | None:
        """The CA of that registration, or None."""
        return self._by_id.get(authority_id)

    def named(self, subject: x509.Name) -> tuple[Anchor, ...]:
        """The CAs of that subject, those in use first."""
        return self._by_subject.get(subject, ())

    def builder_of(self, anchor: Anchor) -> PolicyBuilder:
        """The path validation that trusts `anchor` alone, still without a time."""
        return self._builders[anchor.authority_id]


def _policy_of(anchor: Anchor) -> PolicyBuilder:
    return (
        PolicyBuilder()
        .store(Store([anchor.certificate]))
        .max_chain_depth(MAX_CHAIN - 1)
        .extension_policies(ca_policy=_LEGACY_AUTHORITY if anchor.legacy else _AUTHORITY, ee_policy=_LEAF)
    )


def _demand_cert_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("KeyUsage of a CA lacks keyCertSign")


_ANY: Final = Criticality.AGNOSTIC
_AUTHORITY: Final = ExtensionPolicy.webpki_defaults_ca()
# Registered with its shortcomings known (authorities.inspect_authority).
_LEGACY_AUTHORITY: Final = _AUTHORITY.may_be_present(x509.KeyUsage, _ANY, _demand_cert_sign)
# What is relaxed here is demanded, where present, by certificates.check_profile, which every chain passes.
_LEAF: Final = (
    ExtensionPolicy.webpki_defaults_ee()
    .may_be_present(x509.SubjectAlternativeName, _ANY, None)
    .may_be_present(x509.AuthorityKeyIdentifier, _ANY, None)
    .may_be_present(x509.KeyUsage, _ANY, None)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, None)
)


def _preference(anchor: Anchor) -> tuple[int, int]:
    order = (AuthorityState.ACTIVE, AuthorityState.RETIRING, AuthorityState.REVOKED, AuthorityState.PENDING)
    return order.index(anchor.state), anchor.authority_id
