"""Bundle statements: read strictly, proven by the product's keys, taken in by rules, and fit for a device or not."""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.device.factory import new_key
from provisioning.attempts import REASONS
from provisioning.bundles import (
    MAX_ARTIFACT_BYTES,
    MAX_ARTIFACTS,
    MAX_STATEMENT_BYTES,
    REFUSAL_WORDS,
    STATEMENT_TYPE,
    Artifact,
    BundleStatement,
    Hardware,
    PushFacts,
    TrustedKey,
    check_artifact,
    check_statement,
    check_update,
    decide_push,
    digest_of,
    parse_statement,
    read_envelope,
    sign_payload,
    sign_statement,
    verify_statement,
)
from provisioning.decision import Rule, first_failed
from provisioning.envelope import PrivateKey, key_id_of, payload_type, sign_envelope, spki_of
from provisioning.errors import FleetgateError, MessageError, RejectReason, VerificationError
from provisioning.ids import KeyId

KEYS: dict[str, PrivateKey] = {kind: new_key(kind) for kind in ("p256", "ed25519")}
OTHER_KEY = new_key("p256")
TRUSTED: dict[KeyId, bytes] = {
    key_id_of(key.public_key()): spki_of(key.public_key()) for key in KEYS.values()
}
SHA = hashlib.sha256(b"image").hexdigest()
IMAGE = Artifact(name="app.bin", size=5, sha256=SHA)
STATEMENT = BundleStatement(
    product="pump",
    version="1.2.0",
    bundle_seq=7,
    artifacts=(IMAGE,),
    hardware=(Hardware(model="m1", revisions=("a", "b")), Hardware(model="m2")),
    floor=3,
    notes="grün\nzweite Zeile",
    created_at=1_767_225_600_000,
)
SIGNED = {kind: sign_statement(key, STATEMENT) for kind, key in KEYS.items()}

PRODUCTS = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+_~-]{0,20}", fullmatch=True)
FILE_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
ARTIFACTS = st.builds(
    Artifact,
    name=FILE_NAMES,
    size=st.integers(1, MAX_ARTIFACT_BYTES),
    sha256=st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest()),
)


@st.composite
def statements(draw: st.DrawFn) -> BundleStatement:
    seq = draw(st.integers(1, 2**53 - 1))
    return BundleStatement(
        product=draw(PRODUCTS),
        version=draw(WORDS),
        bundle_seq=seq,
        artifacts=tuple(draw(st.lists(ARTIFACTS, min_size=1, max_size=4, unique_by=lambda one: one.name))),
        hardware=tuple(
            draw(
                st.lists(
                    st.builds(Hardware, model=TEXTS, revisions=st.lists(TEXTS, max_size=3).map(tuple)),
                    max_size=3,
                )
            )
        ),
        floor=draw(st.none() | st.integers(1, seq - 1)) if seq > 1 else None,
        notes=draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=50)),
        created_at=draw(st.integers(0, 2**63 - 1)),
    )


def payload(**changes: Any) -> bytes:
    document = {**json.loads(STATEMENT.encode()), **changes}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def envelope_with(signed: bytes, **changes: bytes) -> bytes:
    """The envelope with other payload or signature bytes."""
    document = json.loads(signed)
    if "payload" in changes:
        document["payload"] = base64.b64encode(changes["payload"]).decode()
    if "sig" in changes:
        document["signatures"][0]["sig"] = base64.b64encode(changes["sig"]).decode()
    return json.dumps(document, separators=(",", ":")).encode()


def flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


# Round trip, and what breaks it


@given(statements(), st.sampled_from(sorted(KEYS)))
def test_what_was_signed_is_what_is_verified(statement: BundleStatement, kind: str) -> None:
    signed = sign_statement(KEYS[kind], statement)
    assert verify_statement(signed, TRUSTED, product=statement.product) == statement
    assert digest_of(read_envelope(signed).payload) == hashlib.sha256(statement.encode()).hexdigest()


@given(statements(), PRODUCTS, st.sampled_from(sorted(KEYS)))
def test_a_statement_never_verifies_for_another_product(
    statement: BundleStatement, product: str, kind: str
) -> None:
    if product == statement.product:
        product += "x"
    with pytest.raises(VerificationError, match="is of product") as caught:
        verify_statement(sign_statement(KEYS[kind], statement), TRUSTED, product=product)
    assert caught.value.reason == RejectReason.BUNDLE_PRODUCT


@given(st.data(), st.sampled_from(sorted(KEYS)), st.integers(1, 255))
def test_a_flipped_byte_of_payload_or_signature_is_a_bad_signature(
    data: st.DataObject, kind: str, mask: int
) -> None:
    taken = read_envelope(SIGNED[kind])
    part, value = data.draw(st.sampled_from([("payload", taken.payload), ("sig", taken.signature)]))
    at = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(VerificationError) as caught:
        verify_statement(
            envelope_with(SIGNED[kind], **{part: flipped(value, at, mask)}), TRUSTED, product="pump"
        )
    assert caught.value.reason == RejectReason.BAD_SIGNATURE


@given(st.data(), st.sampled_from(sorted(KEYS)), st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_refused_with_our_own_errors(
    data: st.DataObject, kind: str, mask: int
) -> None:
    signed = SIGNED[kind]
    at = data.draw(st.integers(0, len(signed) - 1))
    with pytest.raises((MessageError, VerificationError)):
        verify_statement(flipped(signed, at, mask), TRUSTED, product="pump")


@given(st.data(), st.sampled_from(sorted(KEYS)))
def test_a_cut_statement_is_refused_with_our_own_errors(data: st.DataObject, kind: str) -> None:
    signed = SIGNED[kind]
    with pytest.raises((MessageError, VerificationError)):
        verify_statement(signed[: data.draw(st.integers(0, len(signed) - 1))], TRUSTED, product="pump")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(STATEMENT.encode()))), JSON_VALUES)
def test_any_value_of_a_member_is_read_or_refused_with_our_own_error(member: str, value: Any) -> None:
    try:
        statement = parse_statement(payload(**{member: value}))
    except FleetgateError:
        return
    assert parse_statement(statement.encode()) == statement


# The statement


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"v": 2}, "with v 1"),
        ({"v": True}, "with v 1"),
        ({"v": 1.0}, "with v 1"),
        ({"v": ...}, "with v 1"),
        ({"product": ...}, "product"),
        ({"product": "Pump"}, "product"),
        ({"product": "pump\n"}, "product"),
        ({"version": ""}, "version"),
        ({"version": "../1"}, "version"),
        ({"version": "x" * 65}, "version"),
        ({"bundle_seq": 0}, "bundle_seq"),
        ({"bundle_seq": "7"}, "bundle_seq"),
        ({"bundle_seq": 7.0}, "bundle_seq"),
        ({"bundle_seq": True}, "bundle_seq"),
        ({"bundle_seq": 2**53}, "bundle_seq"),
        ({"floor": 7}, "floor: 7 must be below bundle_seq 7"),
        ({"floor": 0}, "floor"),
        ({"artifacts": []}, "artifacts"),
        ({"artifacts": [{"name": f"{n}", "size": 1, "sha256": SHA} for n in range(MAX_ARTIFACTS + 1)]}, "artifacts"),
        ({"artifacts": [{"name": "a", "size": 1, "sha256": SHA}] * 2}, "two have the same name"),
        ({"artifacts": [{"name": "../a", "size": 1, "sha256": SHA}]}, "artifacts.0.name"),
        ({"artifacts": [{"name": "..", "size": 1, "sha256": SHA}]}, "artifacts.0.name"),
        ({"artifacts": [{"name": "a" * 129, "size": 1, "sha256": SHA}]}, "artifacts.0.name"),
        ({"artifacts": [{"name": "a", "size": 0, "sha256": SHA}]}, "artifacts.0.size"),
        ({"artifacts": [{"name": "a", "size": 2**40 + 1, "sha256": SHA}]}, "artifacts.0.size"),
        ({"artifacts": [{"name": "a", "size": 1, "sha256": SHA.upper()}]}, "artifacts.0.sha256"),
        ({"artifacts": [{"name": "a", "size": 1, "sha256": SHA[1:]}]}, "artifacts.0.sha256"),
        ({"hardware": [{"model": ""}]}, "hardware.0.model"),
        ({"hardware": [{"model": "m", "revisions": "a"}]}, "hardware.0.revisions"),
        ({"notes": "x" * 1025}, "notes"),
        ({"created_at": -1}, "created_at"),
    ],
)  # fmt: skip
def test_what_no_statement_says(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_statement(payload(**changes))
    assert caught.value.reason == RejectReason.BUNDLE_MALFORMED
    assert named in caught.value.detail


def test_the_bounds_of_an_artifact_are_within() -> None:
    statement = parse_statement(
        payload(artifacts=[{"name": "a" * 128, "size": MAX_ARTIFACT_BYTES, "sha256": SHA}])
    )
    assert MAX_ARTIFACT_BYTES == 2**40
    assert statement.artifacts[0].size == 2**40


def test_members_that_may_be_left_out_and_members_of_a_later_version() -> None:
    statement = parse_statement(
        payload(hardware=..., floor=..., notes=..., created_at=..., sbom={"later": True})
    )
    assert statement == BundleStatement(product="pump", version="1.2.0", bundle_seq=7, artifacts=(IMAGE,))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", RejectReason.BUNDLE_MALFORMED),
        (b"{", RejectReason.MALFORMED_JSON),
        (b'{"v":1,"v":1}', RejectReason.MALFORMED_JSON),
        (b" " * (MAX_STATEMENT_BYTES + 1), RejectReason.MESSAGE_TOO_LARGE),
    ],
)
def test_what_is_no_statement_at_all(data: bytes, reason: RejectReason) -> None:
    with pytest.raises(MessageError) as caught:
        parse_statement(data)
    assert caught.value.reason == reason


def test_the_bytes_as_written_are_signed_and_not_what_was_understood_of_them() -> None:
    written = json.dumps({**json.loads(STATEMENT.encode()), "sbom": "sbom.json"}, indent=2).encode() + b"\n"
    signed = sign_payload(KEYS["p256"], written)
    assert read_envelope(signed).payload == written
    assert verify_statement(signed, TRUSTED, product="pump") == STATEMENT
    checked = check_statement(signed, TRUSTED, product="pump")
    assert checked.digest == hashlib.sha256(written).hexdigest()


def test_what_would_be_refused_is_not_signed() -> None:
    with pytest.raises(MessageError, match="bundle_seq"):
        sign_payload(KEYS["p256"], payload(bundle_seq=0))


@pytest.mark.parametrize("kind", ["p384", "rsa"])
def test_a_key_of_another_kind_signs_no_bundle_and_verifies_none(kind: str) -> None:
    key = new_key(kind)
    with pytest.raises(VerificationError, match="P-256 or Ed25519") as caught:
        sign_statement(key, STATEMENT)
    assert caught.value.reason == RejectReason.KEY_NOT_ALLOWED
    signed = sign_envelope(key, STATEMENT_TYPE, STATEMENT.encode())
    trusted = {key_id_of(key.public_key()): spki_of(key.public_key())}
    with pytest.raises(VerificationError, match="P-256 or Ed25519") as caught:
        verify_statement(signed, trusted, product="pump")
    assert caught.value.reason == RejectReason.KEY_NOT_ALLOWED


# Verification, step by step


def _signed_by(key: PrivateKey, data: bytes, kind: str = STATEMENT_TYPE) -> bytes:
    return sign_envelope(key, kind, data)


@pytest.mark.parametrize(
    ("data", "failed", "reason"),
    [
        (STATEMENT.encode(), "envelope", RejectReason.BUNDLE_UNSIGNED),
        (b"{}", "envelope", RejectReason.MALFORMED_ENVELOPE),
        (b"no JSON", "envelope", RejectReason.MALFORMED_JSON),
        (b" " * 20_000, "envelope", RejectReason.MESSAGE_TOO_LARGE),
        (
            _signed_by(KEYS["p256"], STATEMENT.encode(), payload_type("hello")),
            "envelope",
            RejectReason.BUNDLE_MALFORMED,
        ),
        (sign_statement(OTHER_KEY, STATEMENT), "signing_key", RejectReason.SIGNING_KEY_UNKNOWN),
        (
            envelope_with(SIGNED["p256"], payload=payload(version="6.6.6")),
            "signature",
            RejectReason.BAD_SIGNATURE,
        ),
        (
            _signed_by(KEYS["ed25519"], payload(bundle_seq=0)),
            "statement",
            RejectReason.BUNDLE_MALFORMED,
        ),
        (
            sign_statement(KEYS["p256"], replace(STATEMENT, product="lamp")),
            "product",
            RejectReason.BUNDLE_PRODUCT,
        ),
    ],
)
def test_the_step_that_refuses(data: bytes, failed: str, reason: RejectReason) -> None:
    checked = check_statement(data, TRUSTED, product="pump")
    assert [rule.name for rule in checked.rules] == [
        "envelope",
        "signing_key",
        "signature",
        "statement",
        "product",
    ]
    at = [rule.name for rule in checked.rules].index(failed)
    assert [rule.passed for rule in checked.rules] == [True] * at + [False] + [None] * (4 - at)
    assert checked.rules[at].reason == reason
    assert (checked.statement, checked.digest) == (None, "")
    with pytest.raises((MessageError, VerificationError)) as caught:
        verify_statement(data, TRUSTED, product="pump")
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_all_steps_pass(kind: str) -> None:
    checked = check_statement(SIGNED[kind], TRUSTED, product="pump")
    assert all(rule.passed for rule in checked.rules)
    assert checked.statement == STATEMENT
    unasked = check_statement(SIGNED[kind], TRUSTED, product=None)
    assert [rule.name for rule in unasked.rules] == ["envelope", "signing_key", "signature", "statement"]


@pytest.mark.parametrize(
    ("size", "sha256", "ok"),
    [(5, SHA, True), (6, SHA, False), (5, SHA.upper(), False), (5, "0" * 64, False)],
)
def test_an_artifact_is_what_the_statement_says(size: int, sha256: str, ok: bool) -> None:
    rule = check_artifact(IMAGE, size=size, sha256=sha256)
    assert (rule.name, rule.passed) == ("artifact app.bin", ok)
    assert rule.reason == (None if ok else RejectReason.ARTIFACT_MISMATCH)


# What a product takes in

P256_ID = key_id_of(KEYS["p256"].public_key())
DIGEST = digest_of(STATEMENT.encode())
FACTS = PushFacts(
    product="pump",
    keys={P256_ID: TrustedKey(name="release", spki=TRUSTED[P256_ID])},
    foreign_keys=frozenset({key_id_of(KEYS["ed25519"].public_key())}),
    last=6,
    versions={"1.1.0": "d" * 64},
    sequences={6: "d" * 64},
    stored={SHA: 5},
)
RSA = new_key("rsa")
RSA_ID = key_id_of(RSA.public_key())


@pytest.mark.parametrize(
    ("data", "facts", "failed", "reason"),
    [
        (STATEMENT.encode(), FACTS, "envelope", RejectReason.BUNDLE_UNSIGNED),
        (b"{", FACTS, "envelope", RejectReason.MALFORMED_JSON),
        (_signed_by(KEYS["p256"], b"{}", "text/plain"), FACTS, "envelope", RejectReason.BUNDLE_MALFORMED),
        (sign_statement(OTHER_KEY, STATEMENT), FACTS, "signing_key", RejectReason.SIGNING_KEY_UNKNOWN),
        (SIGNED["ed25519"], FACTS, "signing_key", RejectReason.SIGNING_KEY_FOREIGN),
        (
            SIGNED["p256"],
            replace(FACTS, keys={P256_ID: TrustedKey(name="old", spki=TRUSTED[P256_ID], revoked=True)}),
            "signing_key",
            RejectReason.SIGNING_KEY_REVOKED,
        ),
        (
            _signed_by(RSA, STATEMENT.encode()),
            replace(FACTS, keys={RSA_ID: TrustedKey(name="rsa", spki=spki_of(RSA.public_key()))}),
            "signature",
            RejectReason.KEY_NOT_ALLOWED,
        ),
        (
            envelope_with(SIGNED["p256"], payload=payload(bundle_seq=8)),
            FACTS,
            "signature",
            RejectReason.BAD_SIGNATURE,
        ),
        (_signed_by(KEYS["p256"], payload(version="")), FACTS, "statement", RejectReason.BUNDLE_MALFORMED),
        (
            sign_statement(KEYS["p256"], replace(STATEMENT, product="lamp")),
            FACTS,
            "product",
            RejectReason.BUNDLE_PRODUCT,
        ),
        (SIGNED["p256"], replace(FACTS, versions={"1.2.0": "e" * 64}), "content", RejectReason.BUNDLE_EXISTS),
        (SIGNED["p256"], replace(FACTS, sequences={7: "e" * 64}), "content", RejectReason.BUNDLE_EXISTS),
        (SIGNED["p256"], replace(FACTS, last=8), "bundle_seq", RejectReason.BUNDLE_SEQ),
        (SIGNED["p256"], replace(FACTS, last=7), "bundle_seq", RejectReason.BUNDLE_SEQ),
        (
            SIGNED["p256"],
            replace(FACTS, stored={SHA: 6}),
            "artifact_sizes",
            RejectReason.ARTIFACT_MISMATCH,
        ),
        (SIGNED["p256"], replace(FACTS, stored={}), "artifacts", RejectReason.ARTIFACT_MISSING),
    ],
)
def test_what_a_product_refuses(data: bytes, facts: PushFacts, failed: str, reason: RejectReason) -> None:
    decision = decide_push(data, facts)
    assert decision.refused is not None
    assert (decision.refused.name, decision.refused.reason) == (failed, reason)
    assert decision.refused.detail
    assert decision.rules[-1] == decision.refused, "nothing is asked after a refusal"
    assert not decision.known


def test_a_new_bundle_is_taken_in() -> None:
    decision = decide_push(SIGNED["p256"], FACTS)
    assert decision.refused is None
    assert (decision.statement, decision.digest, decision.key_id) == (STATEMENT, DIGEST, P256_ID)
    assert not decision.known
    assert [rule.name for rule in decision.rules] == [
        "envelope",
        "signing_key",
        "signature",
        "product",
        "content",
        "bundle_seq",
        "artifact_sizes",
        "artifacts",
    ]


def test_the_very_same_content_again_is_no_refusal_whoever_signed_it_and_however_late() -> None:
    later = replace(
        FACTS, last=9, versions={"1.2.0": DIGEST, "1.4.0": "f" * 64}, sequences={7: DIGEST, 9: "f" * 64}
    )
    again = sign_statement(KEYS["p256"], STATEMENT)  # ECDSA: another signature each time
    assert again != SIGNED["p256"]
    decision = decide_push(again, later)
    assert decision.refused is None
    assert decision.known


def test_what_is_missing_is_listed() -> None:
    second = Artifact(name="boot.bin", size=9, sha256="a" * 64)
    statement = replace(STATEMENT, artifacts=(IMAGE, second))
    assert decide_push(sign_statement(KEYS["p256"], statement), FACTS).missing == (second,)


@given(statements(), st.sampled_from(sorted(KEYS)), st.integers(0, 2**53))
def test_a_bundle_is_taken_in_only_with_the_own_key_for_the_own_product_and_above_the_last(
    statement: BundleStatement, kind: str, last: int
) -> None:
    facts = replace(FACTS, last=last, stored={one.sha256: one.size for one in statement.artifacts})
    decision = decide_push(sign_statement(KEYS[kind], statement), facts)
    if decision.refused is None:
        assert (kind, statement.product) == ("p256", "pump")
        assert statement.bundle_seq > last
    own = decide_push(sign_statement(KEYS["p256"], replace(statement, product="pump")), facts)
    taken = statement.version not in facts.versions and statement.bundle_seq not in facts.sequences
    if taken and len({one.sha256 for one in statement.artifacts}) == len(statement.artifacts):
        assert (own.refused is None) == (statement.bundle_seq > last)


# What a device installs


def _update(**changes: Any) -> tuple[Rule, ...]:
    device: dict[str, Any] = {
        "product": "pump",
        "model": "m1",
        "revision": "a",
        "highest_seq": 6,
        "running_seq": 6,
    }
    return check_update(STATEMENT, **{**device, **changes})


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, None),
        ({"model": "m2", "revision": "any"}, None),
        ({"running_seq": 3, "highest_seq": 6}, None),
        ({"product": "lamp"}, "product"),
        ({"highest_seq": 7}, "forward"),
        ({"highest_seq": 8}, "forward"),
        ({"highest_seq": 8, "running_seq": 6}, "forward"),  # rolled back, and still not taken back
        ({"model": "m3"}, "hardware"),
        ({"revision": "c"}, "hardware"),
        ({"revision": ""}, "hardware"),
        ({"model": "M1"}, "hardware"),
        ({"running_seq": 2}, "floor"),
        ({"running_seq": 0, "highest_seq": 0}, "floor"),
        ({"product": "lamp", "highest_seq": 9, "model": "m3", "running_seq": 0}, "product"),
    ],
)
def test_what_a_device_refuses(changes: dict[str, Any], failed: str | None) -> None:
    rules = _update(**changes)
    names = [rule.name for rule in rules]
    assert names == ["product", "forward", "hardware", "floor"]
    refused = first_failed(rules)
    assert (refused.name if refused else None) == failed
    if failed is not None:
        assert [rule.passed for rule in rules[names.index(failed) + 1 :]] == [None] * (
            3 - names.index(failed)
        )


def test_a_bundle_without_hardware_and_floor_is_for_every_device() -> None:
    statement = replace(STATEMENT, hardware=(), floor=None)
    rules = check_update(statement, product="pump", model="?", revision="", highest_seq=0, running_seq=0)
    assert all(rule.passed for rule in rules)


@given(statements(), st.integers(0, 2**53), st.integers(0, 2**53))
def test_a_device_never_goes_back(statement: BundleStatement, highest: int, running: int) -> None:
    rules = check_update(
        replace(statement, hardware=()),
        product=statement.product,
        model="m",
        revision="",
        highest_seq=highest,
        running_seq=running,
    )
    allowed = first_failed(rules) is None
    assert allowed == (statement.bundle_seq > highest and running >= (statement.floor or 0))


def test_every_refusal_has_a_word_that_is_counted() -> None:
    assert set(REFUSAL_WORDS) == {rule.name for rule in _update()}
    assert set(REFUSAL_WORDS.values()) <= REASONS
