"""Chains: whose device it is, at what time, and the one word where it is nobody's."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from certificate_makers import der_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.device.factory import Authority, Fault, create_authority
from provisioning.authorities import AuthorityState, inspect_authority
from provisioning.certificates import parse_chain
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import AuthorityId, ProductId
from provisioning.verification import (
    Anchor,
    EndedIdentityError,
    TrustAnchors,
    VerifiedIdentity,
    check_validity,
    explain_chain,
    verify_chain,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = create_authority("root", now=NOW)
MIDDLE = create_authority("middle", now=NOW, issuer=ROOT)
BOTTOM = create_authority("bottom", now=NOW, issuer=MIDDLE)
OTHER = create_authority("other", now=NOW)

STEPS = [
    "certificate_name",
    "registered_ca",
    "ca_state",
    "ca_valid",
    "certificate_valid",
    "device_profile",
    "path",
]


def _anchor(
    authority: Authority, number: int = 1, *, product: int = 1, state: AuthorityState = AuthorityState.ACTIVE
) -> Anchor:
    facts = inspect_authority(authority.pem)
    return Anchor(
        authority_id=AuthorityId(number),
        product_id=ProductId(product),
        certificate=facts.certificate,
        key_id=facts.key_id,
        state=state,
        legacy=facts.legacy,
    )


def _verify(ders: Sequence[bytes], *anchors: Anchor, now: datetime = NOW) -> VerifiedIdentity:
    return verify_chain(parse_chain(ders), TrustAnchors(anchors), now)


def _refusal(ders: Sequence[bytes], *anchors: Anchor, now: datetime = NOW) -> tuple[RejectReason, str]:
    chain = parse_chain(ders)
    trusted = TrustAnchors(anchors)
    with pytest.raises(VerificationError) as caught:
        verify_chain(chain, trusted, now)
    # The explanation is the same decision.
    failed = [rule for rule in explain_chain(chain, trusted, now) if rule.passed is False]
    assert [(rule.reason, rule.detail) for rule in failed] == [(caught.value.reason, caught.value.detail)]
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("authority_kind", ["p256", "p384", "rsa"])
@pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519"])
def test_every_allowed_key(authority_kind: str, kind: str) -> None:
    root = create_authority("r", now=NOW, key=authority_kind)
    device = root.issue("p-1", now=NOW, key=kind)
    identity = _verify(device.der_chain, _anchor(root, 7, product=9))
    assert (identity.authority_id, identity.product_id, identity.topic_name) == (7, 9, "p-1")
    assert identity.key_id == identity.certificate.key_id
    assert identity.spki == identity.certificate.spki


@pytest.mark.parametrize(("issuer", "length"), [(ROOT, 1), (MIDDLE, 2), (BOTTOM, 3)])
def test_intermediates(issuer: Authority, length: int) -> None:
    device = issuer.issue("p-1", now=NOW, send_issuer=issuer is not ROOT)
    assert len(device.chain) == length
    assert _verify(device.der_chain, _anchor(ROOT)).product_id == 1


def test_the_nearest_registered_authority_decides() -> None:
    device = BOTTOM.issue("p-1", now=NOW, send_issuer=True)
    anchors = [_anchor(ROOT, 1), _anchor(MIDDLE, 2), _anchor(BOTTOM, 3)]
    assert _verify(device.der_chain, *anchors).authority_id == 3
    assert _verify(device.der_chain, *anchors[:2]).authority_id == 2
    assert _verify(device.der_chain, *anchors[:1]).authority_id == 1
    # A registered intermediate is enough; its root need not be known.
    assert _verify(device.der_chain[:1], anchors[2]).authority_id == 3


def test_a_chain_may_hold_the_authority_itself_and_more() -> None:
    device = ROOT.issue("p-1", now=NOW)
    root = der_of(ROOT.cert)
    other = der_of(OTHER.cert)
    assert _verify([*device.der_chain, root, other], _anchor(ROOT)).product_id == 1


def test_unknown_authority() -> None:
    reason, detail = _refusal(OTHER.issue("p-1", now=NOW).der_chain, _anchor(ROOT))
    assert reason is RejectReason.UNKNOWN_CA
    assert detail == (
        "certificate of device 'p-1' leads to issuer 'CN=other': no registered CA has that name"
    )
    assert _refusal(ROOT.issue("p-1", now=NOW).der_chain)[0] is RejectReason.UNKNOWN_CA


def test_missing_intermediate() -> None:
    device = BOTTOM.issue("p-1", now=NOW, send_issuer=True)
    assert _refusal(device.der_chain[:2], _anchor(ROOT))[0] is RejectReason.UNKNOWN_CA
    assert _refusal(device.der_chain[:1], _anchor(ROOT))[0] is RejectReason.UNKNOWN_CA


def test_foreign_signature_under_a_registered_name() -> None:
    reason, detail = _refusal(
        ROOT.issue("p-1", now=NOW, fault=Fault.FOREIGN_SIGNATURE).der_chain, _anchor(ROOT)
    )
    assert reason is RejectReason.UNKNOWN_CA
    assert detail.endswith("issuer 'CN=root': a registered CA has that name, but another key signed")


def test_a_leaf_put_before_anothers_intermediate() -> None:
    """The intermediate is genuine, the leaf is not its own."""
    stranger = create_authority("middle", now=NOW)
    middle = der_of(MIDDLE.cert)
    for issuer in (stranger, OTHER):
        reason, detail = _refusal([*issuer.issue("p-1", now=NOW).der_chain, middle], _anchor(ROOT))
        assert reason is RejectReason.CHAIN_INVALID
        assert detail == "certificate of device 'p-1': certificate 0 of its chain is not signed by the next"


def test_same_name_in_two_products() -> None:
    """The name is no proof: each device goes to the product whose key signed it."""
    twin = create_authority("root", now=NOW)
    anchors = [_anchor(ROOT, 1, product=1), _anchor(twin, 2, product=2)]
    for order in (anchors, anchors[::-1]):
        assert _verify(ROOT.issue("p-1", now=NOW).der_chain, *order).product_id == 1
        assert _verify(twin.issue("p-1", now=NOW).der_chain, *order).product_id == 2
    # Also where the library could go a longer way round through the other one.
    below = create_authority("root", now=NOW, issuer=ROOT)
    device = below.issue("p-1", now=NOW, send_issuer=True)
    reason, _ = _refusal(device.der_chain[:1], *anchors)
    assert reason is RejectReason.UNKNOWN_CA
    assert _verify(device.der_chain, *anchors).authority_id == 1
    assert _verify(device.der_chain, *anchors, _anchor(below, 3)).authority_id == 3


@pytest.mark.parametrize(
    ("state", "reason", "detail"),
    [
        (
            AuthorityState.PENDING,
            RejectReason.CA_NOT_ACTIVE,
            "CA 'CN=root' is pending: prove and activate it",
        ),
        (AuthorityState.REVOKED, RejectReason.CA_REVOKED, "CA 'CN=root' is revoked"),
    ],
)
def test_states_that_refuse(state: AuthorityState, reason: RejectReason, detail: str) -> None:
    device = ROOT.issue("p-1", now=NOW)
    anchor = _anchor(ROOT, state=state)
    assert _refusal(device.der_chain, anchor) == (reason, detail)
    identity = _verify(device.der_chain, _anchor(ROOT))
    with pytest.raises(VerificationError) as caught:
        check_validity(identity, anchor, NOW)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_what_time_or_an_operator_ended_is_named_with_its_identity_and_a_forgery_is_not() -> None:
    device = ROOT.issue("p-1", now=NOW)
    for anchor, now in [
        (_anchor(ROOT, state=AuthorityState.REVOKED), NOW),
        (_anchor(ROOT), NOW + timedelta(days=400)),
    ]:
        with pytest.raises(EndedIdentityError) as caught:
            _verify(device.der_chain, anchor, now=now)
        assert caught.value.identity.topic_name == "p-1"
    forged = ROOT.issue("p-1", now=NOW, fault=Fault.FOREIGN_SIGNATURE)
    with pytest.raises(VerificationError) as stranger:
        _verify(forged.der_chain, _anchor(ROOT, state=AuthorityState.REVOKED))
    assert not isinstance(stranger.value, EndedIdentityError)


def test_an_intermediate_that_ends_first_ends_a_known_key_too() -> None:
    short = create_authority("short-lived", now=NOW, issuer=ROOT, valid_days=30)
    identity = _verify(short.issue("p-1", now=NOW, send_issuer=True).der_chain, _anchor(ROOT))
    assert identity.valid_until < identity.certificate.not_after
    check_validity(identity, _anchor(ROOT), identity.valid_until)
    with pytest.raises(EndedIdentityError) as caught:
        check_validity(identity, _anchor(ROOT), identity.valid_until + timedelta(seconds=1))
    assert caught.value.reason is RejectReason.CA_EXPIRED


def test_a_retiring_authority_still_vouches() -> None:
    assert _verify(ROOT.issue("p-1", now=NOW).der_chain, _anchor(ROOT, state=AuthorityState.RETIRING))


def test_a_state_is_not_claimed_of_a_stranger() -> None:
    """Somebody else's signature under a revoked CA's name says nothing of that CA."""
    device = ROOT.issue("p-1", now=NOW, fault=Fault.FOREIGN_SIGNATURE)
    revoked = _anchor(ROOT, state=AuthorityState.REVOKED)
    assert _refusal(device.der_chain, revoked)[0] is RejectReason.UNKNOWN_CA


def test_a_pending_authority_stands_in_nobodys_way() -> None:
    """Anybody can register another's public intermediate; unproven, it takes no devices away."""
    device = MIDDLE.issue("p-1", now=NOW, send_issuer=True)
    pending = _anchor(MIDDLE, 2, product=2, state=AuthorityState.PENDING)
    assert _verify(device.der_chain, pending, _anchor(ROOT)).product_id == 1
    # And the same certificate, registered pending elsewhere first.
    again = _anchor(ROOT, 1, product=2, state=AuthorityState.PENDING)
    assert _verify(ROOT.issue("p-2", now=NOW).der_chain, again, _anchor(ROOT, 5)).authority_id == 5
    assert _refusal(device.der_chain, pending)[0] is RejectReason.CA_NOT_ACTIVE


def test_a_revoked_intermediate_is_not_passed_over() -> None:
    device = MIDDLE.issue("p-1", now=NOW, send_issuer=True)
    revoked = _anchor(MIDDLE, 2, state=AuthorityState.REVOKED)
    assert _refusal(device.der_chain, revoked, _anchor(ROOT))[0] is RejectReason.CA_REVOKED


def test_a_registration_in_use_goes_before_a_revoked_one() -> None:
    revoked = _anchor(ROOT, 1, product=1, state=AuthorityState.REVOKED)
    assert (
        _verify(ROOT.issue("p-1", now=NOW).der_chain, revoked, _anchor(ROOT, 2, product=2)).authority_id == 2
    )


def test_validity_of_the_certificate() -> None:
    device = ROOT.issue("p-17", now=NOW)
    begin, end = NOW - timedelta(hours=1), NOW + timedelta(days=365)
    second = timedelta(seconds=1)
    identity = _verify(device.der_chain, _anchor(ROOT))
    for inside in (begin, end):
        _verify(device.der_chain, _anchor(ROOT), now=inside)
        check_validity(identity, _anchor(ROOT), inside)
    for outside, reason, detail in [
        (
            end + second,
            RejectReason.CERTIFICATE_EXPIRED,
            "certificate of device 'p-17' expired: valid until 2027-01-01T00:00:00Z,"
            " checked at 2027-01-01T00:00:01Z",
        ),
        (
            begin - second,
            RejectReason.CERTIFICATE_NOT_YET_VALID,
            "certificate of device 'p-17' is not valid yet: from 2025-12-31T23:00:00Z,"
            " checked at 2025-12-31T22:59:59Z",
        ),
    ]:
        assert _refusal(device.der_chain, _anchor(ROOT), now=outside) == (reason, detail)
        with pytest.raises(VerificationError) as caught:
            check_validity(identity, _anchor(ROOT), outside)
        assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_validity_of_the_authority() -> None:
    short = create_authority("short", now=NOW, valid_days=1)
    device = short.issue("p-1", now=NOW)
    later = NOW + timedelta(days=2)
    reason, detail = _refusal(device.der_chain, _anchor(short), now=later)
    assert reason is RejectReason.CA_EXPIRED
    assert detail == (
        "CA 'CN=short' expired: valid until 2026-01-02T00:00:00Z, checked at 2026-01-03T00:00:00Z"
    )
    assert (
        _refusal(device.der_chain, _anchor(short), now=NOW - timedelta(days=2))[0]
        is RejectReason.CA_NOT_ACTIVE
    )
    # An intermediate that nobody registered counts too.
    middle = create_authority("short middle", now=NOW, issuer=ROOT, valid_days=1)
    device = middle.issue("p-1", now=NOW, send_issuer=True)
    assert _refusal(device.der_chain, _anchor(ROOT), now=later)[0] is RejectReason.CA_EXPIRED


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.EXPIRED, RejectReason.CERTIFICATE_EXPIRED),
        (Fault.NOT_YET_VALID, RejectReason.CERTIFICATE_NOT_YET_VALID),
        (Fault.SERVER_AUTH_ONLY, RejectReason.CERTIFICATE_PROFILE),
        (Fault.CA_AS_LEAF, RejectReason.CERTIFICATE_PROFILE),
        (Fault.KEY_CERT_SIGN, RejectReason.CERTIFICATE_PROFILE),
        (Fault.NO_DIGITAL_SIGNATURE, RejectReason.CERTIFICATE_PROFILE),
        (Fault.SLASH_IN_CN, RejectReason.CERTIFICATE_NAME),
        (Fault.NO_CN, RejectReason.CERTIFICATE_NAME),
        (Fault.TWO_CNS, RejectReason.CERTIFICATE_NAME),
    ],
)
def test_faults(fault: Fault, reason: RejectReason) -> None:
    assert _refusal(ROOT.issue("p-1", now=NOW, fault=fault).der_chain, _anchor(ROOT))[0] is reason


def test_legacy_authorities() -> None:
    legacy = create_authority("legacy", now=NOW, key_usage=False)
    device = legacy.issue("p-1", now=NOW)
    anchor = _anchor(legacy)
    assert anchor.legacy
    assert _verify(device.der_chain, anchor)
    # Without the flag the same chain does not pass: the relaxed policy is never the default.
    strict = Anchor(
        authority_id=anchor.authority_id,
        product_id=anchor.product_id,
        certificate=anchor.certificate,
        key_id=anchor.key_id,
        state=anchor.state,
        legacy=False,
    )
    reason, detail = _refusal(device.der_chain, strict)
    assert reason is RejectReason.CHAIN_INVALID
    assert "2.5.29.15" in detail


def test_legacy_does_not_let_other_keys_sign() -> None:
    """Under a legacy CA, an intermediate whose KeyUsage forbids signing stays refused."""
    legacy = create_authority("legacy", now=NOW, key_usage=False)
    key = ec.generate_private_key(ec.SECP256R1())
    assert isinstance(legacy.key, ec.EllipticCurvePrivateKey)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    middle = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "no signer")]))
        .issuer_name(legacy.cert.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(legacy.key, hashes.SHA256())
    )
    device = Authority(cert=middle, key=key).issue("p-1", now=NOW, send_issuer=True)
    reason, detail = _refusal(device.der_chain, _anchor(legacy))
    assert reason is RejectReason.CHAIN_INVALID
    assert "keyCertSign" in detail


def test_a_device_is_no_authority() -> None:
    """A device's key signs a certificate for another name, and sends its own as the intermediate."""
    device = ROOT.issue("p-1", now=NOW)
    forged = Authority(cert=device.certificate, key=device.key).issue("p-2", now=NOW, send_issuer=True)
    assert _refusal(forged.der_chain, _anchor(ROOT))[0] is RejectReason.CHAIN_INVALID


def test_explanation_lists_every_step() -> None:
    chain = parse_chain(BOTTOM.issue("p-1", now=NOW, send_issuer=True).der_chain)
    rules = explain_chain(chain, TrustAnchors([_anchor(ROOT)]), NOW)
    assert [rule.name for rule in rules] == STEPS
    assert all(rule.passed for rule in rules)
    assert rules[3].changes_at == NOW + timedelta(days=3650)
    assert rules[4].changes_at == NOW + timedelta(days=365)
    assert rules[1].detail == "'CN=root' is CA 1 of product 1"
    assert rules[6].detail == "the path holds over 2 intermediates"
    rules = explain_chain(chain, TrustAnchors([_anchor(OTHER)]), NOW)
    assert [rule.passed for rule in rules] == [True, False, None, None, None, None, None]
    begin = NOW - timedelta(hours=1)
    rules = explain_chain(chain, TrustAnchors([_anchor(ROOT)]), begin - timedelta(minutes=1))
    assert rules[4].reason is RejectReason.CERTIFICATE_NOT_YET_VALID
    assert rules[4].changes_at == begin


def test_names_of_strangers_are_made_harmless() -> None:
    evil = create_authority("evil\n\x1b[31m" + "x" * 50, now=NOW)
    _, detail = _refusal(evil.issue("p-1", now=NOW).der_chain, _anchor(ROOT))
    assert detail.isprintable()


def test_anchors_are_found_by_number() -> None:
    anchors = TrustAnchors([_anchor(ROOT, 1), _anchor(OTHER, 2)])
    assert len(anchors) == 2
    found = anchors.by_id(AuthorityId(2))
    assert found is not None
    assert found.certificate == OTHER.cert
    assert anchors.by_id(AuthorityId(3)) is None
