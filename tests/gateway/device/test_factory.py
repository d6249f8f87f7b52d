"""The development PKI: certificates that openssl accepts, and faults that are exactly one thing."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.device.factory import Fault, create_authority, new_key
from provisioning.authorities import AuthorityState, inspect_authority
from provisioning.certificates import parse_chain
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import AuthorityId, ProductId
from provisioning.verification import Anchor, TrustAnchors, verify_chain

NOW = datetime.now(UTC).replace(microsecond=0)
ROOT = create_authority("root", now=NOW)
FACTS = inspect_authority(ROOT.pem, now=NOW)
ANCHORS = TrustAnchors(
    [
        Anchor(
            authority_id=AuthorityId(1),
            product_id=ProductId(1),
            certificate=FACTS.certificate,
            key_id=FACTS.key_id,
            state=AuthorityState.ACTIVE,
            legacy=FACTS.legacy,
        )
    ]
)

REASONS = {
    Fault.EXPIRED: RejectReason.CERTIFICATE_EXPIRED,
    Fault.NOT_YET_VALID: RejectReason.CERTIFICATE_NOT_YET_VALID,
    Fault.SERVER_AUTH_ONLY: RejectReason.CERTIFICATE_PROFILE,
    Fault.CA_AS_LEAF: RejectReason.CERTIFICATE_PROFILE,
    Fault.KEY_CERT_SIGN: RejectReason.CERTIFICATE_PROFILE,
    Fault.NO_DIGITAL_SIGNATURE: RejectReason.CERTIFICATE_PROFILE,
    Fault.RSA_1024: RejectReason.KEY_NOT_ALLOWED,
    Fault.SECP256K1: RejectReason.KEY_NOT_ALLOWED,
    Fault.SLASH_IN_CN: RejectReason.CERTIFICATE_NAME,
    Fault.NO_CN: RejectReason.CERTIFICATE_NAME,
    Fault.TWO_CNS: RejectReason.CERTIFICATE_NAME,
    Fault.FOREIGN_SIGNATURE: RejectReason.UNKNOWN_CA,
    Fault.HUGE_SUBJECT: RejectReason.CERTIFICATE_PROFILE,
}


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_is_refused_with_its_word(fault: Fault) -> None:
    device = ROOT.issue("p-1", now=NOW, fault=fault)
    with pytest.raises(VerificationError) as caught:
        verify_chain(parse_chain(device.der_chain), ANCHORS, NOW)
    assert caught.value.reason is REASONS[fault]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_openssl_accepts_the_chain(tmp_path: Path, depth: int) -> None:
    issuer = ROOT
    for number in range(1, depth):
        issuer = create_authority(f"level {number}", now=NOW, issuer=issuer)
    device = issuer.issue("p-1", now=NOW, send_issuer=depth > 1)
    assert len(device.chain) == depth
    assert verify_chain(parse_chain(device.der_chain), ANCHORS, NOW).topic_name == "p-1"
    cert, key = device.write(tmp_path)
    (tmp_path / "root.pem").write_bytes(ROOT.pem)
    command = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", "root.pem", "-untrusted", cert.name]
    done = subprocess.run([*command, cert.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "device.pem: OK\n", done.stderr
    assert key.stat().st_mode & 0o777 == 0o600


def test_files_are_what_they_say(tmp_path: Path) -> None:
    device = ROOT.issue("p-1", now=NOW)
    cert, key = device.write(tmp_path / "new", "lamp")
    assert (cert.name, key.name) == ("lamp.pem", "lamp.key")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    assert loaded.public_key() == device.certificate.public_key()
    assert x509.load_pem_x509_certificate(cert.read_bytes()) == device.certificate
    other = ROOT.issue("p-2", now=NOW)
    other.write(tmp_path / "new", "lamp")
    assert key.read_bytes() == other.key_pem


def test_a_certificate_is_renewed_on_the_same_key() -> None:
    key = new_key()
    first, second = (ROOT.issue("p-1", now=at, private_key=key) for at in (NOW, NOW + timedelta(days=300)))
    assert first.certificate != second.certificate
    assert first.certificate.public_key() == second.certificate.public_key()
