"""Logs: form, and repeats that are counted."""

import io
import json
import warnings
from datetime import UTC, datetime

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.logs import Repeats, configure
from gateway.settings import LogSettings
from provisioning.certificates import parse_chain


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_equal_events_within_the_time_are_counted_and_said_once() -> None:
    clock, summaries = Clock(), []
    repeats = Repeats(10.0, summaries.append, clock)
    assert repeats(None, "info", {"event": "refused", "device": "a"})["device"] == "a"
    for _ in range(3):
        with pytest.raises(structlog.DropEvent):
            repeats(None, "info", {"event": "refused", "device": "a"})
    repeats(None, "info", {"event": "refused", "device": "b"})
    clock.seconds = 10.0
    assert repeats(None, "info", {"event": "other"})["event"] == "other"
    assert [(s["device"], s["repeated"]) for s in summaries] == [("a", 3)]


def test_a_caller_chooses_what_is_the_same() -> None:
    summaries: list[object] = []
    repeats = Repeats(10.0, summaries.append, Clock())
    repeats(None, "warning", {"event": "refused", "device": "a", "same": "unknown_ca"})
    with pytest.raises(structlog.DropEvent):
        repeats(None, "warning", {"event": "refused", "device": "b", "same": "unknown_ca"})
    repeats.flush()
    assert len(summaries) == 1


def test_memory_stays_bounded() -> None:
    repeats = Repeats(1000.0, lambda _event: None, Clock())
    for number in range(5000):
        repeats(None, "info", {"event": "x", "n": number})
    assert len(repeats._seen) == 2000


def test_json_lines() -> None:
    output = io.StringIO()
    before = structlog.get_config()
    try:
        repeats = configure(LogSettings(as_json=True), output)
        for _ in range(3):
            structlog.get_logger().info("device_enrolled", device="p-17")
        structlog.get_logger().debug("unseen")
        repeats.flush()
    finally:
        structlog.configure(**before)
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["event"], first["device"], first["level"]) == ("device_enrolled", "p-17", "info")
    assert (second["repeated"], second["level"]) == (2, "info")


def test_what_a_strangers_certificate_holds_writes_no_line() -> None:
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n" * 65, _validate=False)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
    chain = [builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)]
    before = structlog.get_config()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        parse_chain(chain)
        assert len(said) > 0, "the library has stopped warning: the filter is not needed any more"
        said.clear()
        try:
            configure(LogSettings(), io.StringIO())
            parse_chain(chain)
        finally:
            structlog.configure(**before)
    assert said == []
