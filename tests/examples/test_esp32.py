"""The portable C of the ESP32 example, built for this machine, against the worked examples and cryptography."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from example_tools import need

ROOT = Path(__file__).parents[2]
HOST = ROOT / "examples" / "esp32" / "host"
HEADERS = ("mbedtls/pk.h", "cjson/cJSON.h", "sodium.h")
KEY_ID = "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9"
SEED = bytes.fromhex(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
)  # RFC 8032 §7.1, test 1
P256 = ec.generate_private_key(ec.SECP256R1())
SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fenced(kind: str) -> str:
    """A worked example of the protocol."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    (found,) = re.findall(rf"^```{kind}\n(.+?)\n```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the built program with words and stdin; returns stdout."""
    need(shutil.which("gcc") is not None and shutil.which("make") is not None, "gcc or make")
    need(all((Path("/usr/include") / name).exists() for name in HEADERS), f"one of {', '.join(HEADERS)}")
    out = tmp_path_factory.mktemp("host")
    done = subprocess.run(["make", "-C", HOST, f"OUT={out}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

    def run(*words: str | Path, stdin: bytes = b"") -> str:
        done = subprocess.run([out / "host", *words], input=stdin, capture_output=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
        return done.stdout.decode()

    return run


@pytest.fixture
def signer(tmp_path: Path) -> Path:
    (tmp_path / "worked.der").write_bytes(base64.b64decode(fenced("spki")))
    return tmp_path / "worked.der"


def test_the_worked_example_comes_out_byte_for_byte(host: Any) -> None:
    payload = host("hello")
    assert payload == fenced("payload")
    assert host("ed25519", "hello", KEY_ID, stdin=SEED + payload.encode()) == fenced("envelope")


def test_a_hello_with_everything_in_it(host: Any) -> None:
    assert json.loads(host("full")) == {
        "v": 1,
        "aud": "mqtt.example.com",
        "topic": "fg/v1/pump-17/hello",
        "conn": "7c1f0a9e55d24b38",
        "boot": "02b9d6c4e18f7a60",
        "seq": 2,
        "challenge": "a challenge",
        "nonce": "q3J8vN0xTtWm2K5a",
        "chain": ["QUJD", "REVG"],
        "hardware": {"model": 'pu"m\\p\n', "revision": "b"},
        "firmware": {"version": "1.4.0", "bundle_seq": 2**53 - 1},
        "last_update": {"offer_id": "17", "result": "failed", "reason": "digest_mismatch"},
    }


def test_a_p256_signature_of_the_device_is_verified_here(host: Any) -> None:
    pem = P256.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    payload = fenced("payload").encode()
    envelope = json.loads(host("p256", "hello", "a" * 64, pem, stdin=payload))
    kind = "application/vnd.fleetgate.hello.v1+json"
    assert (envelope["payloadType"], base64.b64decode(envelope["payload"])) == (kind, payload)
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    P256.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("r", [1, 0x7F, 0x80, 0xFF << 240, 0x7F << 248, 2**256 - 1])
@pytest.mark.parametrize("s", [1, 0x80 << 16, 2**255 - 1, 2**255])
def test_raw_signatures_become_der(host: Any, r: int, s: int) -> None:
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert base64.b64decode(host("der", stdin=raw)) == encode_dss_signature(r, s)


@pytest.mark.parametrize("text", ["", "QQ==", "QUI=", "QUJD", "+/+/QQ=="])
def test_base64_that_is_standard_is_read(host: Any, text: str) -> None:
    assert host("base64", stdin=text.encode()) == f"{len(base64.b64decode(text))} {text}"


@pytest.mark.parametrize(
    "text", ["Q", "QQ", "QQ=", "QQ=A", "Q===", "====", "QR==", "QUJ=", "QQ==QQ==", "Q Q=", "-_-_"]
)
def test_base64_that_is_not_is_refused(host: Any, text: str) -> None:
    assert host("base64", stdin=text.encode()) == "-1 "


def test_the_worked_bundle_is_verified(host: Any, signer: Path) -> None:
    envelope = fenced("bundle-envelope").encode()
    digest = hashlib.sha256(b"fleetgate").hexdigest()
    assert (
        host("verify", "pump", "pump", "b", "11", "9", signer, stdin=envelope)
        == f"1.5.0 12 pump.img 9 {digest}\n"
    )


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (("lamp", "pump", "b", "11", "9"), "wrong_product"),
        (("pump", "pump", "b", "12", "12"), "not_above_installed"),
        (("pump", "Pump", "b", "11", "9"), "wrong_hardware"),
        (("pump", "pump", "a", "11", "9"), "wrong_hardware"),
        (("pump", "pump", "", "11", "9"), "wrong_hardware"),
        (("pump", "pump", "c", "11", "8"), "below_floor"),
        (
            ("lamp", "lamp", "a", "12", "8"),
            "wrong_product",
        ),  # the first step that fails is the one that is named
    ],
)
def test_a_bundle_that_is_not_for_this_device(
    host: Any, signer: Path, known: tuple[str, ...], reason: str
) -> None:
    assert host("verify", *known, signer, stdin=fenced("bundle-envelope").encode()) == f"{reason}\n"


def sign(statement: Any, kind: str = "application/vnd.fleetgate.bundle.v1+json") -> dict[str, Any]:
    """An envelope by P256."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = base64.b64encode(P256.sign(message, ec.ECDSA(hashes.SHA256()))).decode()
    key_id = hashlib.sha256(P256.public_key().public_bytes(*SPKI)).hexdigest()
    return {
        "payloadType": kind,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id, "sig": signature}],
    }


ARTIFACT = {"name": "pump.img", "size": 9, "sha256": "0" * 64}
STATEMENT = {"v": 1, "product": "pump", "version": "1.0.0", "bundle_seq": 1, "artifacts": [ARTIFACT]}
GOOD = sign(STATEMENT)
FAULTS: dict[str, Any] = {
    "no envelope": [],
    "no JSON in it": sign(b"pump"),
    "another kind": sign(STATEMENT, "application/vnd.fleetgate.hello.v1+json"),
    "two signatures": GOOD | {"signatures": GOOD["signatures"] * 2},
    "a stranger's key": GOOD | {"signatures": [GOOD["signatures"][0] | {"keyid": "0" * 64}]},
    "another's signature": GOOD | {"signatures": sign(STATEMENT | {"v": 2})["signatures"]},
    "no base64": GOOD | {"payload": GOOD["payload"][:-1] + "*"},
    "a payload that is too long": sign(STATEMENT | {"notes": "x" * 6144}),
    "another version": sign(STATEMENT | {"v": 2}),
    "a path": sign(STATEMENT | {"artifacts": [ARTIFACT | {"name": "../passwd"}]}),
    "a hidden file": sign(STATEMENT | {"artifacts": [ARTIFACT | {"name": ".profile"}]}),
    "no artifact": sign(STATEMENT | {"artifacts": []}),
    "nine artifacts": sign(STATEMENT | {"artifacts": [ARTIFACT | {"name": f"a{i}"} for i in range(9)]}),
    "one name twice": sign(STATEMENT | {"artifacts": [ARTIFACT, ARTIFACT]}),
    "an empty artifact": sign(STATEMENT | {"artifacts": [ARTIFACT | {"size": 0}]}),
    "half a size": sign(STATEMENT | {"artifacts": [ARTIFACT | {"size": 1.5}]}),
    "a short digest": sign(STATEMENT | {"artifacts": [ARTIFACT | {"sha256": "0" * 63}]}),
    "a version with a blank": sign(STATEMENT | {"version": "1 0"}),
    "a number that is text": sign(STATEMENT | {"bundle_seq": "1"}),
    "hardware that is text": sign(STATEMENT | {"hardware": "pump"}),
}


@pytest.mark.parametrize("envelope", [GOOD, *FAULTS.values()], ids=["in order", *FAULTS])
def test_a_statement_is_read_strictly(host: Any, signer: Path, tmp_path: Path, envelope: Any) -> None:
    (tmp_path / "ours.der").write_bytes(P256.public_key().public_bytes(*SPKI))
    known = ("pump", "pump", "", "0", "0", signer, tmp_path / "ours.der")
    said = host("verify", *known, stdin=json.dumps(envelope).encode())
    assert said == (f"1.0.0 1 pump.img 9 {'0' * 64}\n" if envelope is GOOD else "statement_invalid\n")


WELCOME = {
    "v": 1,
    "for": "n",
    "result": "welcome",
    "reason": None,
    "product": "pump",
    "heartbeat_seconds": 60,
}


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (WELCOME, "1 0 - pump 0 60 - -"),
        (WELCOME | {"heartbeat_seconds": 0}, "1 0 - pump 0 10 - -"),
        (
            WELCOME | {"offer": json.loads(fenced("offer"))},
            f"1 0 - pump 0 60 252116099483605972 {json.loads(fenced('offer'))['artifacts'][0]['url']}",
        ),
        (WELCOME | {"for": "another"}, "0 0 - - 0 0 - -"),
        (
            {"for": None, "result": "busy", "reason": "busy", "retry_after_seconds": 7200},
            "5 0 - - 3600 10 - -",
        ),
        (
            {"for": "n", "result": "challenge", "reason": "chain_required", "challenge": "c"},
            "3 1 c - 0 10 - -",
        ),
        (
            {"for": "n", "result": "pending", "reason": "approval_required", "retry_after_seconds": 5},
            "2 0 - - 5 10 - -",
        ),
        ({"for": "n", "result": "rejected", "reason": "unknown_ca"}, "4 0 - - 0 10 - -"),
        ({"for": "n", "result": "later", "reason": None}, "5 0 - - 0 10 - -"),
        ({"result": "welcome"}, "unreadable"),
        ([], "unreadable"),
    ],
)
def test_replies_are_read(host: Any, reply: Any, read: str) -> None:
    assert host("reply", "n", stdin=json.dumps(reply).encode()) == f"{read}\n"
