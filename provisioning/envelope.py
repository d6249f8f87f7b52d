"""The signed envelope around every device's message: DSSE with exactly one signature (protocol, section 4).

Decides whether bytes are such an envelope and whether a key signed it. DSSE signs raw bytes, so no canonical
JSON is needed (https://github.com/secure-systems-lab/dsse, protocol.md). What the payload means, whose the
key is and whether the message is fresh is left to others.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.ids import KeyId
from provisioning.strictjson import MAX_MESSAGE_BYTES, parse_json

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
"""A key that may sign messages, once `check_signing_key` has seen it."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

MIN_RSA_BITS: Final = 2048
"""NIST SP 800-57 part 1: below this RSA has less than 112 bits of strength."""
MAX_RSA_BITS: Final = 8192
"""Verification time grows with the square; 8192 bits still take under a millisecond."""

MAX_RSA_EXPONENT: Final = (1 << 32) - 1
"""Real keys have 65537. An exponent as long as the modulus makes one verification take 15 ms, and a chain asks for
many; Go takes 31 bits, Windows 32."""

PREVIOUS_TYPE: Final = "application/vnd.fleetgate.previous.v1"

_KEY_ID: Final = re.compile(r"[0-9a-f]{64}")
_PAYLOAD_TYPE: Final = re.compile(r"[!-~]{1,128}")
_MAX_SIGNATURE_BYTES: Final = MAX_RSA_BITS // 8
_MAX_SPKI_BYTES: Final = 2048  # RSA-8192 measures 1062
_P256: Final = ec.ECDSA(hashes.SHA256())
_P384: Final = ec.ECDSA(hashes.SHA384())
_PKCS1V15: Final = padding.PKCS1v15()
_SHA256: Final = hashes.SHA256()


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message as signed, taken apart and still unproven.

    Attributes:
        payload_type: the media type that was signed with the payload.
        payload: the signed bytes.
        key_id: which key is said to have signed.
        signature: DER for ECDSA; the scheme's own bytes for RSA and Ed25519.
    """

    payload_type: str
    payload: bytes
    key_id: KeyId
    signature: bytes


def payload_type(verb: str) -> str:
    """The media type of a verb's payload in protocol v1."""
    return f"application/vnd.fleetgate.{verb}.v1+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature covers: the pre-authentication encoding (DSSE protocol.md).

    Args:
        payload_type: media type, encoded in UTF-8.
        payload: the raw bytes, not their base64.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Envelope:
    """Take a message apart without believing anything in it.

    Members that are not named here are ignored, as DSSE asks.

    Args:
        data: the message as it came from the broker, JSON in UTF-8.
        max_bytes: the most that `data` may measure, in bytes.

    Raises:
        MessageError: MESSAGE_TOO_LARGE, MALFORMED_JSON, or MALFORMED_ENVELOPE with the member at fault.
    """
    document = parse_json(data, max_bytes)
    if not isinstance(document, dict):
        _refuse(f"expected a JSON object, got {_kind(document)}")
    kind = document.get("payloadType")
    if not isinstance(kind, str) or _PAYLOAD_TYPE.fullmatch(kind) is None:
        _refuse("'payloadType' must be 1–128 printable ASCII characters")
    signatures = document.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        count = f"{len(signatures)}" if isinstance(signatures, list) else _kind(signatures)
        _refuse(f"'signatures' must be a list of exactly one, got {count}")
    signature = signatures[0]
    if not isinstance(signature, dict):
        _refuse(f"the signature must be an object, got {_kind(signature)}")
    key_id = signature.get("keyid")
    if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
        _refuse("'keyid' must be 64 lower-case hexadecimal digits: the SHA-256 of the public key's DER")
    sig = _decode_base64(signature.get("sig"), "sig")
    if not 1 <= len(sig) <= _MAX_SIGNATURE_BYTES:
        _refuse(f"'sig' must be 1–{_MAX_SIGNATURE_BYTES} bytes, got {len(sig)}")
    return Envelope(
        payload_type=kind,
        payload=_decode_base64(document.get("payload"), "payload"),
        key_id=KeyId(key_id),
        signature=sig,
    )


def verify_envelope(envelope: Envelope, public_key: PublicKey) -> None:
    """Prove that `public_key` signed `envelope`.

    Raises:
        VerificationError: BAD_SIGNATURE; KEY_NOT_ALLOWED where the key is of a kind that signs nothing here.
    """
    verify_signature(public_key, envelope.signature, pae(envelope.payload_type, envelope.payload))


def verify_signature(public_key: PublicKey, signature: bytes, data: bytes) -> None:
    """Prove that `public_key` made `signature` over `data`; the algorithm is the key's, never the message's.

    P-256 with SHA-256 and P-384 with SHA-384 (ECDSA, DER), RSA PKCS #1 v1.5 with SHA-256, Ed25519.

    Raises:
        VerificationError: BAD_SIGNATURE; KEY_NOT_ALLOWED where the key is of a kind that signs nothing here.
    """
    try:
        match public_key:
            case ec.EllipticCurvePublicKey():
                public_key.verify(signature, data, _ecdsa_of(public_key.curve))
            case ed25519.Ed25519PublicKey():
                public_key.verify(signature, data)
            case rsa.RSAPublicKey():
                _check_rsa_bits(public_key.key_size)
                public_key.verify(signature, data, _PKCS1V15, _SHA256)
    except InvalidSignature:
        raise VerificationError(
            RejectReason.BAD_SIGNATURE,
            f"the signature was not made over this message by key {key_id_of(public_key)}",
        ) from None


def sign(private_key: PrivateKey, data: bytes) -> bytes:
    """Sign `data` as a device does, with the algorithm that the key implies.

    Raises:
        VerificationError: KEY_NOT_ALLOWED where the key is of a kind that signs nothing here.
    """
    match private_key:
        case ec.EllipticCurvePrivateKey():
            return private_key.sign(data, _ecdsa_of(private_key.curve))
        case ed25519.Ed25519PrivateKey():
            return private_key.sign(data)
        case rsa.RSAPrivateKey():
            _check_rsa_bits(private_key.key_size)
            return private_key.sign(data, _PKCS1V15, _SHA256)


def sign_envelope(private_key: PrivateKey, payload_type: str, payload: bytes) -> bytes:
    """The JSON of a whole envelope, ready to publish.

    Raises:
        VerificationError: KEY_NOT_ALLOWED where the key is of a kind that signs nothing here.
    """
    signature = sign(private_key, pae(payload_type, payload))
    document = {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": key_id_of(private_key.public_key()), "sig": base64.b64encode(signature).decode()}
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def previous_statement(audience: str, topic_name: str, new_spki: bytes) -> bytes:
    """What an old key signs to hand its device over to a new key (protocol, "A new key").

    Bound to the gateway and the topic, so that it serves nowhere else.

    Args:
        audience: the gateway's name, as in `aud`.
        topic_name: the device's topic name.
        new_spki: the new key's DER SubjectPublicKeyInfo.
    """
    return pae(PREVIOUS_TYPE, f"{audience}\n{topic_name}\n".encode() + new_spki)


def spki_of(public_key: PublicKey) -> bytes:
    """The key as DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), encoded anew: a key has only one."""
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id_of(public_key: PublicKey) -> KeyId:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, in hex."""
    return KeyId(hashlib.sha256(spki_of(public_key)).hexdigest())


@lru_cache(maxsize=4096)  # an EC key takes 10 µs to load and 2 KB to keep: 9 MB at most
def load_spki(spki: bytes) -> PublicKey:
    """Read a remembered public key.

    Args:
        spki: DER SubjectPublicKeyInfo.

    Raises:
        VerificationError: MALFORMED_CERTIFICATE where these bytes are no key, KEY_NOT_ALLOWED where the key
            is of a kind that signs nothing here.
    """
    if len(spki) > _MAX_SPKI_BYTES:
        raise VerificationError(
            RejectReason.KEY_NOT_ALLOWED, f"a public key of {len(spki)} bytes, at most {_MAX_SPKI_BYTES}"
        )
    try:
        key: object = serialization.load_der_public_key(spki)
    except UnsupportedAlgorithm:
        raise VerificationError(
            RejectReason.KEY_NOT_ALLOWED, f"a public key of an unknown kind; {_ALLOWED}"
        ) from None
    except ValueError:
        raise VerificationError(
            RejectReason.MALFORMED_CERTIFICATE, f"{len(spki)} bytes that are no DER SubjectPublicKeyInfo"
        ) from None
    return check_signing_key(key)


def check_signing_key(key: object) -> PublicKey:
    """Narrow any public key to those that may sign messages.

    Raises:
        VerificationError: KEY_NOT_ALLOWED, naming the kind that was found.
    """
    match key:
        case ec.EllipticCurvePublicKey():
            _ecdsa_of(key.curve)
            return key
        case rsa.RSAPublicKey():
            _check_rsa_bits(key.key_size)
            if not is_short_exponent(key):
                raise VerificationError(
                    RejectReason.KEY_NOT_ALLOWED, "an RSA key whose exponent has more than 32 bits"
                )
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case _:
            raise VerificationError(
                RejectReason.KEY_NOT_ALLOWED, f"a key of kind {type(key).__name__}; {_ALLOWED}"
            )


def is_short_exponent(key: rsa.RSAPublicKey) -> bool:
    """Whether verifying with an RSA key costs what its length says: its exponent has at most 32 bits."""
    return key.public_numbers().e <= MAX_RSA_EXPONENT


_ALLOWED: Final = f"keys may be P-256, P-384, RSA of {MIN_RSA_BITS}–{MAX_RSA_BITS} bits, or Ed25519"


def _ecdsa_of(curve: ec.EllipticCurve) -> ec.ECDSA:
    match curve:
        case ec.SECP256R1():
            return _P256
        case ec.SECP384R1():
            return _P384
        case _:
            raise VerificationError(
                RejectReason.KEY_NOT_ALLOWED, f"a key on the curve {curve.name}; {_ALLOWED}"
            )


def _check_rsa_bits(bits: int) -> None:
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise VerificationError(RejectReason.KEY_NOT_ALLOWED, f"an RSA key of {bits} bits; {_ALLOWED}")


def _decode_base64(text: object, member: str) -> bytes:
    """Standard base64 with padding (RFC 4648 §4), the canonical spelling only."""
    if not isinstance(text, str):
        _refuse(f"'{member}' must be a string of base64, got {_kind(text)}")
    try:
        data = binascii.a2b_base64(text)
    except ValueError:
        _refuse(f"'{member}' is not standard base64 with padding")
    # The decoder skips what it does not know; writing the data again shows it, and stray last bits too.
    if binascii.b2a_base64(data, newline=False).decode() != text:
        _refuse(f"'{member}' is not standard base64 with padding, in its one canonical spelling")
    return data


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _refuse(detail: str) -> NoReturn:
    raise MessageError(RejectReason.MALFORMED_ENVELOPE, detail) from None
