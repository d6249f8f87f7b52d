"""The factory: a development PKI for tests, demo and documents, with faults made on purpose.

Never a production PKI: keys are written unprotected, and nothing is recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class KeyKind(StrEnum):
    """Kinds of keys; the last two are never accepted."""

    P256 = "p256"
    P384 = "p384"
    RSA = "rsa"
    ED25519 = "ed25519"
    RSA_1024 = "rsa_1024"
    SECP256K1 = "secp256k1"


class Fault(StrEnum):
    """What may be wrong with a device's certificate, one thing each."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    SERVER_AUTH_ONLY = "server_auth_only"
    CA_AS_LEAF = "ca_as_leaf"
    KEY_CERT_SIGN = "key_cert_sign"
    NO_DIGITAL_SIGNATURE = "no_digital_signature"
    RSA_1024 = "rsa_1024"
    SECP256K1 = "secp256k1"
    SLASH_IN_CN = "slash_in_cn"
    NO_CN = "no_cn"
    TWO_CNS = "two_cns"
    FOREIGN_SIGNATURE = "foreign_signature"
    HUGE_SUBJECT = "huge_subject"


def new_key(kind: KeyKind | str = KeyKind.P256) -> PrivateKey:
    """A new private key."""
    match KeyKind(kind):
        case KeyKind.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyKind.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyKind.RSA:
            return rsa.generate_private_key(65537, 2048)
        case KeyKind.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyKind.RSA_1024:
            return rsa.generate_private_key(65537, 1024)  # noqa: S505  (a fault, on purpose)
        case KeyKind.SECP256K1:
            return ec.generate_private_key(ec.SECP256K1())


def key_pem(key: PrivateKey) -> bytes:
    """A private key as unprotected PKCS #8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCertificate:
    """What a device leaves the factory with. `chain` is leaf first, up to but without the registered CA."""

    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate_name(self) -> str:
        """The CN of the device's certificate."""
        (name,) = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(name.value)

    @property
    def der_chain(self) -> tuple[bytes, ...]:
        """The chain as a hello carries it."""
        return tuple(link.public_bytes(serialization.Encoding.DER) for link in self.chain)

    @property
    def pem(self) -> bytes:
        """The chain as TLS sends it."""
        return b"".join(link.public_bytes(serialization.Encoding.PEM) for link in self.chain)

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return key_pem(self.key)

    def write(self, directory: Path, name: str = "device") -> tuple[Path, Path]:
        """Writes `name.pem` and `name.key` (mode 0600); returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        cert.write_bytes(self.pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)
        return cert, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A CA with its key. `above` are the certificates between it and the root, nearest first, root excluded."""

    cert: x509.Certificate
    key: PrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The CA's private key."""
        return key_pem(self.key)

    def issue(
        self,
        cn: str,
        *,
        now: datetime,
        key: KeyKind | str = KeyKind.P256,
        private_key: PrivateKey | None = None,
        valid_days: int = 365,
        serial_number: str | None = None,
        san_uris: Sequence[str] = (),
        san_dns: Sequence[str] = (),
        o: str | None = None,
        ou: str | None = None,
        fault: Fault | None = None,
        send_issuer: bool = False,
    ) -> DeviceCertificate:
        """A device's certificate.

        Args:
            cn: the topic name.
            now: aware UTC; validity starts an hour before.
            private_key: to certify an existing key again.
            serial_number: the subject's serialNumber attribute.
            fault: the one thing to do wrong.
            send_issuer: whether the chain holds this CA too, because only a CA above it is registered.
        """
        if fault in (Fault.RSA_1024, Fault.SECP256K1):
            key = KeyKind(fault.value)
        own = private_key or new_key(key)
        begin, end = now - timedelta(hours=1), now + timedelta(days=valid_days)
        if fault is Fault.EXPIRED:
            begin, end = now - timedelta(days=30), now - timedelta(seconds=1)
        elif fault is Fault.NOT_YET_VALID:
            begin = now + timedelta(hours=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(cn, serial_number, o, ou, fault))
            .issuer_name(self.cert.subject)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(
                x509.BasicConstraints(ca=fault is Fault.CA_AS_LEAF, path_length=None), critical=True
            )
            .add_extension(
                _usage(
                    sign_certificates=fault in (Fault.KEY_CERT_SIGN, Fault.CA_AS_LEAF),
                    digital_signature=fault is not Fault.NO_DIGITAL_SIGNATURE,
                ),
                critical=True,
            )
            .add_extension(
                x509.ExtendedKeyUsage(
                    [
                        ExtendedKeyUsageOID.SERVER_AUTH
                        if fault is Fault.SERVER_AUTH_ONLY
                        else ExtendedKeyUsageOID.CLIENT_AUTH
                    ]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.cert.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        names = [x509.UniformResourceIdentifier(uri) for uri in san_uris]
        all_names = [*names, *(x509.DNSName(name) for name in san_dns)]
        if all_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(all_names), critical=False)
        signer = new_key() if fault is Fault.FOREIGN_SIGNATURE else self.key
        certificate = builder.sign(signer, _hash_for(signer))
        chain = (certificate, self.cert, *self.above) if send_issuer else (certificate,)
        return DeviceCertificate(certificate=certificate, key=own, chain=chain)

    def prove(self, code: str, now: datetime) -> bytes:
        """The certificate that proves possession of this CA's key: CN is the code. PEM."""
        return self.issue(code, now=now, valid_days=1).certificate.public_bytes(serialization.Encoding.PEM)


def create_authority(
    name: str,
    *,
    now: datetime,
    key: KeyKind | str = KeyKind.P256,
    issuer: Authority | None = None,
    valid_days: int = 3650,
    key_usage: bool = True,
) -> Authority:
    """A CA: a root, or an intermediate where there is an `issuer`.

    Args:
        name: its CN.
        now: aware UTC; validity starts a day before.
        key_usage: without it, the CA is a legacy one, as plain `openssl req -x509` makes them.
    """
    own = new_key(key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=valid_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    )
    if key_usage:
        builder = builder.add_extension(
            _usage(sign_certificates=True, digital_signature=False), critical=True
        )
    if issuer is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.cert.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    signer = issuer.key if issuer else own
    above: tuple[x509.Certificate, ...] = ()
    if issuer is not None and issuer.cert.issuer != issuer.cert.subject:
        above = (issuer.cert, *issuer.above)
    return Authority(cert=builder.sign(signer, _hash_for(signer)), key=own, above=above)


def _subject(cn: str, serial: str | None, o: str | None, ou: str | None, fault: Fault | None) -> x509.Name:
    names = [] if fault is Fault.NO_CN else [(NameOID.COMMON_NAME, cn)]
    if fault is Fault.SLASH_IN_CN:
        names = [(NameOID.COMMON_NAME, f"{cn}/hello")]
    if fault is Fault.TWO_CNS:
        names.append((NameOID.COMMON_NAME, f"{cn}-too"))
    if fault is Fault.HUGE_SUBJECT:
        names += [(NameOID.ORGANIZATIONAL_UNIT_NAME, f"unit {number}") for number in range(20)]
    for oid, value in (
        (NameOID.SERIAL_NUMBER, serial),
        (NameOID.ORGANIZATION_NAME, o),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, ou),
    ):
        if value is not None:
            names.append((oid, value))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in names])


def _usage(*, sign_certificates: bool, digital_signature: bool) -> x509.KeyUsage:
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


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA256()
