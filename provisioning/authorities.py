"""Certificate authorities: what may be registered, how possession is proven, and a CA's life.

pending → active → retiring (no new devices) → revoked. A CA must be proven before it is activated: somebody
signed a certificate over our single-use code with its key.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from provisioning.certificates import (
    MAX_CERTIFICATE_BYTES,
    PARSE_ERRORS,
    check_authority_key,
    check_signature_algorithm,
)
from provisioning.errors import ConflictError, InvalidError, TransitionError, VerificationError
from provisioning.ids import Fingerprint, KeyId

CODE_LIFE: Final = timedelta(hours=24)
MIN_CODE_BYTES: Final = 16
"""128 bits: a code is guessed by nobody within its 24 hours."""


class AuthorityState(StrEnum):
    """A CA's place in its life."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRING = "retiring"
    REVOKED = "revoked"


_MOVES: Final = {
    AuthorityState.PENDING: {AuthorityState.ACTIVE, AuthorityState.REVOKED},
    AuthorityState.ACTIVE: {AuthorityState.RETIRING, AuthorityState.REVOKED},
    AuthorityState.RETIRING: {AuthorityState.ACTIVE, AuthorityState.REVOKED},
    AuthorityState.REVOKED: set[AuthorityState](),
}


def decide_transition(state: AuthorityState, to: AuthorityState, *, proven: bool) -> None:
    """Whether a CA may move from one state to another.

    Raises:
        TransitionError: its life has no such step, or it was never proven.
    """
    if to not in _MOVES[state]:
        raise TransitionError(f"a CA that is {state} cannot become {to}")
    if not proven:
        raise TransitionError(
            "possession of the CA's key is not proven yet: sign a certificate with CN = the code "
            "that registration printed, then `fleetgate ca prove`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityFacts:
    """A certificate that may be registered as a CA."""

    certificate: x509.Certificate
    der: bytes
    key_id: KeyId
    fingerprint: Fingerprint
    subject: str
    subject_sha256: str
    not_before: datetime
    not_after: datetime
    legacy: bool
    findings: tuple[str, ...]


def inspect_authority(pem: bytes, now: datetime) -> AuthorityFacts:
    """Reads a CA certificate for registration.

    Args:
        pem: one certificate.
        now: aware UTC.

    Raises:
        InvalidError: it is no CA's, expired, or of a kind that path validation can never accept; by name.
    """
    certificate = _load(pem, "the CA")
    try:
        check_authority_key(certificate, "the CA")
        check_signature_algorithm(certificate.signature_algorithm_oid, "the CA")
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except VerificationError as error:
        raise InvalidError(error.detail, field="certificate") from error
    except x509.ExtensionNotFound as error:
        raise InvalidError(
            "this is not a CA: it has no BasicConstraints (RFC 5280 §4.2.1.9)", field="certificate"
        ) from error
    except PARSE_ERRORS as error:
        raise InvalidError(f"the CA's extensions cannot be read: {error}", field="certificate") from error
    if not constraints.ca:
        raise InvalidError("this is not a CA: its BasicConstraints say CA:FALSE", field="certificate")
    if certificate.not_valid_after_utc <= now:
        raise InvalidError(
            f"the CA expired: valid until {certificate.not_valid_after_utc.isoformat()}", field="certificate"
        )
    findings: list[str] = []
    legacy = False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.key_cert_sign:
            raise InvalidError("the CA's KeyUsage lacks keyCertSign (RFC 5280 §4.2.1.3)", field="certificate")
    except x509.ExtensionNotFound:
        legacy = True
        findings.append("no KeyUsage: accepted as a legacy CA")
    if certificate.not_valid_after_utc - now < timedelta(days=90):
        findings.append(f"expires soon, on {certificate.not_valid_after_utc.date().isoformat()}")
    der = certificate.public_bytes(serialization.Encoding.DER)
    subject_der = certificate.subject.public_bytes()
    if not list(certificate.subject):
        raise InvalidError(
            "the CA has an empty subject; the broker could not tell it apart", field="certificate"
        )
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return AuthorityFacts(
        certificate=certificate,
        der=der,
        key_id=KeyId(hashlib.sha256(spki).hexdigest()),
        fingerprint=Fingerprint(hashlib.sha256(der).hexdigest()),
        subject=certificate.subject.rfc4514_string(),
        subject_sha256=hashlib.sha256(subject_der).hexdigest(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        legacy=legacy,
        findings=tuple(findings),
    )


def new_code(random_bytes: bytes) -> str:
    """The text of a proof code: fits a CN (at most 64 characters).

    Args:
        random_bytes: 16–32 bytes from the operating system.
    """
    assert MIN_CODE_BYTES <= len(random_bytes) <= 32
    return base64.b32encode(random_bytes).decode().rstrip("=").lower()


def verify_possession(proof_pem: bytes, authority_der: bytes, code: str, now: datetime) -> None:
    """Proves that whoever made `proof_pem` holds the CA's key: a certificate with CN = code, signed by it.

    Raises:
        InvalidError: wrong code, not signed by the CA, or outside its validity.
    """
    proof = _load(proof_pem, "the proof")
    authority = x509.load_der_x509_certificate(authority_der)
    names = proof.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or names[0].value != code:
        raise InvalidError(f"the proof's CN must be the code {code!r}", field="proof")
    if not proof.not_valid_before_utc <= now + timedelta(minutes=5) or proof.not_valid_after_utc <= now:
        raise InvalidError("the proof certificate is outside its validity", field="proof")
    if not _issued(authority, proof):
        raise InvalidError("the proof is not signed by this CA's key", field="proof")


def check_unrelated(candidate: x509.Certificate, others: Iterable[tuple[str, x509.Certificate]]) -> None:
    """Refuses a CA that signs, or is signed by, another product's CA: then the nearest one would be unclear.

    Args:
        candidate: about to be registered.
        others: (product name, certificate) of every CA of other products.

    Raises:
        ConflictError: naming the product.
    """
    for product, other in others:
        if _issued(other, candidate) or _issued(candidate, other):
            raise ConflictError(
                f"this CA signs or is signed by a CA of product {product!r}; give each product a CA of its own"
            )


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, *PARSE_ERRORS):
        return False
    return True


def _load(pem: bytes, what: str) -> x509.Certificate:
    if len(pem) > 4 * MAX_CERTIFICATE_BYTES:
        raise InvalidError(f"{what}'s file is too large: {len(pem)} bytes", field="certificate")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) != 1:
            raise InvalidError(
                f"{what}'s file must hold one certificate, got {len(certificates)}", field="certificate"
            )
        return certificates[0]
    except PARSE_ERRORS as error:
        raise InvalidError(f"{what}'s file is not a PEM certificate: {error}", field="certificate") from error
