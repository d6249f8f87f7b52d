"""The test keys, and what is done with them: key ids, signatures, envelopes (protocol, sections 2 and 4).

Every key is public: never use one for anything else. All signatures are deterministic (ECDSA by RFC 6979), so
that the files can be compared byte for byte.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
    ),
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}
"""Of the curves' base points (SEC 2)."""

RFC_8032_TEST_1 = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
"""The key of the worked examples in docs/protocol.md."""


def elliptic(curve: ec.EllipticCurve, seed: str) -> ec.EllipticCurvePrivateKey:
    """The key that a seed stands for: SHA-512 of it, brought into the curve's range."""
    number = int.from_bytes(hashlib.sha512(f"fleetgate vectors: {seed}".encode()).digest(), "big")
    return ec.derive_private_key(1 + number % (ORDERS[curve.name] - 1), curve)


def edwards(seed: str) -> ed25519.Ed25519PrivateKey:
    """The key that a seed stands for: SHA-256 of it."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(
        hashlib.sha256(f"fleetgate vectors: {seed}".encode()).digest()
    )


def load_rsa() -> rsa.RSAPrivateKey:
    """The one RSA key: primes are not derived in a few lines, so it lies beside this file."""
    pem = Path(__file__).with_name("rsa-2048.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def spki(key: PrivateKey) -> bytes:
    """The public key as DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(key: PrivateKey) -> str:
    """SHA-256 of `spki`, in hex."""
    return hashlib.sha256(spki(key)).hexdigest()


def describe(key: PrivateKey, **more: Any) -> dict[str, Any]:
    """A key as the files show it."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    match key:
        case ec.EllipticCurvePrivateKey():
            kind = {"secp256r1": "P-256", "secp384r1": "P-384"}.get(key.curve.name, key.curve.name)
        case rsa.RSAPrivateKey():
            kind = f"RSA-{key.key_size}"
        case ed25519.Ed25519PrivateKey():
            kind = "Ed25519"
    return {
        "kind": kind,
        "keyid": key_id(key),
        "spki": b64(spki(key)),
        "private_key_pem": pem.decode(),
        **more,
    }


def b64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 §4)."""
    return base64.b64encode(data).decode()


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (protocol.md of DSSE)."""
    kind = payload_type.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def sign(key: PrivateKey, data: bytes, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    """A signature of section 4; with another hash where a case asks for one."""
    match key:
        case ec.EllipticCurvePrivateKey():
            usual = hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()
            return key.sign(data, ec.ECDSA(algorithm or usual, deterministic_signing=True))
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), algorithm or hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)


def compact(document: object) -> bytes:
    """JSON without spaces, UTF-8."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def seal(
    key: PrivateKey, payload_type: str, payload: bytes, signature: bytes | None = None
) -> dict[str, Any]:
    """The envelope's members; `signature` in place of the right one."""
    made = sign(key, pae(payload_type, payload)) if signature is None else signature
    return {
        "payloadType": payload_type,
        "payload": b64(payload),
        "signatures": [{"keyid": key_id(key), "sig": b64(made)}],
    }


def expected(reason: str | None, **more: Any) -> Mapping[str, Any]:
    """What a receiver must make of a case: accept it, or refuse it with this word."""
    if reason is None:
        return {"result": "accepted", **more}
    return {"result": "refused", "reason": reason, **more}
