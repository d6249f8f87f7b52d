"""The worked examples of docs/protocol.md are true to the byte, and its ranges those of the code."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from gateway.device.updates import Trust, check_offer, parse_offer
from provisioning.attempts import REASONS, AttemptState
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
from provisioning.errors import RejectReason
from provisioning.messages import Progress
from provisioning.rollouts import Plan
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


SECTION_13 = PROTOCOL[PROTOCOL.index("## 13. Bundle statement") : PROTOCOL.index("## 14. Offers")]


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


SECTION_14 = PROTOCOL[PROTOCOL.index("## 14. Offers") : PROTOCOL.index("## 15. ")]
SECTION_15 = PROTOCOL[PROTOCOL.index("## 15. Progress") : PROTOCOL.index("## 16. ")]
SECTION_16 = PROTOCOL[PROTOCOL.index("## 16. Downloads") : PROTOCOL.index("## 17. ")]


def words_of(section: str) -> list[str]:
    """The first column of every table of a section."""
    return re.findall(r"^\| `([a-z_0-9.\[\]]+)` \|", section, flags=re.MULTILINE)


def test_the_offers_shown_are_what_a_device_reads_and_what_the_gateway_renders() -> None:
    document = json.loads(fenced("offer"))
    offer = parse_offer(document)
    assert offer is not None
    spki = base64.b64decode(fenced("spki"))
    trust = Trust(
        keys={key_id_of(load_spki(spki)): spki},
        product="pump",
        hardware_model="pump",
        hardware_revision="b",
        running_seq=9,
        highest_seq=9,
    )
    assert check_offer(offer, trust).bundle_seq == document["bundle_seq"] == 12
    cancelled = parse_offer(json.loads(fenced("cancellation")))
    assert cancelled is not None
    assert (cancelled.cancelled, cancelled.revision > offer.revision) == (True, True)
    named = {word.partition("[")[0].partition(".")[0] for word in words_of(SECTION_14)}
    assert named == set(document) | set(json.loads(fenced("cancellation")))


def test_the_progress_shown_is_one() -> None:
    progress = Progress.model_validate(parse_json(fenced("progress").encode()))
    assert (progress.state, progress.percent) == ("downloading", 40)


def test_every_state_every_reason_and_every_refusal_of_an_address_has_its_row() -> None:
    rows = words_of(SECTION_15)
    assert [word for word in rows if word in list(AttemptState)] == [state.value for state in AttemptState]
    assert {word for word in rows if word in REASONS} == set(REASONS)
    assert words_of(SECTION_16) == [
        reason for reason in sorted(RejectReason, key=rows_order) if reason.startswith("url_")
    ]


def rows_order(reason: RejectReason) -> int:
    order = ["url_malformed", "url_forged", "url_foreign", "url_expired", "url_withdrawn"]
    return order.index(reason) if reason in order else -1


def test_the_limits_of_an_attempt_are_those_of_a_plan_with_their_defaults() -> None:
    rows = re.findall(r"^\| [a-z ]+ \| ([0-9 ]+) s \| .* \| `([a-z_]+)` \|$", SECTION_15, flags=re.MULTILINE)
    plan = Plan()
    assert [(int(seconds.replace(" ", "")), word) for seconds, word in rows] == [
        (plan.accept_seconds, "not_accepted_in_time"),
        (plan.step_seconds, "step_too_long"),
        (plan.total_seconds, "attempt_too_long"),
    ]
