"""Certificates taken apart: what is refused before anybody is asked who signed, and what facts are read."""

import contextlib
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificate_makers import der_of, openssl_certificate, sign_again
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.device.factory import Authority, Fault, create_authority, new_key
from provisioning.certificates import (
    FIELDS,
    CertificateFacts,
    check_profile,
    fingerprint_of,
    parse_chain,
    read_facts,
    signing_key_of,
)
from provisioning.envelope import key_id_of, spki_of
from provisioning.errors import RejectReason, VerificationError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = create_authority("root", now=NOW)


def _read(ders: Sequence[bytes]) -> CertificateFacts:
    chain = parse_chain(ders)
    check_profile(chain[0])
    return read_facts(chain[0])


def _refusal(*ders: bytes) -> tuple[RejectReason, str]:
    with pytest.raises(VerificationError) as caught:
        _read(ders)
    return caught.value.reason, caught.value.detail


def _leaf(*extensions: x509.ExtensionType, key: object = None, issuer: Authority = ROOT) -> bytes:
    """A leaf with a CN and exactly the given extensions."""
    public = (key or new_key()).public_key()  # type: ignore[attr-defined]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p-1")]))
        .issuer_name(issuer.cert.subject)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    return der_of(builder.sign(issuer.key, hashes.SHA256()))


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        (Fault.SERVER_AUTH_ONLY, RejectReason.CERTIFICATE_PROFILE, "lacks clientAuth"),
        (Fault.CA_AS_LEAF, RejectReason.CERTIFICATE_PROFILE, "is a CA's"),
        (Fault.KEY_CERT_SIGN, RejectReason.CERTIFICATE_PROFILE, "keyCertSign"),
        (Fault.NO_DIGITAL_SIGNATURE, RejectReason.CERTIFICATE_PROFILE, "lacks digitalSignature"),
        (Fault.RSA_1024, RejectReason.KEY_NOT_ALLOWED, "an RSA key of 1024 bits"),
        (Fault.SECP256K1, RejectReason.KEY_NOT_ALLOWED, "a key on the curve secp256k1"),
        (Fault.SLASH_IN_CN, RejectReason.CERTIFICATE_NAME, "the CN, of 9 characters, is no topic name"),
        (Fault.NO_CN, RejectReason.CERTIFICATE_NAME, "exactly one CN, got 0"),
        (Fault.TWO_CNS, RejectReason.CERTIFICATE_NAME, "exactly one CN, got 2"),
        (Fault.HUGE_SUBJECT, RejectReason.CERTIFICATE_PROFILE, "21 subject attributes, at most 16"),
    ],
)
def test_faults(fault: Fault, reason: RejectReason, detail: str) -> None:
    found, text = _refusal(*ROOT.issue("p-1", now=NOW, fault=fault).der_chain)
    assert found is reason
    assert detail in text


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519"])
def test_facts(kind: str) -> None:
    device = ROOT.issue(
        "p-1",
        now=NOW,
        key=kind,
        serial_number="SN-1",
        san_uris=("urn:x:1", "urn:x:2"),
        san_dns=("p-1.example",),
        o="Acme",
        ou="Line 3",
    )
    chain = parse_chain(device.der_chain)
    check_profile(chain[0])
    facts = read_facts(chain[0])
    assert facts.fingerprint == hashlib.sha256(device.der_chain[0]).hexdigest() == fingerprint_of(chain[0])
    assert facts.spki == spki_of(device.key.public_key())
    assert facts.key_id == key_id_of(device.key.public_key()) == key_id_of(signing_key_of(chain[0]))
    assert facts.not_before == NOW - timedelta(hours=1)
    assert facts.not_after == NOW + timedelta(days=365)
    assert facts.not_after.tzinfo is not None
    assert (facts.issuer, facts.serial_number) == ("CN=root", chain[0].serial_number)
    assert facts.subject == "OU=Line 3,O=Acme,2.5.4.5=SN-1,CN=p-1"
    assert facts.san_uris == ("urn:x:1", "urn:x:2")
    assert {name: facts.field(name) for name in FIELDS} == {
        "cn": "p-1",
        "serial_number": "SN-1",
        "o": "Acme",
        "ou": "Line 3",
        "san_uri": "urn:x:1",
        "san_dns": "p-1.example",
    }
    assert facts.field("email") is None


def test_facts_of_a_bare_certificate() -> None:
    chain = parse_chain([_leaf()])
    check_profile(chain[0])
    facts = read_facts(chain[0])
    assert {name: facts.field(name) for name in FIELDS if name != "cn"} == dict.fromkeys(FIELDS[1:])


def test_length_of_a_chain() -> None:
    leaf, ca = _leaf(), der_of(ROOT.cert)
    assert len(parse_chain([leaf, ca, ca])) == 3
    assert _refusal() == (RejectReason.MALFORMED_CERTIFICATE, "a chain has 1–3 certificates, got 0")
    assert _refusal(leaf, ca, ca, ca)[1] == "a chain has 1–3 certificates, got 4"


def test_size_and_alternative_names() -> None:
    names = [x509.DNSName(f"n{number}.example") for number in range(33)]
    parse_chain([_leaf(x509.SubjectAlternativeName(names[:32]))])
    assert _refusal(_leaf(x509.SubjectAlternativeName(names))) == (
        RejectReason.CERTIFICATE_PROFILE,
        "certificate 0 of the chain has 33 alternative names, at most 32 are read",
    )
    large = _leaf(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\0" * 8192))
    reason, detail = _refusal(large)
    assert reason is RejectReason.CERTIFICATE_PROFILE
    assert detail == f"certificate 0 of the chain has {len(large)} bytes, at most 8192 are read"


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")  # the fault, on purpose
@pytest.mark.parametrize("serial", [b"\x00", b"\xff"])
def test_serial_numbers_that_are_not_positive(serial: bytes) -> None:
    version = bytes.fromhex("a003020102")
    certificate = x509.load_der_x509_certificate(_leaf())
    der = sign_again(certificate, ROOT, version + b"\x02\x01\x01", version + b"\x02\x01" + serial)
    assert _refusal(der) == (
        RejectReason.CERTIFICATE_PROFILE,
        "certificate 0 of the chain has a serial number outside 1–160 bits (RFC 5280 §4.1.2.2)",
    )


@pytest.mark.parametrize(
    ("oid", "content"),
    [
        ("2.5.29.17", b"\x30\x03\x86\x01\xff"),  # SAN: a URI that is not ASCII
        ("2.5.29.15", b"\x04\x00"),  # KeyUsage: not a bit string
        ("2.5.29.37", b"\x30\x00\x00"),  # ExtendedKeyUsage: data after the end
        (
            "2.5.29.30",
            bytes.fromhex("300aa00830068704" + "7f000001"),
        ),  # NameConstraints: an address, no network
    ],
)
def test_extensions_that_raise_late(oid: str, content: bytes) -> None:
    der = _leaf(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content))
    assert _refusal(der) == (
        RejectReason.MALFORMED_CERTIFICATE,
        "certificate 0 of the chain is no X.509 certificate that can be read",
    )


def test_version_and_hash(tmp_path: Path) -> None:
    old = x509.load_pem_x509_certificate(openssl_certificate(tmp_path, ROOT, "p-1"))
    assert _refusal(der_of(old)) == (
        RejectReason.CERTIFICATE_PROFILE,
        "certificate 0 of the chain is X.509 v1; v3 is needed",
    )
    extensions = tmp_path / "extensions"
    extensions.write_text("basicConstraints=CA:FALSE\n")
    sha1 = openssl_certificate(tmp_path, ROOT, "p-1", "-sha1", "-extfile", str(extensions))
    reason, detail = _refusal(der_of(x509.load_pem_x509_certificate(sha1)))
    assert reason is RejectReason.CERTIFICATE_PROFILE
    assert "is signed with algorithm 1.2.840.10045.4.1" in detail
    assert "SHA-1 is not" in detail


def test_ed25519_authorities_are_named() -> None:
    authority = create_authority("ed", now=NOW, key="ed25519")
    reason, detail = _refusal(*authority.issue("p-1", now=NOW).der_chain)
    assert reason is RejectReason.CERTIFICATE_PROFILE
    assert "is signed by an Ed25519 CA key; CAs need P-256" in detail
    reason, detail = _refusal(_leaf(), der_of(create_authority("ed", now=NOW, key="ed25519").cert))
    assert reason is RejectReason.CERTIFICATE_PROFILE
    # An Ed25519 key certified by a good one: the key is what is wrong.
    below = create_authority("ed", now=NOW, key="ed25519", issuer=ROOT)
    assert _refusal(_leaf(), der_of(below.cert))[0] is RejectReason.KEY_NOT_ALLOWED


def test_other_keys() -> None:
    assert _refusal(_leaf(key=dsa.generate_private_key(2048)))[0] is RejectReason.KEY_NOT_ALLOWED
    p521 = ec.generate_private_key(ec.SECP521R1())
    assert _refusal(_leaf(key=p521)) == (
        RejectReason.KEY_NOT_ALLOWED,
        "a key on the curve secp521r1; keys may be P-256, P-384, RSA of 2048–8192 bits, or Ed25519",
    )


@pytest.mark.parametrize("fault", [Fault.RSA_1024, Fault.SECP256K1])
def test_parsing_alone_refuses_weak_keys(fault: Fault) -> None:
    ders = ROOT.issue("p-1", now=NOW, fault=fault).der_chain
    with pytest.raises(VerificationError, match="key_not_allowed"):
        parse_chain(ders)


GOOD = _leaf(
    x509.BasicConstraints(False, None),
    x509.SubjectAlternativeName([x509.DNSName("p-1.example"), x509.UniformResourceIdentifier("urn:x")]),
)


@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore")  # whatever the library warns of in broken certificates
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, 3))
def test_broken_bytes_are_refused_or_read(at: int, byte: int, cut: int) -> None:
    """One byte changed or the end cut off: nothing but our own error comes out."""
    der = bytearray(GOOD)
    der[at] = byte
    with contextlib.suppress(VerificationError):
        _read([bytes(der[: len(der) - cut])])
