"""Envelopes that are well formed, and whose signature or key id is wrong (protocol, sections 2 and 4)."""

import base64
import hashlib
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from making import pki
from making.keys import b64, compact, edwards, key_id, pae, seal, sign
from making.messages import DEVICES, certificate, payload_of, payload_type, sealed, topic


def add(cases: Any) -> None:
    """Signatures, then key ids, then whose message it is."""
    _encodings(cases)
    _algorithms(cases)
    _key_ids(cases)
    _whose(cases)


def _encodings(cases: Any) -> None:
    """Signed by the right key with the right algorithm, over the wrong bytes."""
    kind = payload_type("hello")
    payload = payload_of("ed25519", "hello", attributes={"site": "Łódź"})
    right = pae(kind, payload)
    wrong: list[tuple[str, str, bytes]] = [
        ("signed-payload-alone", "The payload is signed without the pre-authentication encoding.", payload),
        (
            "signed-base64",
            "The encoding is made over the payload's base64, not over its bytes.",
            pae(kind, b64(payload).encode()),
        ),
        ("signed-with-newline", "A line feed stands at the end of the signed bytes.", right + b"\n"),
        (
            "signed-payload-with-newline",
            "The payload that was signed ends with a line feed, the one that was sent does not.",
            pae(kind, payload + b"\n"),
        ),
        (
            "signed-length-in-characters",
            "The payload's length counts characters, not bytes.",
            right.replace(f" {len(payload)} ".encode(), f" {len(payload.decode())} ".encode(), 1),
        ),
        (
            "signed-length-with-zeros",
            "The payload's length is written with leading zeros.",
            right.replace(f" {len(payload)} ".encode(), f" {len(payload):06} ".encode(), 1),
        ),
        (
            "signed-other-version",
            "The encoding begins with `DSSEv2`.",
            right.replace(b"DSSEv1", b"DSSEv2", 1),
        ),
        (
            "signed-without-type",
            "The encoding leaves out the type and its length.",
            b"DSSEv1 %d %b" % (len(payload), payload),
        ),
        (
            "signed-other-type",
            "The encoding names the type of a presence, the envelope that of a hello.",
            pae(payload_type("presence"), payload),
        ),
        (
            "signed-digest",
            "The SHA-256 of the encoding is signed in its place.",
            hashlib.sha256(right).digest(),
        ),
    ]
    key = DEVICES["ed25519"][1]
    for name, about, data in wrong:
        assert data != right, name
        cases.add(name, about, "bad_signature", compact(seal(key, kind, payload, sign(key, data))))
    changed = payload.replace(b'"1.4.0"', b'"1.4.1"')
    assert changed != payload
    cases.add(
        "payload-changed", "One character of the payload was changed after signing.", "bad_signature",
        compact(seal(key, kind, changed, sign(key, right))),
    )  # fmt: skip
    cases.signed(
        "payload-ends-with-newline", "Nothing is wrong: the line feed is a part of the payload, signed and sent.",
        None, payload + b"\n",
    )  # fmt: skip


def _algorithms(cases: Any) -> None:
    def bad(name: str, about: str, key_name: str, signature: bytes) -> None:
        key = DEVICES[key_name][1]
        payload = payload_of(key_name, "hello")
        message = compact(seal(key, payload_type("hello"), payload, signature))
        cases.add(name, about, "bad_signature", message, key=key_name)

    def right(key_name: str, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
        return sign(DEVICES[key_name][1], _encoded(key_name), algorithm)

    for key_name, size in (("p256", 32), ("p384", 48)):
        r, s = decode_dss_signature(right(key_name))
        bad(
            f"{key_name}-raw", f"The ECDSA signature is r‖s, {2 * size} bytes, and not DER.", key_name,
            r.to_bytes(size, "big") + s.to_bytes(size, "big"),
        )  # fmt: skip
    bad("p256-sha384", "A P-256 key signs with SHA-384.", "p256", right("p256", hashes.SHA384()))
    bad("p384-sha256", "A P-384 key signs with SHA-256.", "p384", right("p384", hashes.SHA256()))
    bad("p256-trailing-byte", "A byte follows the DER of the signature.", "p256", right("p256") + b"\0")
    bad("rsa-sha512", "An RSA key signs with SHA-512.", "rsa2048", right("rsa2048", hashes.SHA512()))
    bad(
        "rsa-pss", "The RSA signature is PSS, with a salt of no bytes, and not PKCS #1 v1.5.", "rsa2048",
        _pss(),
    )  # fmt: skip
    bad("ed25519-short", "The last byte of the signature is missing.", "ed25519", right("ed25519")[:-1])
    flipped = bytearray(right("ed25519"))
    flipped[5] ^= 1
    bad("ed25519-bit-flipped", "One bit of the signature is flipped.", "ed25519", bytes(flipped))
    bad(
        "sig-in-hex", "`sig` is hex. It reads as base64 too, of other bytes.", "ed25519",
        _as_base64(right("ed25519").hex()),
    )  # fmt: skip
    bad(
        "signed-by-another-key", "Another key has signed; `keyid` and certificate are the device's.", "ed25519",
        sign(edwards("a stranger"), _encoded("ed25519")),
    )  # fmt: skip
    key = DEVICES["ed25519"][1]
    presence = payload_of("ed25519", "presence")
    cases.add(
        "presence-bad-signature", "A presence whose signature is that of another one. Nothing is answered.",
        "bad_signature",
        compact(
            seal(
                key, payload_type("presence"), presence,
                sign(key, pae(payload_type("presence"), payload_of("ed25519", "presence", seq=9))),
            )
        ),
        verb="presence",
    )  # fmt: skip


def _key_ids(cases: Any) -> None:
    _, p256 = DEVICES["p256"]
    compressed = p256.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    point = p256.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    wrong = [
        ("keyid-of-another", "`keyid` is that of another device's key.", key_id(DEVICES["p384"][1])),
        (
            "keyid-of-certificate",
            "`keyid` is the SHA-256 of the certificate, not of its public key.",
            hashlib.sha256(pki.der(certificate("p256"))).hexdigest(),
        ),
        (
            "keyid-of-point",
            "`keyid` is the SHA-256 of the elliptic point, not of the SubjectPublicKeyInfo around it.",
            hashlib.sha256(point).hexdigest(),
        ),
        (
            "keyid-of-compressed-point",
            "`keyid` is the SHA-256 of the SubjectPublicKeyInfo with the point compressed.",
            hashlib.sha256(_compressed_spki(compressed)).hexdigest(),
        ),
    ]
    for name, about, wrong_id in wrong:
        envelope = sealed("p256", "hello", payload_of("p256", "hello"))
        envelope["signatures"][0]["keyid"] = wrong_id
        cases.add(name, about, "key_mismatch", compact(envelope), key="p256")


def _whose(cases: Any) -> None:
    """Rightly signed, and for somebody else."""

    def said(name: str, about: str, reason: str, verb: str = "hello", **changes: Any) -> None:
        cases.signed(name, about, reason, payload_of("ed25519", verb, **changes), verb=verb)

    said("audience-of-another", "`aud` names another gateway.", "wrong_audience", aud="mqtt.example.org")
    said("audience-other-case", "`aud` differs in case.", "wrong_audience", aud="MQTT.example.com")
    said("topic-of-another", "`topic` is another device's.", "wrong_topic", topic=topic("p256", "hello"))
    said(
        "topic-of-another-verb", "`topic` is this device's, of another verb.", "wrong_topic",
        topic=topic("ed25519", "presence"),
    )  # fmt: skip
    said(
        "topic-with-slash", "`topic` ends with a slash.", "wrong_topic", topic=topic("ed25519", "hello") + "/"
    )
    said(
        "presence-topic-of-another", "A presence with another device's `topic`. Nothing is answered.",
        "wrong_topic", "presence", topic=topic("p256", "presence"),
    )  # fmt: skip
    payload = payload_of("p256", "hello", topic=topic("ed25519", "hello"))
    cases.add(
        "certificate-of-another",
        "Another device speaks on this topic, with its own key and certificate; only their CN is wrong here.",
        "wrong_topic", compact(sealed("p256", "hello", payload)),
    )  # fmt: skip


def _encoded(key_name: str) -> bytes:
    return pae(payload_type("hello"), payload_of(key_name, "hello"))


def _compressed_spki(point: bytes) -> bytes:
    """RFC 5480 §2, around a point of 33 bytes."""
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    bits = b"\x03" + bytes([len(point) + 1]) + b"\0" + point
    return b"\x30" + bytes([len(algorithm) + len(bits)]) + algorithm + bits


def _pss() -> bytes:
    key = DEVICES["rsa2048"][1]
    assert isinstance(key, rsa.RSAPrivateKey)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=0)  # no salt: the same every time
    return key.sign(_encoded("rsa2048"), pss, hashes.SHA256())


def _as_base64(text: str) -> bytes:
    """The bytes whose base64 is `text`."""
    return base64.b64decode(text, validate=True)
