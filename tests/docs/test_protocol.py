"""The worked examples of docs/protocol.md are true to the byte, and its ranges those of the code."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from gateway.device.messages import parse_reply
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
from provisioning.downloads import check_token, make_token
from provisioning.envelope import key_id_of, load_spki, pae, parse_envelope, payload_type, verify_envelope
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import DeviceId, TopicName
from provisioning.messages import Hello, Presence, Progress, Reply, Result
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
    hello = Hello.model_validate(parse_json(fenced("payload").encode()))
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


SECTION_7 = PROTOCOL[PROTOCOL.index("## 7. Reply") : PROTOCOL.index("## 8. Presence")]


def test_the_payloads_shown_are_read_as_their_messages() -> None:
    hello = Hello.model_validate(parse_json(fenced("hello-payload").encode()))
    assert (hello.attributes["indoors"], hello.firmware.bundle_seq) == (True, 11)
    assert hello.last_update is not None
    beat, will = (Presence.model_validate(parse_json(fenced(kind).encode())) for kind in ("presence", "will"))
    assert (beat.state, beat.seq, will.state, will.seq) == ("online", 2, "offline", 0)


@pytest.mark.parametrize("kind", ["welcome", "challenge", "rejected"])
def test_the_replies_shown_are_what_the_gateway_writes_and_a_device_reads(kind: str) -> None:
    shown = fenced(kind)
    document = json.loads(shown)
    reply = Reply(
        topic_name=TopicName("pump-17"),
        result=Result(kind),
        for_nonce=document["for"],
        reason=None if document["reason"] is None else RejectReason(document["reason"]),
        retry_after_seconds=document["retry_after_seconds"],
        challenge=document.get("challenge"),
        device_id=document.get("device", {}).get("id"),
        identifier=document.get("device", {}).get("identifier"),
        product=document.get("product"),
        cohort=document.get("cohort"),
        heartbeat_seconds=document.get("heartbeat_seconds"),
    )
    assert reply.encode(datetime.fromtimestamp(document["server_time"] / 1000, UTC)).decode() == shown
    assert parse_reply(shown.encode()).result == kind


def test_the_table_of_the_reply_names_its_members() -> None:
    told, _, _ = SECTION_7.partition("| result | means")
    named = set(words_of(told))
    shown = {member for kind in ("welcome", "challenge") for member in json.loads(fenced(kind))}
    assert named == shown | {"offer"}


def test_every_word_that_a_reply_can_carry_has_its_row() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", SECTION_7, flags=re.MULTILINE))
    elsewhere = {"rate_limited"}  # counted, never answered
    operators = {
        reason.value
        for reason in RejectReason
        if reason.startswith(("bundle_", "signing_key_", "artifact_", "url_"))
    }
    assert set(rows) == {reason.value for reason in RejectReason} - operators - elsewhere
    assert set(rows.values()) <= {result.value for result in Result}


def to_der(signature: bytes) -> bytes:
    """The steps of section 4, literally."""
    half, parts = len(signature) // 2, b""
    for number in (signature[:half], signature[half:]):
        short = number.lstrip(b"\0") or b"\0"
        if short[0] >= 0x80:
            short = b"\0" + short
        parts += b"\x02" + bytes([len(short)]) + short
    return b"\x30" + bytes([len(parts)]) + parts


@pytest.mark.parametrize("length", [32, 48])
@pytest.mark.parametrize("first", [0x00, 0x01, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("second", [0x00, 0x7F, 0x80])
def test_the_steps_from_r_and_s_to_der_are_right(length: int, first: int, second: int) -> None:
    number = bytes([first, second]) + b"\xa5" * (length - 2)
    value = int.from_bytes(number, "big")
    assert to_der(number + number) == encode_dss_signature(value, value)
    assert len(to_der(b"\xff" * 2 * length)) == {32: 72, 48: 104}[length]


def test_the_problem_shown_is_what_a_download_answers() -> None:
    problem = json.loads(fenced("problem"))
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["type"] == f"urn:fleetgate:problem:{RejectReason.URL_EXPIRED}"
    token = make_token(b"k" * 32, DeviceId(7), "0" * 64, datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(VerificationError) as refused:
        check_token([b"k" * 32], token, "0" * 64, datetime(2026, 1, 2, tzinfo=UTC))
    assert refused.value.detail == problem["detail"]
