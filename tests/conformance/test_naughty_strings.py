"""Big List of Naughty Strings: none becomes a topic name by accident, and JSON carries each unharmed."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.device.factory import create_authority
from provisioning.certificates import parse_chain, read_facts
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.strictjson import parse_json
from provisioning.topics import DEFAULT_PREFIX, TOPIC_NAME_PATTERN, is_topic_name, parse_up

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_json_carries_each_unharmed(vectors: Any) -> None:
    strings = vectors.load("naughty-strings.json")
    vectors.ran("naughty strings", len(strings))
    for text in strings:
        for ascii_only in (True, False):
            data = json.dumps({"name": text, text: 1}, ensure_ascii=ascii_only).encode()
            if "\x00" in text:
                with pytest.raises(MessageError, match="NUL"):
                    parse_json(data)
            else:
                assert parse_json(data) == ({"name": text, text: 1} if text != "name" else {"name": 1})


def test_topic_names_are_only_plain_ones(vectors: Any) -> None:
    for text in vectors.load("naughty-strings.json"):
        plain = 1 <= len(text) <= 64 and all(c.isascii() and (c.isalnum() or c in "._:-") for c in text)
        assert is_topic_name(text) is plain, ascii(text)
        topic = parse_up(f"{DEFAULT_PREFIX}/{text}/hello")
        assert (topic is not None) is plain, ascii(text)


def test_as_common_names(vectors: Any) -> None:
    """A certificate may hold any of them as its CN (where the encoder allows it): the name is refused."""
    root = create_authority("root", now=NOW)
    certified = 0
    for text in vectors.load("naughty-strings.json"):
        if not 1 <= len(text) <= 64:
            continue
        try:
            device = root.issue(text, now=NOW)
        except (ValueError, UnicodeEncodeError):
            continue  # the encoder has no such string
        certified += 1
        chain = parse_chain(device.der_chain)
        if TOPIC_NAME_PATTERN.fullmatch(text):
            assert read_facts(chain[0]).common_name == text
        else:
            with pytest.raises(VerificationError) as caught:
                read_facts(chain[0])
            assert caught.value.reason is RejectReason.CERTIFICATE_NAME
            assert text not in caught.value.detail or len(text) < 4, ascii(text)
    vectors.ran("naughty common names", certified)
    assert certified > 100
