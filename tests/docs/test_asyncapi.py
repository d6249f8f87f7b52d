"""docs/asyncapi.yaml: what is generated is committed, true to what is really sent, and AsyncAPI."""

import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519
from pydantic import BaseModel, ValidationError
from worlds import NOW, World

from gateway.downward import Cancellation, Challenge, Offer, Refusal, Welcome
from provisioning.attempts import Attempt, AttemptState, Timeouts
from provisioning.bundles import Artifact, Bundle, BundleStatement, sign_statement
from provisioning.errors import RejectReason
from provisioning.ids import AttemptId, BundleId, CohortId, DeviceId, ProductId, RolloutId, TopicName
from provisioning.messages import Reply, Result
from provisioning.offers import render_offer
from provisioning.topics import Down, Up

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "asyncapi.yaml"
DOCUMENT: Any = yaml.safe_load(FILE.read_text(encoding="utf-8"))
CHECKER = ROOT / "tests" / "asyncapi"


def test_the_committed_document_is_what_the_program_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "asyncapi.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "run docs/asyncapi.py and look at the difference"


def test_every_verb_that_works_has_its_channel_and_its_direction() -> None:
    assert set(DOCUMENT["channels"]) == {*Up, *Down} - {Down.CONFIGURATION}
    sent = {Up(one["channel"]["$ref"].rpartition("/")[2]) for one in operations("send")}
    received = {Down(one["channel"]["$ref"].rpartition("/")[2]) for one in operations("receive")}
    assert (sent, received) == (set(Up), {Down.REPLY, Down.OFFER})
    for one in DOCUMENT["operations"].values():
        assert (one["bindings"]["mqtt"]["qos"], one["bindings"]["mqtt"]["retain"]) == (1, False)


def operations(action: str) -> list[Any]:
    return [one for one in DOCUMENT["operations"].values() if one["action"] == action]


# --- What is described is what is sent


MODELS: dict[str, type[BaseModel]] = {
    "welcome": Welcome,
    "challenge": Challenge,
    "pending": Refusal,
    "rejected": Refusal,
    "busy": Refusal,
}


ATTEMPT = Attempt(
    id=AttemptId(252116099483605972),
    device_id=DeviceId(1),
    product_id=ProductId(1),
    cohort_id=CohortId(1),
    rollout_id=RolloutId(5),
    override_id=None,
    bundle_id=BundleId(3),
    bundle_version="2.0.0",
    bundle_seq=2,
    hardware_model="m",
    from_version="1.0.0",
    from_boot="a" * 16,
    state=AttemptState.OFFERED,
    revision=1,
    timeouts=Timeouts(accept_seconds=60, step_seconds=120, total_seconds=600),
    offered_at=NOW,
    stepped_at=NOW,
)


def sent_offer(**changes: Any) -> dict[str, Any]:
    statement = BundleStatement(
        product="sensor",
        version="2.0.0",
        bundle_seq=2,
        artifacts=(Artifact(name="a.bin", size=1, sha256="0" * 64),),
    )
    bundle = Bundle(
        id=BundleId(1),
        product_id=ProductId(1),
        digest="0" * 64,
        envelope=sign_statement(ed25519.Ed25519PrivateKey.generate(), statement),
        statement=statement,
    )
    return render_offer(replace(ATTEMPT, **changes), bundle, lambda *_: "https://x.example/a.bin")


def sent_replies() -> list[Reply]:
    """Replies as the decisions make them, and those that only the pipeline makes."""
    world = World()
    made = world.make("pump-17")
    said = [world.say(made), world.say(made, ts=None)]
    refused = World(enabled=False)
    said.append(refused.say(refused.make("pump-18")))
    waiting = World(mode="approval")
    said.append(waiting.say(waiting.make("pump-19")))
    replies = [verdict.reply for verdict in said]
    assert None not in replies
    decided = [reply for reply in replies if reply is not None]
    welcome = decided[0]
    without_cohort = replace(welcome, cohort=None)
    unread = Reply(
        topic_name=TopicName("pump-17"),
        result=Result.REJECTED,
        for_nonce=None,
        reason=RejectReason.MALFORMED_JSON,
        retry_after_seconds=600,
    )
    busy = replace(unread, result=Result.BUSY, reason=None)
    return [*decided, replace(welcome, offer=sent_offer()), without_cohort, unread, busy]


def test_every_reply_is_of_its_model_and_every_member_of_a_model_is_sent() -> None:
    seen: dict[type[BaseModel], set[str]] = {}
    for reply in sent_replies():
        document = json.loads(reply.encode(NOW))
        model = MODELS[reply.result]
        model.model_validate(document)
        schema_of(model.__name__).validate(document)
        seen.setdefault(model, set()).update(document)
    for model in MODELS.values():
        assert seen[model] == {field.alias or name for name, field in model.model_fields.items()}


def test_offers_are_of_their_models() -> None:
    offer = sent_offer()
    cancelled = sent_offer(
        state=AttemptState.CANCELLED, reason="rollout_cancelled", finished_at=NOW, revision=2
    )
    for model, document in ((Offer, offer), (Cancellation, cancelled)):
        model.model_validate(document)
        schema_of(model.__name__).validate(document)
        assert set(document) == set(model.model_fields)
    with pytest.raises(ValidationError):
        Offer.model_validate(offer | {"undescribed": 1})
    schema_of("Offer").validate(offer | {"undescribed": 1})


def schema_of(name: str) -> Any:
    """A validator of one schema of the document."""
    schemas = DOCUMENT["components"]["schemas"]
    return jsonschema_rs.Draft7Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    )


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["messages"]))
def test_each_example_fits(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    schema = message["payload"]["$ref"].rpartition("/")[2]
    assert message["examples"]
    for example in message["examples"]:
        schema_of(schema).validate(example["payload"])
        if name in list(Up):
            content = json.loads(base64.b64decode(example["payload"]["payload"]))
            schema_of(name.capitalize()).validate(content)
            assert not schema_of(name.capitalize()).is_valid(content | {"seq": "1"})


def test_members_are_explained_in_the_protocols_words() -> None:
    members = DOCUMENT["components"]["schemas"]["Hello"]["properties"]
    assert members["nonce"]["description"] == "random, new for each hello; the reply repeats it"
    silent = {
        f"{name}.{member}"
        for name in ("Hello", "Presence", "Progress", "Welcome", "Challenge", "Offer", "Cancellation")
        for member, schema in DOCUMENT["components"]["schemas"][name]["properties"].items()
        if not {"description", "$ref", "const", "enum"} & schema.keys()
    }
    assert silent == set()


# --- AsyncAPI itself


@pytest.fixture(scope="module")
def parser() -> list[str]:
    """The command that reads a document with @asyncapi/parser, as tests/asyncapi/package-lock.json pins it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        unavailable("node and npm are not installed")
    assert node is not None
    assert npm is not None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < 18:
        unavailable(f"Node 18 or newer is needed, {version} was found")
    marker, lock = CHECKER / "node_modules" / ".package-lock.json", CHECKER / "package-lock.json"
    if not marker.exists() or marker.stat().st_mtime < lock.stat().st_mtime:
        install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=CHECKER, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            unavailable(f"npm ci failed: {done.stderr.strip()[-300:]}")
    return [node, str(CHECKER / "validate.mjs")]


def unavailable(why: str) -> None:
    """Skips with the reason; in CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{why} (in CI this never skips)")
    pytest.skip(why)


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("asyncapi")
def test_the_parser_finds_no_error(parser: list[str]) -> None:
    done = subprocess.run([*parser, str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": error: " not in done.stdout
    assert "AsyncAPI 3.0.0, 5 channels, 5 operations" in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("asyncapi")
@pytest.mark.parametrize("fault", ["qos", "reference", "action"])
def test_the_parser_would_find_one(parser: list[str], tmp_path: Path, fault: str) -> None:
    broken = json.loads(json.dumps(DOCUMENT))
    match fault:
        case "qos":
            broken["operations"]["sayHello"]["bindings"]["mqtt"]["qos"] = 3
        case "reference":
            broken["channels"]["hello"]["messages"]["hello"]["$ref"] = "#/components/messages/gone"
        case "action":
            broken["operations"]["sayHello"]["action"] = "shout"
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(broken), encoding="utf-8")
    done = subprocess.run([*parser, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ": error: " in done.stdout
