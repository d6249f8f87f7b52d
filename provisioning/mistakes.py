"""Which of the usual mistakes made a signature or a key id: found by trying them all (protocol, section 4).

Nothing is accepted here. What a mistake would have signed is computed, and the signature is held against it.
"""

import base64
import binascii
import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from provisioning.certificates import signing_key_of
from provisioning.envelope import Envelope, PublicKey, key_id_of, pae, payload_type, spki_of
from provisioning.errors import VerificationError
from provisioning.topics import Up

_HASHES: Final[tuple[hashes.HashAlgorithm, ...]] = (
    hashes.SHA256(),
    hashes.SHA384(),
    hashes.SHA512(),
    hashes.SHA1(),  # noqa: S303 - nothing is proven by it: it is named where somebody used it
)


def find_mistake(envelope: Envelope, chain: tuple[x509.Certificate, ...]) -> str | None:
    """How a signature that does not verify was made, as a sentence; None where no usual mistake explains it.

    Args:
        envelope: with the type that its topic asks for.
        chain: the device's certificate first; the others' keys are tried too.
    """
    found: list[tuple[int, str]] = []
    for number, certificate in enumerate(chain):
        try:
            key = signing_key_of(certificate)
        except VerificationError:
            continue
        whose = [] if not number else [f"by the key of certificate {number + 1}: the device's own goes first"]
        for (data_note, data), (form_note, signature) in itertools.product(
            _list_data(envelope), _list_forms(envelope.signature, key)
        ):
            for hash_note in _list_hashes(key, signature, data):
                notes = [note for note in (data_note, form_note, hash_note) if note] + whose
                if notes:
                    found.append((len(notes), "it was made " + "; ".join(notes)))
    return min(found)[1] if found else None


def name_key_id(key_id: str, chain: tuple[x509.Certificate, ...], key: PublicKey) -> str | None:
    """What somebody took for the key id, or None where that cannot be told."""
    leaf = chain[0]
    spki = spki_of(key)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    candidates = {
        "the SHA-256 of the certificate": leaf.public_bytes(serialization.Encoding.DER),
        "the SHA-256 of the certificate's PEM text": leaf.public_bytes(serialization.Encoding.PEM),
        "the SHA-256 of the key's PEM text": pem,
        "the SHA-256 of the key's base64": base64.b64encode(spki),
        "the SHA-256 of the key's hexadecimal digits": spki.hex().encode(),
    }
    if isinstance(key, ec.EllipticCurvePublicKey):
        for name, form in (
            ("the SHA-256 of the bare point", serialization.PublicFormat.UncompressedPoint),
            ("the SHA-256 of the compressed point", serialization.PublicFormat.CompressedPoint),
        ):
            candidates[name] = key.public_bytes(serialization.Encoding.X962, form)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        candidates["the SHA-256 of the bare 32 bytes"] = raw
    elif isinstance(key, rsa.RSAPublicKey):
        pkcs1 = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
        candidates["the SHA-256 of the key as PKCS #1"] = pkcs1
    for name, data in candidates.items():
        if hashlib.sha256(data).hexdigest() == key_id:
            return name
    for number, certificate in enumerate(chain[1:], start=2):
        try:
            if key_id_of(signing_key_of(certificate)) == key_id:
                return f"that of certificate {number}; the device's own certificate goes first"
        except VerificationError:
            continue
    return None


def _list_data(envelope: Envelope) -> Iterator[tuple[str, bytes]]:
    kind, payload = envelope.payload_type, envelope.payload
    text = base64.b64encode(payload)
    right = pae(kind, payload)
    yield "", right
    yield "over the payload alone, without its pre-authentication encoding", payload
    yield (
        "over the pre-authentication encoding of the payload's base64; raw bytes are signed",
        pae(kind, text),
    )
    yield "over the payload's base64", text
    yield "over the right bytes and a trailing newline", right + b"\n"
    yield "over the payload and a trailing newline, without its pre-authentication encoding", payload + b"\n"
    yield (
        "over the encoding of the payload and a trailing newline that was not sent",
        pae(kind, payload + b"\n"),
    )
    if payload.endswith(b"\n"):
        yield (
            "over the encoding of the payload without the trailing newline that was sent",
            pae(kind, payload.rstrip(b"\r\n")),
        )
    yield "over the SHA-256 of the right bytes: hashed twice", hashlib.sha256(right).digest()
    yield (
        "over the hexadecimal SHA-256 of the right bytes: hashed twice",
        hashlib.sha256(right).hexdigest().encode(),
    )
    yield (
        "over the SHA-256 of the payload, without its pre-authentication encoding",
        hashlib.sha256(payload).digest(),
    )
    for wrong in (*(payload_type(verb) for verb in Up), "application/json", kind.removesuffix("+json")):
        if wrong != kind:
            yield f"over the payload type {wrong}; this topic's is {kind}", pae(wrong, payload)
    characters = len(payload.decode("utf-8", "replace"))
    if characters != len(payload):
        yield (
            f"over a length of {characters} characters; {len(payload)} bytes are counted",
            b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), characters, payload),
        )


def _list_forms(signature: bytes, key: PublicKey) -> Iterator[tuple[str, bytes]]:
    yield "", signature
    try:
        again = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        again = b""
    if again:
        yield "and base64 was applied twice to the signature", again
    if signature.endswith(b"\n"):
        yield "and a newline follows the signature", signature[:-1]
    if isinstance(key, ec.EllipticCurvePublicKey):
        half = (key.key_size + 7) // 8
        if len(signature) == 2 * half:
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            yield (
                "as raw r‖s; DER is needed, and section 4 says how to convert it",
                encode_dss_signature(r, s),
            )


def _list_hashes(key: PublicKey, signature: bytes, data: bytes) -> Iterator[str]:
    """The notes of each algorithm that verifies; empty for the right one."""
    match key:
        case ed25519.Ed25519PublicKey():
            if _is_good(partial(key.verify, signature, data)):
                yield ""
        case ec.EllipticCurvePublicKey():
            right = "sha384" if key.key_size == 384 else "sha256"
            for algorithm in _HASHES:
                if _is_good(partial(key.verify, signature, data, ec.ECDSA(algorithm))):
                    yield "" if algorithm.name == right else f"with {algorithm.name}; {right} is needed"
        case rsa.RSAPublicKey():
            for algorithm in _HASHES:
                if _is_good(partial(key.verify, signature, data, padding.PKCS1v15(), algorithm)):
                    yield "" if algorithm.name == "sha256" else f"with {algorithm.name}; sha256 is needed"
                pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
                if _is_good(partial(key.verify, signature, data, pss, algorithm)):
                    yield "with RSA-PSS; PKCS #1 v1.5 is needed"


def _is_good(verify: Callable[[], None]) -> bool:
    try:
        verify()
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
