"""CAs: what may be registered, how possession is proven, and which way their life goes."""

from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from certificate_makers import der_of, openssl_certificate, openssl_root
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.device.factory import Fault, create_authority, key_pem
from provisioning.authorities import (
    AuthorityState,
    check_unrelated,
    decide_transition,
    inspect_authority,
    new_code,
    verify_possession,
)
from provisioning.certificates import fingerprint_of
from provisioning.envelope import key_id_of
from provisioning.errors import ConflictError, InvalidError, TransitionError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = create_authority("root", now=NOW)
CODE = new_code(b"0123456789abcdef")


def _authority_with(*extensions: tuple[x509.ExtensionType, bool], subject: str | None = "odd") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [] if subject is None else [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
    name = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=365))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


CA = (x509.BasicConstraints(True, None), True)
SIGNER = (x509.KeyUsage(False, False, False, False, False, True, True, False, False), True)
NO_SIGNER = (x509.KeyUsage(True, False, False, False, False, False, False, False, False), True)
DIRECTORY = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p")]))


def _refusal(pem: bytes, now: datetime | None = NOW) -> str:
    with pytest.raises(InvalidError) as caught:
        inspect_authority(pem, now=now)
    assert caught.value.field == "certificate"
    return caught.value.detail


def test_facts() -> None:
    facts = inspect_authority(ROOT.pem, now=NOW)
    assert facts.certificate == ROOT.cert
    assert facts.der == der_of(ROOT.cert)
    assert facts.fingerprint == fingerprint_of(ROOT.cert)
    assert facts.key_id == key_id_of(ROOT.key.public_key())
    assert facts.subject == "CN=root"
    assert (
        facts.subject_der_sha256
        == inspect_authority(create_authority("root", now=NOW).pem).subject_der_sha256
    )
    assert (facts.not_before, facts.not_after) == (NOW - timedelta(days=1), NOW + timedelta(days=3650))
    assert (facts.legacy, facts.findings) == (False, ())


def test_findings() -> None:
    legacy = inspect_authority(create_authority("legacy", now=NOW, key_usage=False).pem, now=NOW)
    assert legacy.legacy
    assert legacy.findings == (
        "no KeyUsage, as plain `openssl req -x509` makes it: checked by the relaxed policy",
    )
    middle = inspect_authority(create_authority("middle", now=NOW, issuer=ROOT).pem, now=NOW)
    assert not middle.legacy
    assert "an intermediate" in middle.findings[0]
    soon = inspect_authority(create_authority("soon", now=NOW, valid_days=89).pem, now=NOW)
    assert soon.findings == ("expires soon: valid until 2026-03-31T00:00:00Z",)
    early = inspect_authority(ROOT.pem, now=NOW - timedelta(days=9))
    assert "not valid yet" in early.findings[0]
    assert not soon.legacy
    assert not early.legacy


def test_a_plain_openssl_root_is_legacy(tmp_path: Path) -> None:
    assert inspect_authority(openssl_root(tmp_path)).legacy
    assert not inspect_authority(openssl_root(tmp_path, "-addext", "keyUsage=critical,keyCertSign")).legacy


@pytest.mark.parametrize(
    ("pem", "detail"),
    [
        (b"", "the CA file must hold exactly one certificate in PEM, got 0 blocks"),
        (ROOT.pem * 2, "the CA file must hold exactly one certificate in PEM, got 2 blocks"),
        (ROOT.pem + key_pem(ROOT.key), "the CA file holds a private key; it must never leave its place"),
        (b"x" * 32_769, "the CA file has 32769 bytes, at most 32768 are read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "the CA file holds no X.509"),
        (_authority_with(SIGNER), "not a CA: its certificate lacks BasicConstraints with cA"),
        (_authority_with((x509.BasicConstraints(False, None), True)), "not a CA"),
        (_authority_with((CA[0], False), SIGNER), "the CA's BasicConstraints is not critical"),
        (_authority_with(CA, NO_SIGNER), "the CA may not sign certificates: its KeyUsage lacks keyCertSign"),
        (
            _authority_with(CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)),
            "the CA may not issue for TLS clients: its ExtendedKeyUsage lacks clientAuth",
        ),
        (
            _authority_with(CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)),
            "the CA's ExtendedKeyUsage is critical",
        ),
        (
            _authority_with(CA, (x509.NameConstraints([DIRECTORY], None), True)),
            "the CA constrains directory names",
        ),
        (
            _authority_with(CA, (x509.NameConstraints(None, [DIRECTORY]), False)),
            "the CA constrains directory names",
        ),
        (
            _authority_with(CA, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)),
            "the CA has the critical extension 1.2.3.4",
        ),
        (_authority_with(CA, (x509.SubjectKeyIdentifier(b"x"), True)), "the CA's SubjectKeyIdentifier is critical"),
        (_authority_with(CA, subject=None), "the CA's certificate has an empty subject"),
        (_authority_with((x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.15"), b"\4\0"), False)),
         "the CA's certificate has parts that cannot be read"),
        (create_authority("e", now=NOW, key="ed25519").pem, "the CA's certificate has an Ed25519 key"),
        (create_authority("k", now=NOW, key="secp256k1").pem, "the CA's certificate has a key on the curve secp256k1"),
        (create_authority("w", now=NOW, key="rsa_1024").pem, "the CA's certificate has an RSA key of 1024 bits"),
        (
            create_authority("old", now=NOW - timedelta(days=9), valid_days=1).pem,
            "the CA expired: valid until 2025-12-24T00:00:00Z, checked at 2026-01-01T00:00:00Z",
        ),
    ],
)  # fmt: skip
def test_refused_by_name(pem: bytes, detail: str) -> None:
    assert _refusal(pem).startswith(detail)


def test_version_one_and_sha1(tmp_path: Path) -> None:
    old = openssl_certificate(tmp_path, ROOT, "old")
    assert _refusal(old) == "the CA's certificate is X.509 v1; v3 with BasicConstraints is needed"
    assert "SHA-1 is not" in _refusal(openssl_root(tmp_path, "-sha1"), None)


def test_without_a_time_nothing_expires() -> None:
    expired = create_authority("old", now=NOW - timedelta(days=9), valid_days=1)
    assert inspect_authority(expired.pem).findings == ()


def test_codes() -> None:
    assert new_code(b"\xab" * 16) == "ab" * 16
    assert len(new_code(b"x" * 32)) == 64  # the most that a CN holds
    for length in (15, 33):
        with pytest.raises(InvalidError, match="16–32 random bytes"):
            new_code(b"x" * length)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa"])
def test_possession(kind: str) -> None:
    authority = create_authority("a", now=NOW, key=kind)
    verify_possession(authority.prove(CODE, NOW), der_of(authority.cert), CODE, NOW)


def test_possession_as_openssl_proves_it(tmp_path: Path) -> None:
    """`openssl x509 -req` makes X.509 v1 certificates; they prove possession all the same."""
    verify_possession(openssl_certificate(tmp_path, ROOT, CODE), der_of(ROOT.cert), CODE, datetime.now(UTC))


@pytest.mark.parametrize(
    ("proof", "now", "detail"),
    [
        (ROOT.prove(new_code(b"another code 123"), NOW), NOW, "the proof's CN is not the code of this CA"),
        (
            ROOT.issue(CODE, now=NOW, fault=Fault.TWO_CNS).pem,
            NOW,
            "the proof's CN is not the code of this CA",
        ),
        (ROOT.issue("ü", now=NOW).pem, NOW, "the proof's CN is not the code of this CA"),
        (
            create_authority("other", now=NOW).prove(CODE, NOW),
            NOW,
            "the proof is not signed by this CA's key",
        ),
        (create_authority("root", now=NOW).prove(CODE, NOW), NOW, "the proof is not signed by this CA's key"),
        (ROOT.issue(CODE, now=NOW, fault=Fault.FOREIGN_SIGNATURE).pem, NOW, "the proof is not signed"),
        (
            ROOT.prove(CODE, NOW),
            NOW + timedelta(days=2),
            "the proof expired: valid until 2026-01-02T00:00:00Z",
        ),
    ],
)
def test_no_possession(proof: bytes, now: datetime, detail: str) -> None:
    with pytest.raises(InvalidError) as caught:
        verify_possession(proof, der_of(ROOT.cert), CODE, now)
    assert caught.value.detail.startswith(detail)
    assert caught.value.field == "proof"


def test_relations_between_products() -> None:
    middle = create_authority("middle", now=NOW, issuer=ROOT)
    sibling = create_authority("sibling", now=NOW, issuer=ROOT)
    namesake = create_authority("root", now=NOW)
    check_unrelated(middle.cert, [("thermostat", sibling.cert), ("thermostat", namesake.cert)])
    with pytest.raises(ConflictError, match="is signed by a CA of product 'thermostat'"):
        check_unrelated(middle.cert, [("lamp", sibling.cert), ("thermostat", ROOT.cert)])
    with pytest.raises(ConflictError, match="has signed a CA of product 'thermostat'"):
        check_unrelated(ROOT.cert, [("thermostat", middle.cert)])
    with pytest.raises(ConflictError, match="the same key as a CA of product 'thermostat'"):
        check_unrelated(ROOT.cert, [("thermostat", ROOT.cert)])


ALLOWED = {
    ("pending", "active"),
    ("pending", "revoked"),
    ("active", "retiring"),
    ("active", "revoked"),
    ("retiring", "active"),
    ("retiring", "revoked"),
}


@pytest.mark.parametrize(("state", "to"), list(product(AuthorityState, AuthorityState)))
def test_transitions(state: AuthorityState, to: AuthorityState) -> None:
    if (state.value, to.value) in ALLOWED:
        decide_transition(state, to, True)
    else:
        with pytest.raises(TransitionError, match=f"a CA that is {state} cannot become {to}"):
            decide_transition(state, to, True)


@pytest.mark.parametrize("to", [AuthorityState.ACTIVE, AuthorityState.REVOKED])
def test_unproven_leaves_pending_for_nothing(to: AuthorityState) -> None:
    with pytest.raises(TransitionError, match=f"a CA must be proven before it becomes {to}"):
        decide_transition(AuthorityState.PENDING, to, False)
