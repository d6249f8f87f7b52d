"""Certificates with fixed keys, numbers, dates and signatures (protocol, section 5)."""

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from making.keys import PrivateKey, elliptic

BEGIN, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2034, 12, 31, tzinfo=UTC)


def name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A name of these attributes, in order."""
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def cn(text: str) -> x509.Name:
    """A name that is one CN."""
    return name((NameOID.COMMON_NAME, text))


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA and its key."""

    key: PrivateKey
    certificate: x509.Certificate


def der(certificate: x509.Certificate) -> bytes:
    """The certificate's bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def finish(
    builder: x509.CertificateBuilder, key: PrivateKey, algorithm: hashes.HashAlgorithm | None
) -> x509.Certificate:
    """Signs, and deterministically."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return builder.sign(key, algorithm or hashes.SHA256(), ecdsa_deterministic=True)
    return builder.sign(key, algorithm or hashes.SHA256())


def authority(
    label: str,
    *,
    issuer: Authority | None = None,
    serial: int = 1,
    key: PrivateKey | None = None,
    begin: datetime = BEGIN,
    end: datetime = END,
    path_length: int | None = None,
    ca: bool = True,
) -> Authority:
    """A root, or an intermediate where there is an `issuer`; its key is that of its name."""
    own = key or elliptic(ec.SECP256R1(), label)
    builder = (
        x509.CertificateBuilder()
        .subject_name(cn(label))
        .issuer_name(issuer.certificate.subject if issuer else cn(label))
        .public_key(own.public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(usage(sign_certificates=True, digital_signature=False), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    signer = issuer.key if issuer else own
    return Authority(key=own, certificate=finish(builder, signer, None))


def leaf(
    subject: x509.Name | str,
    key: PrivateKey,
    issuer: Authority,
    *,
    serial: int = 1000,
    begin: datetime = BEGIN,
    end: datetime = END,
    ca: bool = False,
    key_cert_sign: bool = False,
    digital_signature: bool = True,
    purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    bare: bool = False,
    signer: PrivateKey | None = None,
) -> x509.Certificate:
    """A device's certificate; `bare`: without key usage and extended key usage."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(cn(subject) if isinstance(subject, str) else subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    )
    if not bare:
        builder = builder.add_extension(
            usage(sign_certificates=key_cert_sign, digital_signature=digital_signature), critical=True
        ).add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return finish(builder, signer or issuer.key, None)


def usage(*, sign_certificates: bool, digital_signature: bool) -> x509.KeyUsage:
    """RFC 5280 §4.2.1.3: at least one bit is set."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=not digital_signature and not sign_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
