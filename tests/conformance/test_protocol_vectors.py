"""docs/vectors: Fleetgate passes its own vectors, each through the code that does this in service."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from databases import new_migrated_url
from vector_counts import PROJECT, Vectors
from worlds import TERMS, World

from gateway.device.factory import Authority
from gateway.device.messages import parse_reply
from gateway.device.replies import Action, decide_next
from gateway.device.updates import (
    Heard,
    Offer,
    OfferedArtifact,
    RefusedOfferError,
    Trust,
    check_offer,
    parse_offer,
    place_offer,
)
from gateway.operations import authorities, products
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.prover import Delivered, Prover, Tally, Work
from provisioning.access import Principal, Role
from provisioning.anchors import Anchor, TrustAnchors
from provisioning.authorities import AuthorityState
from provisioning.bundles import (
    REFUSAL_WORDS,
    check_artifact,
    check_statement,
    parse_statement,
    read_envelope,
)
from provisioning.certificates import parse_chain
from provisioning.configurations import merge, merge_documents
from provisioning.decision import first_failed
from provisioning.envelope import check_signing_key, key_id_of, pae, parse_envelope, sign
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.freshness import is_clock_off
from provisioning.greeting import Terms, Verdict, decide_message
from provisioning.ids import AuthorityId, KeyId, OrganizationId, ProductId, TopicName
from provisioning.messages import Hello, Reply, Result
from provisioning.products import JitpSettings
from provisioning.strictjson import parse_json
from provisioning.verification import check_sender, verify_chain
from store import organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc

HERE = PROJECT / "docs" / "vectors"
README = (HERE / "README.md").read_text(encoding="utf-8")
FILES = ("envelopes", "statements", "challenges", "replies", "offers", "configurations", "certificates")


def load(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def outcome(reason: str | None) -> dict[str, str]:
    return {"result": "accepted"} if reason is None else {"result": "refused", "reason": str(reason)}


def differing(cases: Any, decide: Any) -> dict[str, Any]:
    """What came out otherwise than expected, by case."""
    found = {case["id"]: (case["expected"], decide(case)) for case in cases}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


# --- The files


def test_the_files_are_what_the_script_makes() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), (
        "run docs/vectors/generate.py and look at the difference"
    )


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_as_the_schema_says(name: str) -> None:
    schema = json.loads((HERE / "vectors.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})
    document = load(name)
    assert [
        f"{list(error.instance_path)}: {error.message}"[:300] for error in validator.iter_errors(document)
    ] == []
    ids = [case["id"] for case in document["cases"]]
    assert len(set(ids)) == len(ids)
    document["cases"][0]["surplus"] = 1
    assert not validator.is_valid(document), "the schema knows every member"


def test_every_word_is_one_of_the_protocol() -> None:
    """A vector with a word that nobody may say would teach it to others."""
    words = {case["expected"].get("reason") for name in FILES for case in load(name)["cases"]} - {None}
    devices = {*REFUSAL_WORDS.values(), "statement_invalid", "digest_mismatch"}
    assert words - devices - {reason.value for reason in RejectReason} == set()
    assert words >= devices


# --- Messages upwards


@dataclass(frozen=True, slots=True)
class Published:
    topic: str
    payload: bytes
    received_at: datetime


@pytest.fixture(scope="module")
def prover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prover, Tally]]:
    """A gateway on which the devices of `envelopes.json` have said hello before."""
    file = load("envelopes")
    database = Database(new_migrated_url("sqlite", tmp_path_factory.mktemp("vectors")))
    desk = Desk(
        database=database,
        clock=now_utc,
        new_id=new_id,
        capath=None,
        broker="main",
        worker="test",
        audience=file["audience"],
    )
    number = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=number, name="acme", at=now_utc())
    admin = Principal(organization_id=number, name="admin", role=Role.ADMIN)
    products.create(desk, admin, name="pump", description="")
    products.set_jitp(desk, admin, "pump", JitpSettings(enabled=True))
    root = Authority(
        cert=x509.load_der_x509_certificate(raw(file["authority"]["certificate"])),
        key=private_key(file["authority"]),
    )
    made = authorities.register(desk, admin, product="pump", name="ca", pem=root.pem)
    authorities.prove(desk, admin, made.id, root.prove(made.code, now_utc()))
    authorities.move(desk, admin, made.id, AuthorityState.ACTIVE)
    terms = Terms(audience=file["audience"], challenge_key=b"k" * 32, heartbeat_seconds=60)
    pipeline = Pipeline(
        database, terms=lambda: terms, broker="main", worker="w", prefix=file["prefix"], new_id=new_id
    )
    first = {case["key"]: case for case in file["cases"] if case["id"] == f"hello-{case['key']}"}
    assert first.keys() == file["keys"].keys()
    batch = [Published(case["topic"], raw(case["message"]), at(file["now"])) for case in first.values()]
    replies = pipeline.work(batch).replies
    assert [reply and reply.result for reply in replies] == [Result.WELCOME] * len(batch)
    tally = Tally()

    def fault(_work: Work, error: Exception) -> None:
        raise error

    yield Prover(database, terms=lambda: terms, prefix=file["prefix"], tally=tally, on_fault=fault), tally
    database.close()


def private_key(described: dict[str, str]) -> Any:
    return serialization.load_pem_private_key(described["private_key_pem"].encode(), password=None)


def test_envelopes(prover: tuple[Prover, Tally], vectors: Vectors) -> None:
    file = load("envelopes")

    def decide(case: dict[str, Any]) -> dict[str, str]:
        proves, tally = prover
        tally.unproven.clear()
        message: Delivered = Published(case["topic"], raw(case["message"]), at(file["now"]))
        work = Work(delivered=message, now=message.received_at)
        proves.parse([work])
        proves.verify([work])
        if work.identity is not None and not work.done:
            assert work.identity.key_id == file["keys"][case["key"]]["keyid"]
            return outcome(None)
        ((reason, _),) = tally.unproven.items()
        if work.reply is None:
            assert reason == "unknown_key", "whatever cannot be read is answered, of any verb"
        else:
            assert (work.reply.topic_name, work.reply.reason) == (case["topic"].split("/")[2], reason)
        return outcome(reason)

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol envelopes", len(file["cases"]))


def test_what_is_shown_of_valid_envelopes_is_what_a_client_would_make() -> None:
    """ECDSA signatures differ from one client to the next; those of Ed25519 and RSA do not."""
    file = load("envelopes")
    shown = [case for case in file["cases"] if "payload" in case]
    assert len(shown) > 30
    for case in shown:
        envelope = parse_envelope(raw(case["message"]))
        assert envelope.payload == case["payload"].encode(), case["id"]
        signed = pae(envelope.payload_type, envelope.payload)
        assert raw(case["signed"]) == signed, case["id"]
        key = private_key(file["keys"][case["key"]])
        assert key_id_of(key.public_key()) == file["keys"][case["key"]]["keyid"]
        if case["key"] in ("ed25519", "rsa2048"):
            assert sign(key, signed) == envelope.signature, case["id"]


# --- Statements


def trust_of(device: dict[str, Any], keys: dict[str, Any]) -> Trust:
    return Trust(
        keys={KeyId(keys[name]["keyid"]): raw(keys[name]["spki"]) for name in device["trusted"]},
        product=device["product"],
        hardware_model=device["hardware"]["model"],
        hardware_revision=device["hardware"].get("revision", ""),
        running_seq=device["running_bundle_seq"],
        highest_seq=device["highest_bundle_seq"],
    )


def artifacts_said(data: bytes) -> tuple[OfferedArtifact, ...]:
    """What an honest offer of this statement would say, so that only the statement is judged."""
    try:
        statement = parse_statement(read_envelope(data).payload)
    except MessageError:
        return ()
    return tuple(
        OfferedArtifact(name=one.name, url="https://example.com", size=one.size, sha256=one.sha256)
        for one in statement.artifacts
    )


def test_statements(vectors: Vectors) -> None:
    file = load("statements")

    def decide(case: dict[str, Any]) -> dict[str, Any]:
        data = raw(case["statement"])
        offer = Offer(offer_id="1", revision=1, statement=data, artifacts=artifacts_said(data))
        try:
            statement = check_offer(offer, trust_of(case["device"], file["keys"]))
        except RefusedOfferError as error:
            refused = {"result": "refused", "reason": error.reason}
        else:
            rules = []
            for artifact in statement.artifacts:
                content = raw(case["artifacts"][artifact.name])
                digest = hashlib.sha256(content).hexdigest()
                rules.append(check_artifact(artifact, size=len(content), sha256=digest))
            if all(rule.passed for rule in rules):
                return {"result": "installed"}
            refused = {"result": "refused", "reason": "digest_mismatch"}
        return refused | {"step": step_of(case, refused["reason"])}

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol statements", len(file["cases"]))


def step_of(case: dict[str, Any], word: str) -> int:
    """The step of section 13. Steps 1 to 3 have one word; which of them it was, the rules say."""
    steps = ("wrong_product", "not_above_installed", "wrong_hardware", "below_floor", "digest_mismatch")
    if word in steps:
        return 4 + steps.index(word)
    trusted = trust_of(case["device"], load("statements")["keys"]).keys
    failed = first_failed(check_statement(raw(case["statement"]), trusted, product=None).rules)
    assert failed is not None
    return {"envelope": 1, "signing_key": 1, "signature": 2, "statement": 3}[failed.name]


# --- Freshness


def test_challenges(vectors: Vectors) -> None:
    file = load("challenges")
    terms = replace(TERMS, challenge_key=bytes.fromhex(file["challenge_key"]))

    def decide(case: dict[str, Any]) -> dict[str, Any]:
        said, last = case["hello"], case["last_accepted"]
        if is_clock_off(
            said.get("ts"), said.get("challenge"), file["now"]
        ):  # before any signature is looked at
            return {"result": "challenge", "reason": "clock_off"}
        world = World()
        made = world.make(file["topic_name"])
        if last is not None:
            world.now = at(last["time"])
            assert answered(world.say(made, nonce=last["nonce"])).result is Result.WELCOME
        world.now = at(file["now"])
        before = dict(world.facts.credentials)
        head = {"v": 1, "aud": "gw", "topic": "t", "conn": "c" * 16, "boot": "b" * 16, "seq": 1}
        hello = Hello.model_validate(head | {"hardware": {"model": "m"}, "firmware": {"version": "1"}} | said)
        verdict = decide_message(
            hello, world.identity(made), world.facts, terms=terms, now=world.now, new_id=lambda: 1
        )
        reply = answered(verdict)
        unchanged = world.facts.credentials == before
        if reply.result is Result.WELCOME:
            return {"result": "welcome", "again": unchanged}
        assert unchanged
        return {"result": str(reply.result), "reason": str(reply.reason)}

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol challenges", len(file["cases"]))


def answered(verdict: Verdict) -> Reply:
    assert verdict.reply is not None
    return verdict.reply


# --- Replies and offers


def act_on(message: bytes, *, nonce: str | None, hellos: int, challenges: int) -> dict[str, Any]:
    """What the device does, as `expected` says it; a wait is one of many that it might choose."""
    try:
        reply = parse_reply(message)
    except MessageError:
        return {"action": "ignore"}
    following = decide_next(reply, nonce=nonce or "", hellos=hellos, challenges=challenges)
    found: dict[str, Any] = {"action": str(following.action)}
    match following.action:
        case Action.IGNORE:
            return found
        case Action.ANSWER:
            return found | {"challenge": following.challenge, "with_chain": following.with_chain}
        case Action.WELCOME:
            return found | {"heartbeat_seconds": following.heartbeat_seconds}
        case Action.WAIT:
            return found | {"wait_seconds": following.wait_seconds}


def test_replies(vectors: Vectors) -> None:
    def decide(case: dict[str, Any]) -> dict[str, Any]:
        device = case["device"]
        found = act_on(
            raw(case["message"]),
            nonce=device["unanswered_nonce"],
            hellos=device["hellos"],
            challenges=device["challenges_answered"],
        )
        bounds = case["expected"].get("wait_seconds")
        if bounds is not None and bounds["least"] <= found.get("wait_seconds", -1) <= bounds["most"]:
            found["wait_seconds"] = bounds
        return found

    cases = load("replies")["cases"]
    for _ in range(50):  # waits are drawn at random
        assert differing(cases, decide) == {}
    vectors.ran("protocol replies", len(cases))


def test_offers(vectors: Vectors) -> None:
    file = load("offers")

    def decide(case: dict[str, Any]) -> dict[str, Any]:
        device = case["device"]
        kept = {"highest_revision": device["highest_revision"]}
        try:
            offer = parse_offer(parse_json(raw(case["message"])))
        except MessageError:
            offer = None
        if offer is None:
            return {"action": "ignore", **kept}
        heard, revision = place_offer(
            offer,
            welcomed=device["welcomed"],
            highest_revision=device["highest_revision"],
            open_offer=device["open_offer"],
            installing=device["installing"],
        )
        kept = {"highest_revision": revision}
        if heard is Heard.TAKE:
            try:
                check_offer(offer, trust_of(device, file["keys"]))
            except RefusedOfferError as error:
                return {"action": "refuse", "reason": error.reason, **kept}
        return {"action": str(heard), **kept}

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol offers", len(file["cases"]))


def test_the_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    asked = []

    def decide(message: bytes, *, nonce: str | None, hellos: int, challenges: int) -> dict[str, Any]:
        asked.append(message)
        return act_on(message, nonce=nonce, hellos=hellos, challenges=challenges)

    monkeypatch.chdir(HERE)
    exec(compile(code, "README.md", "exec"), {"decide": decide})
    assert len(asked) == len(load("replies")["cases"])
    with pytest.raises(AssertionError):
        exec(compile(code, "README.md", "exec"), {"decide": lambda _, **__: {"action": "ignore"}})


def test_the_readme_names_every_file() -> None:
    assert set(re.findall(r"^\| \[(\w+)\.json\]", README, flags=re.MULTILINE)) == set(FILES)
    assert {path.stem for path in HERE.glob("*.json")} == {*FILES, "vectors.schema"}


# --- Configurations


def test_configurations(vectors: Vectors) -> None:
    file = load("configurations")
    wrong = {
        one["id"]: merge(one["target"], one["patch"])
        for one in file["patches"]
        if json.dumps(merge(one["target"], one["patch"])) != json.dumps(one["result"])
    }
    assert wrong == {}
    assert len(file["patches"]) == 15, "appendix A of RFC 7396 has fifteen"

    def decide(case: dict[str, Any]) -> dict[str, Any]:
        before = json.dumps(case)
        merged = merge_documents([case["product"], case["cohort"], case["device"]])
        assert json.dumps(case) == before, "the documents themselves stay as they are"
        return {"merged": merged}

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol configurations", len(file["cases"]) + len(file["patches"]))


# --- Certificates


def test_certificates(vectors: Vectors) -> None:
    file = load("certificates")
    anchors = TrustAnchors(
        [
            Anchor(
                authority_id=AuthorityId(number),
                product_id=ProductId(1),
                certificate=(registered := x509.load_der_x509_certificate(raw(one["certificate"]))),
                key_id=key_id_of(check_signing_key(registered.public_key())),
                state=AuthorityState(one["state"]),
                legacy=False,
            )
            for number, one in enumerate(file["authorities"], start=1)
        ]
    )

    def decide(case: dict[str, Any]) -> dict[str, str]:
        try:
            identity = verify_chain(
                parse_chain([raw(one) for one in case["chain"]]), anchors, at(file["now"])
            )
            check_sender(identity, KeyId(case["keyid"]), TopicName(case["topic_name"]))
        except VerificationError as error:
            return outcome(error.reason)
        return outcome(None)

    assert differing(file["cases"], decide) == {}
    vectors.ran("protocol certificates", len(file["cases"]))
