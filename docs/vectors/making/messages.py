"""The devices that speak in `envelopes.json`, and what they say when nothing is wrong."""

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from making import pki
from making.keys import RFC_8032_TEST_1, PrivateKey, b64, compact, elliptic, load_rsa, seal

AUDIENCE = "mqtt.example.com"
PREFIX = "fg/v1"
NOW = 1767225600000  # 2026-01-01T00:00:00Z, as in docs/protocol.md
CONN, BOOT = "7c1f0a9e55d24b38", "02b9d6c4e18f7a60"

CA = pki.authority("Pump CA")

DEVICES: dict[str, tuple[str, PrivateKey]] = {
    "p256": ("pump-16", elliptic(ec.SECP256R1(), "pump-16")),
    "p384": ("pump-18", elliptic(ec.SECP384R1(), "pump-18")),
    "rsa2048": ("pump-19", load_rsa()),
    "ed25519": ("pump-17", ed25519.Ed25519PrivateKey.from_private_bytes(RFC_8032_TEST_1)),
}
"""Key by name, and whose it is."""


def certificate(key_name: str) -> x509.Certificate:
    """The certificate of a device."""
    name, key = DEVICES[key_name]
    return pki.leaf(name, key, CA, serial=1000 + list(DEVICES).index(key_name))


def topic(key_name: str, verb: str) -> str:
    """Where a device says `verb`."""
    return f"{PREFIX}/{DEVICES[key_name][0]}/{verb}"


def payload_type(verb: str) -> str:
    """The media type of a verb's payload."""
    return f"application/vnd.fleetgate.{verb}.v1+json"


def document(key_name: str, verb: str) -> dict[str, Any]:
    """A message with nothing wrong in it; a hello carries the certificate, so that it stands alone."""
    head = {
        "v": 1,
        "aud": AUDIENCE,
        "topic": topic(key_name, verb),
        "conn": CONN,
        "boot": BOOT,
        "seq": 1,
    }
    match verb:
        case "hello":
            return head | {
                "ts": NOW,
                "nonce": "q3J8vN0xTtWm2K5a",
                "chain": [b64(pki.der(certificate(key_name)))],
                "hardware": {"model": "pump"},
                "firmware": {"version": "1.4.0"},
            }
        case "presence":
            return head | {"seq": 2, "state": "online"}
        case "progress":
            return head | {
                "seq": 3,
                "offer_id": "252116099483605972",
                "state": "downloading",
                "percent": 40,
            }
    raise AssertionError(verb)


def payload_of(key_name: str, verb: str, **changes: Any) -> bytes:
    """A message's bytes, with some members changed; None takes one away."""
    made = document(key_name, verb) | changes
    return compact({name: value for name, value in made.items() if value is not None})


def sealed(key_name: str, verb: str, payload: bytes) -> dict[str, Any]:
    """The envelope of a payload, rightly signed."""
    return seal(DEVICES[key_name][1], payload_type(verb), payload)
