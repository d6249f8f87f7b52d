"""Where fuzzing starts: docs/protocol.md's worked examples, the factory's certificates, the worst we could think of.

`found/TARGET/` keeps every input that was ever a finding; they are seeds for ever.
"""

import base64
import json
import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fuzz_targets import sign_certificate
from fuzz_world import BUNDLE_KEY, DEVICE, DOWNLOAD_KEY, NOW, hello_payload, signed, world

from gateway.device.factory import Authority, Fault, KeyKind, create_authority
from gateway.mqtt.packets import pack_puback, pack_publish
from provisioning.downloads import make_token
from provisioning.ids import DeviceId
from provisioning.statements import Artifact, BundleStatement, sign_statement

FOUND: Final = Path(__file__).with_name("found")
_PROTOCOL: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
_MOST: Final = 16_384


def fenced(kind: str) -> bytes:
    """A worked example of the protocol."""
    text = _PROTOCOL.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{kind}\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    return str(found).encode()


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    """The inputs that a target starts from, those once found included."""
    made = _SEEDS[target]()
    folder = FOUND / target
    found = [file.read_bytes() for file in sorted(folder.iterdir())] if folder.is_dir() else []
    return (*made, *found)


def _strictjson() -> list[bytes]:
    return [
        fenced("payload"),
        fenced("envelope"),
        fenced("offer"),
        b"[" * _MOST,
        b'{"a":' * (_MOST // 5),
        b'{"' + b'":{"'.join(b"%d" % number for number in range(30)) + b'":0' + b"}" * 30,
        b"[" + b"{}," * 5000 + b"{}]",
        b"[" + b"9" * 16_000 + b"]",
        b"[" + b"1e308," * 2700 + b"0]",
        b'["' + b"\\ud83d\\ude00" * 1300 + b'"]',
        b'"' + b"\\u0041" * 2700 + b'"',
        b"{" + b",".join(b'"%d":0' % number for number in range(1800)) + b"}",
    ]


def _envelope() -> list[bytes]:
    big = json.dumps(
        {
            "payloadType": "a",
            "payload": "A" * 12_000,
            "signatures": [{"keyid": "0" * 64, "sig": "A" * 1368}],
        }
    )
    return [fenced("envelope"), fenced("bundle-envelope"), signed("hello", b"{}"), big.encode()]


def _packet() -> list[bytes]:
    payload = signed("hello", b"{}")
    properties = (
        b"\x01\x01"
        + b"\x08\x00\x03a/b"
        + b"\x09\x00\x02ab"
        + b"\x26\x00\x01n\x00\x03\xef\xbb\xbf"
        + b"\x0b\x80\x01"
    )
    odd = b"\x00\x05fg/v1\x00\x09" + bytes((len(properties),)) + properties + b"payload"
    return [
        pack_publish(f"fg/v1/{DEVICE}/hello", payload, 7, is_v5=True, correlation=b"c" * 8),
        pack_publish(f"fg/v1/{DEVICE}/hello", payload, 0, is_v5=False, correlation=None) + pack_puback(9),
        b"\x32" + bytes((len(odd),)) + odd,
        b"\x32\x7f" + b"\x00\x00\x00\x01\x7c" + b"\x26\x00\x00\x00\x00" * 24,
        b"\x30\x00" * 8000,
    ]


def _message() -> list[bytes]:
    topic = f"fg/v1/{DEVICE}/".encode()
    return [
        topic + b"hello\n" + signed("hello", _hello()[0]),
        topic + b"presence\n" + signed("presence", _presence()[0]),
        topic + b"progress\n" + signed("progress", _progress()[0]),
        b"fg/v1/pump-17/hello\n" + fenced("envelope"),
        topic + b"hello\n" + b"[" * _MOST,
        b"fg/v1/" + b"a/" * 5000 + b"hello\n{}",
    ]


def _hello() -> list[bytes]:
    whole = hello_payload(world().device)

    def changed(**members: Any) -> bytes:
        return json.dumps(json.loads(whole) | members).encode()[:12_000]

    return [
        whole,
        changed(chain=[]),
        changed(chain=[base64.b64encode(one).decode() for one in _issued_by(world().pump)[2].der_chain]),
        changed(challenge="A" * 32),
        changed(attributes={f"bad name {number}": [] for number in range(500)}),
        changed(attributes={f"k{number}": None for number in range(900)}),
        changed(attributes={f"{number}": "x" * 250 for number in range(32)}),
        changed(chain=["A" * 3800] * 3),
        fenced("payload"),
    ]


def _presence() -> list[bytes]:
    return [_as_device(fenced("progress"), "presence", state="online"), _as_device(b"{}", "presence", seq=0)]


def _progress() -> list[bytes]:
    return [
        _as_device(fenced("progress"), "progress"),
        _as_device(fenced("progress"), "progress", percent=101),
    ]


def _as_device(example: bytes, verb: str, **members: Any) -> bytes:
    return json.dumps(json.loads(example) | {"topic": f"fg/v1/{DEVICE}/{verb}"} | members).encode()


def _issued_by(authority: Authority) -> list[Any]:
    """Certificates of every kind of key, below an intermediate, and with every fault of the factory."""
    below = create_authority("Below", now=NOW, issuer=authority)
    under = create_authority("Under", now=NOW, issuer=below)
    return [
        authority.issue(DEVICE, now=NOW),
        below.issue(DEVICE, now=NOW, send_issuer=True),
        under.issue(
            DEVICE, now=NOW, send_issuer=True, san_uris=["urn:a"], san_dns=["a.example"], o="o", ou="u"
        ),
        *(authority.issue(DEVICE, now=NOW, key=kind) for kind in KeyKind),
        *(authority.issue(DEVICE, now=NOW, fault=fault) for fault in Fault),
    ]


@cache
def _chain() -> list[bytes]:
    chains = [one.der_chain for one in _issued_by(world().pump)]
    chains += [one.der_chain for one in _issued_by(world().valve)[:3]]
    chains += _slow_chains()
    return [b"".join(len(der).to_bytes(2, "big") + der for der in ders) for ders in chains]


def _slow_chains() -> list[tuple[bytes, ...]]:
    """Chains below CAs whose keys take the longest to verify with: large moduli, exponents as long as they can be.

    The gateway takes exponents of 32 bits; the library would take more, and below 3073 bits any.
    """
    slow = []
    for number, (modulus_bits, exponent_bits) in enumerate(((8192, 32), (3072, 3071))):
        key = rsa.RSAPublicNumbers(
            (1 << exponent_bits) - 1, (1 << modulus_bits) - 1 - 2 * number
        ).public_key()
        body = _with_key(create_authority("Slow", now=NOW, issuer=world().pump), key)
        device = create_authority("Slow", now=NOW).issue(DEVICE, now=NOW, key=KeyKind.P256)
        certificate = bytearray(device.der_chain[0])
        # The device's certificate says that RSA signed it; nobody could, and so the check goes to its end.
        slow.append((_signed_by_rsa(bytes(certificate), modulus_bits // 8), sign_certificate(body)))
    return slow


def _with_key(authority: Authority, key: rsa.RSAPublicKey) -> bytes:
    """A CA's TBSCertificate with another key in it."""
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    old, new = (
        one.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for one in (authority.key.public_key(), key)
    )
    return _replaced(authority.cert.tbs_certificate_bytes, old, new)


def _replaced(der: bytes, old: bytes, new: bytes) -> bytes:
    """A sequence with one part replaced, its length put right."""
    inside = der[4:].replace(old, new, 1) if der[1] == 0x82 else der[3:].replace(old, new, 1)
    return b"\x30\x82" + len(inside).to_bytes(2, "big") + inside


def _signed_by_rsa(der: bytes, length: int) -> bytes:
    body = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    ecdsa = bytes.fromhex("300a06082a8648ce3d040302")
    sha256_with_rsa = bytes.fromhex("300d06092a864886f70d01010b0500")
    body = _replaced(body, ecdsa, sha256_with_rsa)
    signature = b"\x7f" * length
    inside = body + sha256_with_rsa + b"\x03\x82" + (length + 1).to_bytes(2, "big") + b"\0" + signature
    return b"\x30\x82" + len(inside).to_bytes(2, "big") + inside


def _certificate() -> list[bytes]:
    made = [one.certificate.tbs_certificate_bytes for one in _issued_by(world().pump)[:16]]
    return [*made, create_authority("Below", now=NOW, issuer=world().pump).cert.tbs_certificate_bytes]


def _authority() -> list[bytes]:
    roots = [create_authority("Root", now=NOW, key=kind, key_usage=usage)
             for kind, usage in ((KeyKind.P256, True), (KeyKind.P384, False), (KeyKind.RSA, True))]  # fmt: skip
    ders = [root.cert.public_bytes(serialization.Encoding.DER) for root in roots]
    return [roots[0].pem, *ders]


def _proof() -> list[bytes]:
    pem = world().pump.prove("c" * 32, NOW)
    return [pem, x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER), *_authority()]


def _statement() -> list[bytes]:
    return [fenced("bundle-payload"), fenced("bundle-envelope"), _bundle().encode(), _signed_bundle()]


def _bundle() -> BundleStatement:
    artifacts = tuple(
        Artifact(name=f"image-{number}.bin", size=1 << 40, sha256=f"{number:064x}") for number in range(8)
    )
    return BundleStatement(product="pump", version="1.5.0", bundle_seq=12, artifacts=artifacts, floor=9)


def _signed_bundle() -> bytes:
    return sign_statement(BUNDLE_KEY, _bundle())


def _address() -> list[bytes]:
    digest = "a" * 64
    good = make_token(DOWNLOAD_KEY, DeviceId(1), digest, NOW + timedelta(hours=1))
    old = make_token(DOWNLOAD_KEY, DeviceId(2**64 - 1), digest, NOW - timedelta(hours=1))
    ranges = ("", "bytes=0-8", "bytes=-5", "bytes=3-", "bytes=9-", "bytes=0-1,3-4", f"bytes={'9' * 4400}-")
    lines = [f"{token}\n{digest}\n{span}" for token in (good, old) for span in ranges]
    return [line.encode() for line in lines]


def _reply() -> list[bytes]:
    welcome = {
        "v": 1,
        "for": "q3J8vN0xTtWm2K5a",
        "result": "welcome",
        "reason": None,
        "retry_after_seconds": 600,
        "server_time": 1767225600000,
        "challenge": "A" * 32,
        "device": {"id": "1", "identifier": "pump-1"},
        "product": "pump",
        "cohort": "main",
        "heartbeat_seconds": 60,
        "offer": json.loads(_offer()[0]),
    }
    return [json.dumps(welcome).encode(), json.dumps(welcome | {"result": "rejected"}).encode()]


def _offer() -> list[bytes]:
    """The worked offer, with a statement that this device trusts."""
    bundle = _bundle()
    document = json.loads(fenced("offer")) | {
        "statement": json.loads(_signed_bundle()),
        "artifacts": [
            {"name": one.name, "size": one.size, "sha256": one.sha256, "url": f"https://d.example/{one.name}"}
            for one in bundle.artifacts
        ],
    }
    return [
        json.dumps(document).encode(),
        fenced("offer"),
        fenced("cancellation"),
        json.dumps(document | {"revision": 1e308}).encode(),
        json.dumps(document).replace('"revision": 1', '"revision": 1e999').encode(),
        b"[" * 5000,
    ]


_SEEDS: Final = {
    "strictjson": _strictjson,
    "envelope": _envelope,
    "packet": _packet,
    "message": _message,
    "hello": _hello,
    "presence": _presence,
    "progress": _progress,
    "chain": _chain,
    "certificate": _certificate,
    "authority": _authority,
    "proof": _proof,
    "statement": _statement,
    "address": _address,
    "reply": _reply,
    "offer": _offer,
}
