"""DSSE envelopes: taken apart strictly, and proven by the key's own algorithm only."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway.device.factory import KeyKind, new_key
from provisioning.envelope import (
    MAX_RSA_EXPONENT,
    check_signing_key,
    key_id_of,
    load_spki,
    pae,
    parse_envelope,
    payload_type,
    previous_statement,
    sign,
    sign_envelope,
    spki_of,
    verify_envelope,
    verify_signature,
)
from provisioning.errors import MessageError, RejectReason, VerificationError

ALLOWED = ["p256", "p384", "rsa", "ed25519"]
KEYS = {kind: new_key(kind) for kind in [*ALLOWED, KeyKind.RSA_1024, KeyKind.SECP256K1]}


def _document(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(sign_envelope(KEYS["p256"], payload_type("hello"), b"{}"))
    whole.update(changes)
    return whole


def _signature(**changes: Any) -> dict[str, Any]:
    return _document(signatures=[{**_document()["signatures"][0], **changes}])


def test_pae_is_that_of_the_standard() -> None:
    # The example of DSSE's protocol.md.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    # Lengths are of bytes, not characters.
    assert pae("ü", b"") == b"DSSEv1 2 \xc3\xbc 0 "


@pytest.mark.parametrize("kind", ALLOWED)
def test_round_trip(kind: str) -> None:
    key = KEYS[kind]
    envelope = parse_envelope(sign_envelope(key, payload_type("hello"), b'{"v":1}'))
    assert envelope.payload_type == "application/vnd.fleetgate.hello.v1+json"
    assert envelope.payload == b'{"v":1}'
    assert envelope.key_id == key_id_of(key.public_key())
    verify_envelope(envelope, load_spki(spki_of(key.public_key())))


@pytest.mark.parametrize("kind", ALLOWED)
def test_anything_changed_is_a_bad_signature(kind: str) -> None:
    key = KEYS[kind]
    public = key.public_key()
    data = pae(payload_type("hello"), b"payload")
    signature = sign(key, data)
    verify_signature(public, signature, data)
    for bad_signature, bad_data in [
        (signature, pae(payload_type("presence"), b"payload")),
        (signature, pae(payload_type("hello"), b"Payload")),
        (signature[:-1], data),
        (signature + b"\0", data),
        (bytes([signature[0] ^ 1]) + signature[1:], data),
        (b"\0", data),
    ]:
        with pytest.raises(VerificationError) as caught:
            verify_signature(public, bad_signature, bad_data)
        assert caught.value.reason is RejectReason.BAD_SIGNATURE
        assert key_id_of(public) in caught.value.detail
    with pytest.raises(VerificationError):
        verify_signature(new_key(kind).public_key(), signature, data)


def test_the_algorithm_is_the_keys() -> None:
    data = b"data"
    p256, rsa_key = KEYS["p256"], KEYS["rsa"]
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    for public, signature in [
        (p256.public_key(), p256.sign(data, ec.ECDSA(hashes.SHA384()))),
        (rsa_key.public_key(), rsa_key.sign(data, pss, hashes.SHA256())),
        (rsa_key.public_key(), rsa_key.sign(data, padding.PKCS1v15(), hashes.SHA512())),
    ]:
        with pytest.raises(VerificationError, match="bad_signature"):
            verify_signature(public, signature, data)


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        ([], "expected a JSON object, got list"),
        (_document(payloadType=None), "'payloadType' must be 1–128 printable ASCII characters"),
        (_document(payloadType="a b"), "'payloadType' must be 1–128 printable ASCII characters"),
        (_document(payloadType="a" * 129), "'payloadType' must be 1–128 printable ASCII characters"),
        (_document(payloadType="a\n"), "'payloadType' must be 1–128 printable ASCII characters"),
        (_document(signatures=[]), "'signatures' must be a list of exactly one, got 0"),
        (_document(signatures=None), "'signatures' must be a list of exactly one, got nothing"),
        (
            _document(signatures=_document()["signatures"] * 2),
            "'signatures' must be a list of exactly one, got 2",
        ),
        (_document(signatures=["x"]), "the signature must be an object, got str"),
        (_signature(keyid="AB" * 32), "'keyid' must be 64 lower-case hexadecimal digits"),
        (_signature(keyid="ab" * 31), "'keyid' must be 64 lower-case hexadecimal digits"),
        (_signature(keyid="ab" * 32 + "\n"), "'keyid' must be 64 lower-case hexadecimal digits"),
        (_signature(sig=""), "'sig' must be 1–1024 bytes, got 0"),
        (_signature(sig=base64.b64encode(b"x" * 1025).decode()), "'sig' must be 1–1024 bytes, got 1025"),
        (_signature(sig=1), "'sig' must be a string of base64, got int"),
        (_document(payload=None), "'payload' must be a string of base64, got nothing"),
        (_document(payload="e30"), "'payload' is not standard base64"),
        (_document(payload="e31="), "'payload' is not standard base64"),
        (_document(payload="e30=\n"), "'payload' is not standard base64"),
        (_document(payload="e30=e30="), "'payload' is not standard base64"),
        (_document(payload="_-8="), "'payload' is not standard base64"),
        (_document(payload="ｅ30="), "'payload' is not standard base64"),
    ],
)
def test_malformed(document: object, detail: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_envelope(json.dumps(document).encode())
    assert caught.value.reason is RejectReason.MALFORMED_ENVELOPE
    assert caught.value.detail.startswith(detail)


def test_unknown_members_are_ignored() -> None:
    document = _signature(note="x")
    document["more"] = [1]
    assert parse_envelope(json.dumps(document).encode()).payload == b"{}"


def test_size_and_json_faults_have_their_own_words() -> None:
    with pytest.raises(MessageError, match="message_too_large"):
        parse_envelope(b" " * 16_385)
    with pytest.raises(MessageError, match="malformed_json"):
        parse_envelope(b"{")


@given(st.binary(max_size=200), st.text("abc/+.", min_size=1, max_size=20))
def test_every_payload_comes_back(payload: bytes, kind: str) -> None:
    envelope = parse_envelope(sign_envelope(KEYS["ed25519"], kind, payload))
    assert (envelope.payload, envelope.payload_type) == (payload, kind)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: KEYS[KeyKind.RSA_1024].public_key(), "an RSA key of 1024 bits"),
        (lambda: KEYS[KeyKind.SECP256K1].public_key(), "a key on the curve secp256k1"),
        (lambda: ec.generate_private_key(ec.SECP521R1()).public_key(), "a key on the curve secp521r1"),
        (lambda: dsa.generate_private_key(2048).public_key(), "a key of kind DSAPublicKey"),
    ],
)
def test_keys_that_sign_nothing_here(make: Callable[[], Any], found: str) -> None:
    key = make()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for attempt in (lambda: check_signing_key(key), lambda: load_spki(der)):
        with pytest.raises(VerificationError) as caught:
            attempt()
        assert caught.value.reason is RejectReason.KEY_NOT_ALLOWED
        assert caught.value.detail.startswith(found)


def test_weak_keys_neither_sign_nor_verify() -> None:
    for kind in (KeyKind.RSA_1024, KeyKind.SECP256K1):
        with pytest.raises(VerificationError, match="key_not_allowed"):
            sign(KEYS[kind], b"data")
        with pytest.raises(VerificationError, match="key_not_allowed"):
            verify_signature(KEYS[kind].public_key(), b"x", b"data")


def test_an_exponent_that_makes_verifying_slow_is_refused() -> None:
    modulus = (1 << 3071) + 1
    for exponent, allowed in ((65537, True), (MAX_RSA_EXPONENT, True), (MAX_RSA_EXPONENT + 2, False)):
        spki = spki_of(rsa.RSAPublicNumbers(exponent, modulus).public_key())
        if allowed:
            load_spki(spki)
            continue
        with pytest.raises(VerificationError, match="exponent has more than 32 bits"):
            load_spki(spki)


@pytest.mark.parametrize(
    ("spki", "reason"),
    [
        (b"", RejectReason.MALFORMED_CERTIFICATE),
        (b"\x30\x00", RejectReason.MALFORMED_CERTIFICATE),
        (b"\x30" * 3000, RejectReason.KEY_NOT_ALLOWED),
    ],
)
def test_bytes_that_are_no_key(spki: bytes, reason: RejectReason) -> None:
    with pytest.raises(VerificationError) as caught:
        load_spki(spki)
    assert caught.value.reason is reason


@pytest.mark.parametrize("kind", ALLOWED)
def test_a_key_has_one_encoding(kind: str) -> None:
    public = KEYS[kind].public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert spki_of(public) == der
    assert key_id_of(public) == hashlib.sha256(der).hexdigest()


def test_a_compressed_point_is_the_same_key() -> None:
    """Two encodings of one key must not become two credentials (I1: one device per key)."""
    public = KEYS["p256"].public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    assert key_id_of(load_spki(compressed)) == key_id_of(public)


def test_previous_statement_is_bound_to_gateway_topic_and_key() -> None:
    statement = previous_statement("gate.example", "p-1", b"spki")
    assert statement == b"DSSEv1 37 application/vnd.fleetgate.previous.v1 21 gate.example\np-1\nspki"
    assert (
        len({previous_statement(*one) for one in [("a", "b", b"c"), ("a", "x", b"c"), ("x", "b", b"c")]}) == 3
    )
    assert isinstance(KEYS["ed25519"], ed25519.Ed25519PrivateKey)
