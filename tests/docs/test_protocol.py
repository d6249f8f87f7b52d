"""The worked examples of docs/protocol.md are true to the byte, and its ranges those of the code."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from provisioning.bundles import (
    MAX_ARTIFACTS,
    MAX_STATEMENT_BYTES,
    REFUSAL_WORDS,
    STATEMENT_TYPE,
    BundleStatement,
    check_artifact,
    digest_of,
    parse_statement,
    read_envelope,
    verify_statement,
)
from provisioning.envelope import key_id_of, load_spki, pae, parse_envelope, payload_type, verify_envelope
from provisioning.strictjson import parse_json

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def fenced(kind: str) -> str:
    (text,) = re.findall(rf"^```{kind}\n(.*?)\n```$", PROTOCOL, flags=re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_worked_envelope_is_signed_by_the_key_shown_over_the_payload_shown() -> None:
    key = load_spki(base64.b64decode(fenced("spki")))
    envelope = parse_envelope(fenced("envelope").encode())
    assert envelope.payload.decode() == fenced("payload")
    assert envelope.key_id == key_id_of(key)
    assert envelope.payload_type == payload_type("hello")
    verify_envelope(envelope, key)


def test_the_beginning_of_the_signed_bytes_is_as_shown() -> None:
    beginning, _ = re.findall(r"bytes to sign begin with `([^`]+)`", PROTOCOL)
    assert pae(payload_type("hello"), fenced("payload").encode()).startswith(beginning.encode())


def test_the_worked_payload_is_a_hello() -> None:
    messages = pytest.importorskip(
        "provisioning.messages", reason="provisioning/messages.py is not there yet"
    )
    hello = messages.Hello.model_validate(parse_json(fenced("payload").encode()))
    assert hello.nonce == "q3J8vN0xTtWm2K5a"


SECTION_13 = PROTOCOL[PROTOCOL.index("## 13. Bundle statement") : PROTOCOL.index("## 14. ")]


def test_the_worked_bundle_is_signed_by_the_key_shown_over_the_payload_shown() -> None:
    spki = base64.b64decode(fenced("spki"))
    signed, payload = fenced("bundle-envelope").encode(), fenced("bundle-payload").encode()
    envelope = read_envelope(signed)
    assert envelope.payload == payload
    statement = verify_statement(signed, {key_id_of(load_spki(spki)): spki}, product="pump")
    assert statement == parse_statement(payload)
    assert f"`{digest_of(payload)}`" in SECTION_13
    assert f"The payload, {len(payload)}" in SECTION_13
    _, beginning = re.findall(r"bytes to sign begin with `([^`]+)`", PROTOCOL)
    assert pae(STATEMENT_TYPE, payload).startswith(beginning.encode())
    (artifact,) = statement.artifacts
    (content,) = re.findall(r"holds the nine bytes `(\w{9})`", SECTION_13)
    found = hashlib.sha256(content.encode()).hexdigest()
    assert check_artifact(artifact, size=len(content), sha256=found).passed


def test_the_table_of_the_statement_is_the_statement() -> None:
    rows = re.findall(r"^\| `([a-z_]+)(\[\])?(?:\.([a-z0-9_]+))?` \|", SECTION_13, flags=re.MULTILINE)
    assert {name for name, _, _ in rows} == {"v", *BundleStatement.__dataclass_fields__}
    assert f"1–{MAX_ARTIFACTS} entries" in SECTION_13
    assert f"payload in it at most {MAX_STATEMENT_BYTES}." in SECTION_13
    assert f"at most {2 * MAX_STATEMENT_BYTES:,} bytes".replace(",", " ") in SECTION_13


def test_every_refusal_of_a_device_is_named() -> None:
    assert [word for word in REFUSAL_WORDS.values() if f"`{word}`" not in SECTION_13.replace("\n", " ")] == []
