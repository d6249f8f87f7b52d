"""`diagnose` names what the authors of clients get wrong, and the bytes that they should have signed."""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from gateway.device.factory import DeviceCertificate, Fault, create_authority
from gateway.device.messages import Profile, Voice, load_identity
from provisioning.diagnosis import NAMES, Diagnosis, diagnose
from provisioning.envelope import pae, payload_type
from provisioning.errors import RejectReason
from provisioning.topics import Up
from store.times import now_utc

NOW = now_utc()
AUDIENCE = "mqtt.example.com"
TOPIC = "fg/v1/pump-17/hello"
KIND = payload_type("hello")
ROOT = create_authority("Diagnosis CA", now=NOW)
SHA256 = hashes.SHA256()
Change = Callable[[dict[str, Any]], None]


def issue(key: str = "p256") -> DeviceCertificate:
    return ROOT.issue("pump-17", now=NOW, key=key)


def hello_of(made: DeviceCertificate, change: Change = lambda _: None) -> dict[str, Any]:
    voice = Voice(load_identity(made.pem, made.key_pem), audience=AUDIENCE, profile=Profile())
    voice.begin_connection()
    sent = voice.hello(nonce="q3J8vN0xTtWm2K5a", ts=int(NOW.timestamp() * 1000))
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(sent)["payload"]))
    change(payload)
    return payload


def wrap(
    made: DeviceCertificate,
    payload: bytes,
    *,
    signature: bytes | None = None,
    key_id: str | None = None,
    kind: str = KIND,
) -> bytes:
    spki = made.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    right = signature if signature is not None else sign(made.key, pae(kind, payload))
    return json.dumps(
        {
            "payloadType": kind,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {
                    "keyid": key_id or hashlib.sha256(spki).hexdigest(),
                    "sig": base64.b64encode(right).decode(),
                }
            ],
        }
    ).encode()


def sign(key: Any, data: bytes, algorithm: hashes.HashAlgorithm = SHA256) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, ec.ECDSA(algorithm))
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), algorithm)
        case _:
            return bytes(key.sign(data))


def check(data: bytes, **more: Any) -> Diagnosis:
    return diagnose(data, **({"topic": TOPIC, "prefix": "fg/v1", "now": NOW, "audience": AUDIENCE} | more))


def details(diagnosis: Diagnosis) -> dict[str, str]:
    return {rule.name: rule.detail for rule in diagnosis.rules if rule.passed is False}


def raw(signature: bytes, length: int = 32) -> bytes:
    r, s = decode_dss_signature(signature)
    return r.to_bytes(length, "big") + s.to_bytes(length, "big")


KEYS = ("p256", "rsa", "ed25519")


@pytest.mark.parametrize("algorithm", KEYS)
def test_nothing_is_wrong_with_a_right_message(algorithm: str) -> None:
    made = issue(algorithm)
    payload = json.dumps(hello_of(made)).encode()
    diagnosis = check(wrap(made, payload))
    assert [(rule.name, rule.passed) for rule in diagnosis.rules] == [(name, True) for name in NAMES]
    assert diagnosis.reason is None
    assert diagnosis.signed == pae(KIND, payload)


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize(
    ("signed", "words"),
    [
        (lambda kind, payload: payload, "over the payload alone, without its pre-authentication encoding"),
        (lambda kind, payload: payload + b"\n", "over the payload and a trailing newline"),
        (lambda kind, payload: pae(kind, payload) + b"\n", "over the right bytes and a trailing newline"),
        (lambda kind, payload: pae(kind, payload + b"\n"), "a trailing newline that was not sent"),
        (lambda kind, payload: base64.b64encode(payload), "over the payload's base64"),
        (lambda kind, payload: pae(kind, base64.b64encode(payload)), "encoding of the payload's base64"),
        (lambda kind, payload: pae("application/json", payload), "over the payload type application/json"),
        (lambda kind, payload: hashlib.sha256(pae(kind, payload)).digest(), "hashed twice"),
        (
            lambda kind, payload: pae(payload_type("presence"), payload),
            "over the payload type application/vnd.fleetgate.presence.v1+json",
        ),
    ],
)
def test_what_was_signed_instead(algorithm: str, signed: Any, words: str) -> None:
    made = issue(algorithm)
    payload = json.dumps(hello_of(made)).encode()
    diagnosis = check(wrap(made, payload, signature=sign(made.key, signed(KIND, payload))))
    assert list(details(diagnosis)) == ["signature"]
    assert words in details(diagnosis)["signature"]
    assert diagnosis.reason == RejectReason.BAD_SIGNATURE


def test_how_it_was_signed_instead() -> None:
    made = issue()
    payload = json.dumps(hello_of(made)).encode()
    right = pae(KIND, payload)
    for signature, words in (
        (raw(sign(made.key, right)), "it was made as raw r‖s; DER is needed"),
        (
            raw(sign(made.key, payload)),
            "over the payload alone, without its pre-authentication encoding; as raw",
        ),
        (sign(made.key, right, hashes.SHA384()), "it was made with sha384; sha256 is needed"),
        (sign(made.key, right) + b"\n", "a newline follows the signature"),
        (base64.b64encode(sign(made.key, right)), "base64 was applied twice"),
        (sign(made.key, b"something else"), "none of the usual mistakes explains it"),
    ):
        found = details(check(wrap(made, payload, signature=signature)))
        assert words in found["signature"]
    other = issue("rsa")
    payload = json.dumps(hello_of(other)).encode()
    assert isinstance(other.key, rsa.RSAPrivateKey)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    signature = other.key.sign(pae(KIND, payload), pss, hashes.SHA256())
    assert "RSA-PSS" in details(check(wrap(other, payload, signature=signature)))["signature"]


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"aud": "other.example.com"}, "audience", "aud must be 'mqtt.example.com'"),
        ({"topic": "fg/v1/pump-18/hello"}, "topic_in_payload", "topic must be the one it came on"),
        ({"seq": "1"}, "payload", "seq"),
        ({"nonce": "short"}, "payload", "nonce"),
        ({"ts": int(NOW.timestamp())}, "time", "is it in seconds? milliseconds are needed"),
        ({"ts": int(NOW.timestamp() * 1000) - 400_000}, "time", "400 s behind this machine's clock"),
        ({"ts": int(NOW.timestamp() * 1000) + 60_000}, "time", "60 s ahead of this machine's clock"),
        ({"ts": None}, "time", "neither ts nor challenge"),
    ],
)
def test_what_the_payload_says_wrong(change: dict[str, Any], rule: str, words: str) -> None:
    made = issue()
    payload = json.dumps(hello_of(made, lambda document: document.update(change))).encode()
    found = details(check(wrap(made, payload)))
    assert list(found) == [rule]
    assert words in found[rule]


def test_one_mistake_does_not_hide_the_next() -> None:
    made = issue()
    wrong = {"aud": "x", "topic": "fg/v1/pump-17/presence", "ts": 1}
    payload = json.dumps(hello_of(made, lambda document: document.update(wrong))).encode()
    found = details(check(wrap(made, payload, signature=sign(made.key, payload))))
    assert set(found) == {"audience", "topic_in_payload", "time", "signature"}


def test_a_key_id_made_of_something_else() -> None:
    made = issue()
    payload = json.dumps(hello_of(made)).encode()
    certificate = made.certificate.public_bytes(serialization.Encoding.DER)
    found = details(check(wrap(made, payload, key_id=hashlib.sha256(certificate).hexdigest())))
    assert found["key_id"].endswith("it is the SHA-256 of the certificate")
    found = details(check(wrap(made, payload, key_id="0" * 64)))
    assert found["key_id"].endswith("it is another")


def test_a_chain_that_is_out_of_order() -> None:
    between = create_authority("Diagnosis line", now=NOW, issuer=ROOT)
    made = between.issue("pump-17", now=NOW, send_issuer=True)
    payload = hello_of(made)
    assert len(payload["chain"]) == 2
    assert details(check(wrap(made, json.dumps(payload).encode()))) == {}
    payload["chain"].reverse()
    found = details(check(wrap(made, json.dumps(payload).encode())))
    assert "certificate 1 of 2 was not issued by the next one" in found["certificates"]
    assert "that of certificate 2; the device's own certificate goes first" in found["key_id"]


def test_a_certificate_of_another_key() -> None:
    made, other = issue(), issue()
    payload = json.dumps(hello_of(made)).encode()
    found = details(check(wrap(other, payload)))
    assert set(found) == {"key_id", "signature"}


def test_a_message_without_certificates_needs_that_of_the_device() -> None:
    made = issue()
    voice = Voice(load_identity(made.pem, made.key_pem), audience=AUDIENCE, profile=Profile())
    will = voice.begin_connection()
    topic = voice.topic(Up.PRESENCE)
    without = check(will, topic=topic)
    assert {rule.name: rule.passed for rule in without.rules}["signature"] is None
    assert without.reason is None
    with_it = check(will, topic=topic, certificate=made.certificate)
    assert {rule.name: rule.passed for rule in with_it.rules}["signature"] is True
    foreign = check(will, topic=topic, certificate=issue().certificate)
    assert foreign.reason == RejectReason.KEY_MISMATCH


def test_a_wrong_topic_or_type() -> None:
    made = issue()
    payload = json.dumps(hello_of(made)).encode()
    found = details(check(wrap(made, payload, kind="application/json")))
    assert found["payload_type"] == f"payloadType must be {KIND} on this topic; it is another"
    assert "over the payload type application/json" in found["signature"]
    assert (
        "reads nothing and answers nothing"
        in details(check(wrap(made, payload), topic="fg/v1/a/b/hello"))["topic"]
    )
    renamed = details(check(wrap(made, payload), topic="fg/v1/pump-18/hello"))
    assert renamed["topic_name"] == "the certificate is 'pump-17', the topic is 'pump-18'"


def test_what_is_no_envelope() -> None:
    found = check(b"hello")
    assert details(found).keys() == {"envelope"}
    assert found.signed is None
    late = check(wrap(issue(), b"{}"), now=NOW + timedelta(days=1))
    assert late.reason == RejectReason.UNSUPPORTED_VERSION


def test_a_certificate_whose_key_may_not_sign_is_said_and_not_raised() -> None:
    made = issue()
    voice = Voice(load_identity(made.pem, made.key_pem), audience=AUDIENCE, profile=Profile())
    will = voice.begin_connection()
    weak = ROOT.issue("pump-17", now=NOW, fault=Fault.RSA_1024).certificate
    found = check(will, topic=voice.topic(Up.PRESENCE), certificate=weak)
    assert found.reason == RejectReason.KEY_NOT_ALLOWED
    assert "an RSA key of 1024 bits" in details(found)["certificates"]
