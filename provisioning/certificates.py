"""Certificates as strangers send them: taken apart, kept small, and turned into facts (protocol, section 5).

Decides whether DER bytes are certificates of the device profile: sizes, keys, algorithms and purposes that
path validation does not look at, or would let pass. Whether anybody vouches for them is decided in
`provisioning.verification`. The libraries parse lazily and raise late; all of that is caught here.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from provisioning.envelope import (
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    PublicKey,
    check_signing_key,
    is_short_exponent,
    spki_of,
)
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import Fingerprint, KeyId
from provisioning.topics import is_topic_name

MAX_CHAIN: Final = 3
"""The leaf and two intermediates; more do not fit beside a hello in 16 KiB of base64."""
MAX_CERTIFICATE_BYTES: Final = 8192
MAX_SERIAL_BITS: Final = 160
"""RFC 5280 §4.1.2.2: at most 20 octets; zero and negative numbers are refused there too."""
MAX_SUBJECT_ATTRIBUTES: Final = 16
MAX_ALTERNATIVE_NAMES: Final = 32

FIELDS: Final = ("cn", "serial_number", "o", "ou", "san_uri", "san_dns")
"""What cohort rules and identifier sources may name."""

PARSE_ERRORS: Final = (
    ValueError,
    TypeError,  # NameConstraints with an address where a network belongs
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises, at once or lazily, over certificates that are not as they should be."""

_SIGNATURE_ALGORITHMS: Final = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a device's certificate says, as plain values.

    Attributes:
        fingerprint: SHA-256 of the DER.
        key_id: SHA-256 of `spki`.
        spki: the public key, DER SubjectPublicKeyInfo.
        common_name: the one CN; it is a topic name.
        subject_serial_number: the subject's serialNumber attribute (not the certificate's number).
        san_uris: URIs of the subject alternative name, in order.
        san_dns: DNS names of the subject alternative name, in order.
        organization: the subject's first O.
        organizational_unit: the subject's first OU.
        serial_number: the certificate's number under its issuer.
        not_before: first instant of validity, UTC.
        not_after: last instant of validity, UTC.
        subject: the subject in RFC 4514 form.
        issuer: the issuer in RFC 4514 form.
    """

    fingerprint: Fingerprint
    key_id: KeyId
    spki: bytes
    common_name: str
    subject_serial_number: str | None
    san_uris: tuple[str, ...]
    san_dns: tuple[str, ...]
    organization: str | None
    organizational_unit: str | None
    serial_number: int
    not_before: datetime
    not_after: datetime
    subject: str
    issuer: str

    def field(self, name: str) -> str | None:
        """The value that a cohort rule or identifier source names, the first where there are several.

        Args:
            name: one of `FIELDS`; anything else has no value.
        """
        match name:
            case "cn":
                return self.common_name
            case "serial_number":
                return self.subject_serial_number
            case "o":
                return self.organization
            case "ou":
                return self.organizational_unit
            case "san_uri":
                return self.san_uris[0] if self.san_uris else None
            case "san_dns":
                return self.san_dns[0] if self.san_dns else None
            case _:
                return None


def parse_chain(ders: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Read a chain as a device sends it, and refuse at once what no CA's word could make acceptable.

    Everything that the library reads lazily has been read once when this returns, so that nothing raises
    later. It proves nothing.

    Args:
        ders: 1–3 certificates in DER, the device's own first, each the issuer of the one before.

    Raises:
        VerificationError: MALFORMED_CERTIFICATE where bytes are no certificate; KEY_NOT_ALLOWED for keys
            too weak or of an unsupported kind; CERTIFICATE_PROFILE for sizes, numbers and algorithms outside
            the profile.
    """
    if not 1 <= len(ders) <= MAX_CHAIN:
        _refuse(
            RejectReason.MALFORMED_CERTIFICATE, f"a chain has 1–{MAX_CHAIN} certificates, got {len(ders)}"
        )
    return tuple(_parse_certificate(der, index) for index, der in enumerate(ders))


def _parse_certificate(der: bytes, index: int) -> x509.Certificate:
    which = f"certificate {index} of the chain"
    if len(der) > MAX_CERTIFICATE_BYTES:
        _refuse(
            RejectReason.CERTIFICATE_PROFILE,
            f"{which} has {len(der)} bytes, at most {MAX_CERTIFICATE_BYTES} are read",
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        version = certificate.version
        serial = certificate.serial_number
        algorithm = certificate.signature_algorithm_oid
        subject = certificate.subject
        _ = certificate.issuer, certificate.not_valid_before_utc, certificate.not_valid_after_utc
        extensions = certificate.extensions
    except PARSE_ERRORS:
        # The library's text may quote the certificate, and nothing here is proven.
        _refuse(RejectReason.MALFORMED_CERTIFICATE, f"{which} is no X.509 certificate that can be read")
    if version is not x509.Version.v3:
        _refuse(RejectReason.CERTIFICATE_PROFILE, f"{which} is X.509 v1; v3 is needed")
    # With 160 bits its DER may be 21 octets; the library's own limit is the same.
    if not 0 < serial < 1 << MAX_SERIAL_BITS:
        _refuse(
            RejectReason.CERTIFICATE_PROFILE,
            f"{which} has a serial number outside 1–{MAX_SERIAL_BITS} bits (RFC 5280 §4.1.2.2)",
        )
    check_signature_algorithm(algorithm, which)
    attributes = sum(len(rdn) for rdn in subject.rdns)
    if attributes > MAX_SUBJECT_ATTRIBUTES:
        _refuse(
            RejectReason.CERTIFICATE_PROFILE,
            f"{which} has {attributes} subject attributes, at most {MAX_SUBJECT_ATTRIBUTES} are read",
        )
    for extension in extensions:
        # The exact type, here and below: asking isinstance of these abstract classes costs more than reading them.
        if type(extension.value) is x509.SubjectAlternativeName:
            names = len(list(extension.value))
            if names > MAX_ALTERNATIVE_NAMES:
                _refuse(
                    RejectReason.CERTIFICATE_PROFILE,
                    f"{which} has {names} alternative names, at most {MAX_ALTERNATIVE_NAMES} are read",
                )
    if index == 0:
        signing_key_of(certificate)
    else:
        check_authority_key(certificate, which)
    return certificate


def check_signature_algorithm(algorithm: x509.ObjectIdentifier, which: str) -> None:
    """Refuse certificates whose signature proves nothing here: SHA-1 and older, Ed25519 CAs, unknown ones.

    Args:
        algorithm: the certificate's signature algorithm.
        which: what to call the certificate in the message.

    Raises:
        VerificationError: CERTIFICATE_PROFILE.
    """
    if algorithm in _SIGNATURE_ALGORITHMS:
        return
    if algorithm == SignatureAlgorithmOID.ED25519:
        _refuse(
            RejectReason.CERTIFICATE_PROFILE,
            f"{which} is signed by an Ed25519 CA key; CAs need P-256, P-384, P-521 or RSA keys"
            " (a device's own key may be Ed25519)",
        )
    _refuse(
        RejectReason.CERTIFICATE_PROFILE,
        f"{which} is signed with algorithm {algorithm.dotted_string};"
        " ECDSA or RSA with SHA-256, SHA-384 or SHA-512 is needed (SHA-1 is not)",
    )


@lru_cache(maxsize=256)  # parsing a key costs a third of verifying with it, and one hello asks three times
def signing_key_of(certificate: x509.Certificate) -> PublicKey:
    """The key of a device's certificate, ready to verify its messages.

    Raises:
        VerificationError: KEY_NOT_ALLOWED, or MALFORMED_CERTIFICATE where the key cannot be read.
    """
    return check_signing_key(_public_key_of(certificate, "the device's certificate"))


def check_authority_key(certificate: x509.Certificate, which: str) -> None:
    """Refuse keys that cannot be a CA's: path validation knows P-256, P-384, P-521 and RSA from 2048 bits.

    Args:
        certificate: the CA's certificate.
        which: what to call it in the message.

    Raises:
        VerificationError: KEY_NOT_ALLOWED, or MALFORMED_CERTIFICATE where the key cannot be read.
    """
    match key := _public_key_of(certificate, which):
        case rsa.RSAPublicKey():
            if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS and is_short_exponent(key):
                return
            long = "" if is_short_exponent(key) else ", its exponent longer than 32"
            found = f"an RSA key of {key.key_size} bits{long}"
        case ec.EllipticCurvePublicKey():
            if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
                return
            found = f"a key on the curve {key.curve.name}"
        case ed25519.Ed25519PublicKey():
            found = "an Ed25519 key"
        case _:
            found = f"a key of kind {type(key).__name__}"
    _refuse(
        RejectReason.KEY_NOT_ALLOWED,
        f"{which} has {found}; a CA needs P-256, P-384, P-521 or RSA of {MIN_RSA_BITS}–{MAX_RSA_BITS} bits",
    )


def check_profile(certificate: x509.Certificate) -> None:
    """Refuse as a device what may not act as one: RFC 5280 §4.2.1.3 (KeyUsage), §4.2.1.9, §4.2.1.12 (EKU).

    The built-in policy for leaves demands extensions that factory certificates lack; once those rules are
    relaxed, the library checks nothing of this.

    Args:
        certificate: a leaf that `parse_chain` returned.

    Raises:
        VerificationError: CERTIFICATE_PROFILE, naming the extension.
    """
    for extension in certificate.extensions:
        value = extension.value
        if type(value) is x509.BasicConstraints:
            if value.ca:
                _refuse(RejectReason.CERTIFICATE_PROFILE, "the device's certificate is a CA's")
        elif type(value) is x509.KeyUsage:
            if value.key_cert_sign:
                _refuse(
                    RejectReason.CERTIFICATE_PROFILE,
                    "the device's certificate may sign certificates (KeyUsage keyCertSign)",
                )
            if not value.digital_signature:
                _refuse(
                    RejectReason.CERTIFICATE_PROFILE,
                    "the device's key may not sign: its KeyUsage lacks digitalSignature",
                )
        # anyExtendedKeyUsage is not enough for the broker's TLS library either.
        elif type(value) is x509.ExtendedKeyUsage and ExtendedKeyUsageOID.CLIENT_AUTH not in value:
            _refuse(
                RejectReason.CERTIFICATE_PROFILE,
                "the certificate is not for TLS clients: its ExtendedKeyUsage lacks clientAuth",
            )


def read_facts(certificate: x509.Certificate) -> CertificateFacts:
    """Read what a device's certificate says, as plain values.

    Args:
        certificate: a leaf that `parse_chain` returned.

    Raises:
        VerificationError: CERTIFICATE_NAME where there is not exactly one CN or it is no topic name;
            KEY_NOT_ALLOWED as in `signing_key_of`.
    """
    values: dict[x509.ObjectIdentifier, str] = {}
    names = 0
    subject = certificate.subject  # read anew at each question
    for rdn in subject.rdns:
        for attribute in rdn:
            names += attribute.oid == NameOID.COMMON_NAME
            if isinstance(attribute.value, str):
                values.setdefault(attribute.oid, attribute.value)
    if names != 1:
        # The broker takes the first of several CNs; another reader might take the last.
        _refuse(RejectReason.CERTIFICATE_NAME, f"the subject needs exactly one CN, got {names}")
    common_name = values.get(NameOID.COMMON_NAME, "")
    if not is_topic_name(common_name):
        _refuse(
            RejectReason.CERTIFICATE_NAME,
            f"the CN, of {len(common_name)} characters, is no topic name:"
            " 1–64 of A–Z a–z 0–9 . _ : - are needed",
        )
    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    for extension in certificate.extensions:
        if type(extension.value) is x509.SubjectAlternativeName:
            uris = tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
            dns = tuple(extension.value.get_values_for_type(x509.DNSName))
    spki = spki_of(signing_key_of(certificate))
    return CertificateFacts(
        fingerprint=fingerprint_of(certificate),
        key_id=KeyId(hashlib.sha256(spki).hexdigest()),
        spki=spki,
        common_name=common_name,
        subject_serial_number=values.get(NameOID.SERIAL_NUMBER),
        san_uris=uris,
        san_dns=dns,
        organization=values.get(NameOID.ORGANIZATION_NAME),
        organizational_unit=values.get(NameOID.ORGANIZATIONAL_UNIT_NAME),
        serial_number=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        subject=subject.rfc4514_string(),
        issuer=_issuer_string(certificate.issuer),
    )


def fingerprint_of(certificate: x509.Certificate) -> Fingerprint:
    """SHA-256 of the whole DER, in hex."""
    return Fingerprint(hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())


@lru_cache(maxsize=256)  # a fleet has few issuers, and writing one out takes 5 µs
def _issuer_string(name: x509.Name) -> str:
    return name.rfc4514_string()


def _public_key_of(certificate: x509.Certificate, which: str) -> object:
    try:
        return certificate.public_key()
    except UnsupportedAlgorithm:
        _refuse(RejectReason.KEY_NOT_ALLOWED, f"{which} has a key of an unknown kind")
    except ValueError:
        _refuse(RejectReason.MALFORMED_CERTIFICATE, f"{which} has a public key that cannot be read")


def _refuse(reason: RejectReason, detail: str) -> NoReturn:
    raise VerificationError(reason, detail) from None
