"""CAs of products: which may be registered, how possession is proven, which states they go through.

Decides from certificates and codes alone; that a key belongs to one product, and that a code is used once and
within its time, is held by the store.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NoReturn, assert_never

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.certificates import (
    MAX_CERTIFICATE_BYTES,
    PARSE_ERRORS,
    check_authority_key,
    check_signature_algorithm,
    fingerprint_of,
)
from provisioning.errors import ConflictError, InvalidError, TransitionError, VerificationError
from provisioning.ids import Fingerprint, KeyId

MIN_CODE_BYTES: Final = 16
"""128 bits: a code that cannot be guessed within its 24 hours, or ever."""
MAX_CODE_BYTES: Final = 32
"""In hex it has to fit in a CN: 64 characters (RFC 5280, ub-common-name)."""
MAX_PEM_BYTES: Final = 32_768
SOON: Final = timedelta(days=90)
"""A quarter: long enough to register a successor and renew what devices can renew."""

_PEM_BEGIN: Final = b"-----BEGIN "


class AuthorityState(StrEnum):
    """A CA's life at its product. That possession was proven is a time beside it, not a state."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRING = "retiring"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityFacts:
    """A CA certificate that may be registered.

    Attributes:
        certificate: as parsed.
        der: as given, DER.
        key_id: SHA-256 of the public key's SubjectPublicKeyInfo.
        fingerprint: SHA-256 of the DER.
        subject: in RFC 4514 form.
        subject_der_sha256: SHA-256 of the subject's DER, hex; the broker finds only one CA per subject.
        not_before: first instant of validity, UTC.
        not_after: last instant of validity, UTC.
        legacy: its extensions fall short of RFC 5280, and a relaxed policy is needed for it.
        findings: what an operator should know, in sentences.
    """

    certificate: x509.Certificate
    der: bytes
    key_id: KeyId
    fingerprint: Fingerprint
    subject: str
    subject_der_sha256: str
    not_before: datetime
    not_after: datetime
    legacy: bool
    findings: tuple[str, ...]


def decide_transition(state: AuthorityState, to: AuthorityState, proven: bool) -> None:
    """Whether a CA may go from `state` to `to`.

    Args:
        state: where it is.
        to: where an operator wants it.
        proven: possession of its key has been proven. Without that a CA must not reach any state in which
            its name is looked at: anybody can register a certificate that is public.

    Raises:
        TransitionError: with what to do instead.
    """
    match state:
        case AuthorityState.PENDING:
            if to in (AuthorityState.ACTIVE, AuthorityState.REVOKED):
                if not proven:
                    raise TransitionError(
                        f"a CA must be proven before it becomes {to}: have its key sign a certificate with"
                        " CN = code; until then it is trusted nowhere"
                    )
                return
        case AuthorityState.ACTIVE:
            if to in (AuthorityState.RETIRING, AuthorityState.REVOKED):
                return
        case AuthorityState.RETIRING:
            if to in (AuthorityState.ACTIVE, AuthorityState.REVOKED):
                return
        case AuthorityState.REVOKED:
            pass
        case _:
            assert_never(state)
    raise TransitionError(
        f"a CA that is {state} cannot become {to}; it goes pending → active → retiring → revoked"
    )


def inspect_authority(pem: bytes, *, now: datetime | None = None) -> AuthorityFacts:
    """Read a CA certificate for registration, and refuse by name what path validation could never use.

    Args:
        pem: exactly one certificate in PEM.
        now: where given, an expired CA is refused too; aware.

    Raises:
        InvalidError: with what was found and what is needed.
    """
    certificate = _load_pem(pem, "the CA file")
    der = certificate.public_bytes(serialization.Encoding.DER)
    try:
        if certificate.version is not x509.Version.v3:
            _refuse("the CA's certificate is X.509 v1; v3 with BasicConstraints is needed")
        subject = certificate.subject
        subject_text = subject.rfc4514_string()
        issuer, subject_der = certificate.issuer, subject.public_bytes()  # parsed only now, and may raise
        extensions = list(certificate.extensions)
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        check_authority_key(certificate, "the CA's certificate")
        check_signature_algorithm(certificate.signature_algorithm_oid, "the CA's certificate")
        spki = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except PARSE_ERRORS:
        _refuse("the CA's certificate has parts that cannot be read")
    except VerificationError as error:
        _refuse(error.detail)
    if not subject.rdns:
        _refuse("the CA's certificate has an empty subject, and devices' certificates find their CA by it")
    if now is not None and now > not_after:
        _refuse(f"the CA expired: valid until {_time(not_after)}, checked at {_time(now)}")
    findings = _lint(extensions)
    legacy = bool(findings)
    if now is not None and not_after - now < SOON:
        findings.append(f"expires soon: valid until {_time(not_after)}")
    if now is not None and now < not_before:
        findings.append(f"not valid yet: from {_time(not_before)}, checked at {_time(now)}")
    if issuer != subject:
        findings.append("an intermediate: the products of its own issuer are not affected by it")
    return AuthorityFacts(
        certificate=certificate,
        der=der,
        key_id=KeyId(hashlib.sha256(spki).hexdigest()),
        fingerprint=fingerprint_of(certificate),
        subject=subject_text,
        subject_der_sha256=hashlib.sha256(subject_der).hexdigest(),
        not_before=not_before,
        not_after=not_after,
        legacy=legacy,
        findings=tuple(findings),
    )


def new_code(random_bytes: bytes) -> str:
    """The code that a certificate must carry as its CN to prove possession of a CA's key.

    Args:
        random_bytes: 16–32 bytes from a cryptographic source.

    Raises:
        InvalidError: on any other length.
    """
    if not MIN_CODE_BYTES <= len(random_bytes) <= MAX_CODE_BYTES:
        _refuse(f"a code is made of {MIN_CODE_BYTES}–{MAX_CODE_BYTES} random bytes, got {len(random_bytes)}")
    return random_bytes.hex()


def verify_possession(proof_pem: bytes, authority_der: bytes, code: str, now: datetime) -> None:
    """Prove that whoever made `proof_pem` holds the CA's private key.

    A direct check of name and signature is enough: the certificate is used for nothing else, so it may be
    X.509 v1, as `openssl x509 -req` makes it.

    Args:
        proof_pem: one certificate in PEM with CN = `code`, signed by the CA's key.
        authority_der: the CA's certificate, DER.
        code: the code that was handed out for this CA.
        now: the time of the check, aware.

    Raises:
        InvalidError: with what does not fit.
    """
    proof = _load_pem(proof_pem, "the proof")
    try:
        authority = x509.load_der_x509_certificate(authority_der)
        names = [str(name.value) for name in proof.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        not_after = proof.not_valid_after_utc
        _ = proof.issuer  # parsed only now, and may raise; `is_issued_by` needs it
    except PARSE_ERRORS:
        _refuse("the proof has parts that cannot be read", "proof")
    if len(names) != 1 or not hmac.compare_digest(names[0].encode(), code.encode()):
        _refuse(
            "the proof's CN is not the code of this CA; the code is used once, and may have been replaced",
            "proof",
        )
    if now > not_after:
        _refuse(f"the proof expired: valid until {_time(not_after)}, checked at {_time(now)}", "proof")
    if not is_issued_by(proof, authority):
        _refuse(
            "the proof is not signed by this CA's key (name and signature must both be the CA's)", "proof"
        )


def check_unrelated(certificate: x509.Certificate, others: Iterable[tuple[str, x509.Certificate]]) -> None:
    """Refuse a CA that signs, or is signed by, a CA of another product: its devices would belong to both.

    Args:
        certificate: the CA to be registered.
        others: each other product's name with one of its CAs.

    Raises:
        ConflictError: naming the other product.
    """
    for product, other in others:
        if certificate.public_key() == other.public_key():
            raise ConflictError(f"the CA has the same key as a CA of product '{product}'")
        if is_issued_by(certificate, other):
            raise ConflictError(
                f"the CA is signed by a CA of product '{product}'; register the issuing CA or the issued one,"
                " not both in different products"
            )
        if is_issued_by(other, certificate):
            raise ConflictError(
                f"the CA has signed a CA of product '{product}'; register the issuing CA or the issued one,"
                " not both in different products"
            )


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `certificate` names `issuer` and its key signed it; validity and purposes are not looked at."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _lint(extensions: list[x509.Extension[x509.ExtensionType]]) -> list[str]:
    """What makes a CA unusable raises; what needs the relaxed policy is returned."""
    by_type: dict[type, x509.Extension[x509.ExtensionType]] = {type(e.value): e for e in extensions}
    constraints = by_type.get(x509.BasicConstraints)
    if (
        constraints is None
        or not isinstance(constraints.value, x509.BasicConstraints)
        or not constraints.value.ca
    ):
        _refuse("not a CA: its certificate lacks BasicConstraints with cA (RFC 5280 §4.2.1.9)")
    if not constraints.critical:
        _refuse("the CA's BasicConstraints is not critical, and path validation demands that it is")
    findings: list[str] = []
    usage = by_type.get(x509.KeyUsage)
    if usage is None:
        findings.append("no KeyUsage, as plain `openssl req -x509` makes it: checked by the relaxed policy")
    elif isinstance(usage.value, x509.KeyUsage) and not usage.value.key_cert_sign:
        _refuse("the CA may not sign certificates: its KeyUsage lacks keyCertSign (RFC 5280 §4.2.1.3)")
    identifier = by_type.get(x509.SubjectKeyIdentifier)
    if identifier is not None and identifier.critical:
        _refuse("the CA's SubjectKeyIdentifier is critical, which RFC 5280 §4.2.1.2 forbids")
    purposes = by_type.get(x509.ExtendedKeyUsage)
    if purposes is not None and isinstance(purposes.value, x509.ExtendedKeyUsage):
        allowed = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        if not allowed.intersection(purposes.value):
            _refuse("the CA may not issue for TLS clients: its ExtendedKeyUsage lacks clientAuth")
        if purposes.critical:
            _refuse("the CA's ExtendedKeyUsage is critical, which path validation does not accept in a CA")
    names = by_type.get(x509.NameConstraints)
    if names is not None and isinstance(names.value, x509.NameConstraints):
        trees = [*(names.value.permitted_subtrees or ()), *(names.value.excluded_subtrees or ())]
        if any(isinstance(tree, x509.DirectoryName) for tree in trees):
            _refuse(
                "the CA constrains directory names (NameConstraints), which path validation does not support"
            )
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN_CRITICAL):
            _refuse(
                f"the CA has the critical extension {extension.oid.dotted_string}, which path validation"
                " does not know"
            )
    return findings


_KNOWN_CRITICAL: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.NameConstraints,
    x509.SubjectAlternativeName,
    x509.SubjectKeyIdentifier,
)


def _load_pem(pem: bytes, what: str) -> x509.Certificate:
    if len(pem) > MAX_PEM_BYTES:
        _refuse(f"{what} has {len(pem)} bytes, at most {MAX_PEM_BYTES} are read")
    if b"PRIVATE KEY-----" in pem:
        _refuse(f"{what} holds a private key; it must never leave its place: send the certificate alone")
    if pem.count(_PEM_BEGIN) != 1:
        _refuse(f"{what} must hold exactly one certificate in PEM, got {pem.count(_PEM_BEGIN)} blocks")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except PARSE_ERRORS:
        _refuse(f"{what} holds no X.509 certificate that can be read")
    if len(certificate.public_bytes(serialization.Encoding.DER)) > MAX_CERTIFICATE_BYTES:
        _refuse(f"{what} is larger than {MAX_CERTIFICATE_BYTES} bytes of DER")
    return certificate


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse(detail: str, field: str = "certificate") -> NoReturn:
    raise InvalidError(detail, field=field) from None
