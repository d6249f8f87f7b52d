"""The worked example of docs/protocol.md is true to the byte."""

import base64
import re
from pathlib import Path

import pytest

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
    (beginning,) = re.findall(r"bytes to sign begin with `([^`]+)`", PROTOCOL)
    assert pae(payload_type("hello"), fenced("payload").encode()).startswith(beginning.encode())


def test_the_worked_payload_is_a_hello() -> None:
    messages = pytest.importorskip(
        "provisioning.messages", reason="provisioning/messages.py is not there yet"
    )
    hello = messages.Hello.model_validate(parse_json(fenced("payload").encode()))
    assert hello.nonce == "q3J8vN0xTtWm2K5a"
