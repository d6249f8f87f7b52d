"""The pipeline keeps its batch going, whatever one message does."""

import base64
import json
from dataclasses import dataclass
from datetime import datetime

import pytest
import sqlalchemy as sa

from gateway import prover as module
from gateway.device.factory import create_authority
from gateway.pipeline import Pipeline
from provisioning.envelope import payload_type, sign_envelope
from provisioning.errors import RejectReason
from provisioning.greeting import Terms
from provisioning.messages import Result
from store.database import Database
from store.ids import new_id
from store.schema import set_aside
from store.times import now_utc

TERMS = Terms(audience="gw", challenge_key=b"k" * 32, heartbeat_seconds=60)


@dataclass(frozen=True, slots=True)
class Said:
    topic: str
    payload: bytes
    received_at: datetime


@pytest.fixture
def pipeline(database: Database) -> Pipeline:
    return Pipeline(database, terms=lambda: TERMS, broker="main", worker="w", prefix="fg/v1", new_id=new_id)


def hello(name: str) -> Said:
    now = now_utc()
    made = create_authority("Nobody's CA", now=now).issue(name, now=now)
    topic = f"fg/v1/{name}/hello"
    document = {
        "v": 1,
        "aud": "gw",
        "topic": topic,
        "conn": "c" * 16,
        "boot": "b" * 16,
        "seq": 1,
        "ts": int(now.timestamp() * 1000),
        "nonce": f"nonce-{name}",
        "chain": [base64.b64encode(der).decode() for der in made.der_chain],
        "hardware": {"model": "m"},
        "firmware": {"version": "1"},
    }
    payload = sign_envelope(made.key, payload_type("hello"), json.dumps(document).encode())
    return Said(topic, payload, now)


def test_a_message_that_breaks_our_code_is_set_aside_and_the_others_go_on(
    pipeline: Pipeline, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = hello("bad-1"), hello("good-1")
    parse = module.parse_message

    def breaks(*arguments: object, **named: object) -> object:
        if named["full_topic"] == bad.topic:
            raise TypeError("a fault of ours")
        return parse(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "parse_message", breaks)
    replies = pipeline.work([bad, good]).replies
    assert [reply.result for reply in replies if reply] == [Result.BUSY, Result.REJECTED]
    assert [reply.reason for reply in replies if reply] == [
        RejectReason.INTERNAL_ERROR,
        RejectReason.UNKNOWN_CA,
    ]
    with database.read() as tx:
        (row,) = tx.connection.execute(sa.select(set_aside)).all()
    assert (row.topic_name, row.payload) == ("bad-1", bad.payload)
    assert "a fault of ours" in row.cause


@pytest.mark.parametrize("verb", ["hello", "presence", "progress"])
@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[1]", b'{"payload":1}', b"x" * 20_000])
def test_what_cannot_be_read_is_answered_on_the_topic_that_the_broker_proved(
    pipeline: Pipeline, payload: bytes, verb: str
) -> None:
    (reply,) = pipeline.work([Said(f"fg/v1/dev-1/{verb}", payload, now_utc())]).replies
    assert reply is not None
    assert (reply.topic_name, reply.result, reply.for_nonce) == ("dev-1", Result.REJECTED, None)


def test_a_topic_that_is_not_ours_is_answered_to_nobody(pipeline: Pipeline) -> None:
    for topic in ("fg/v1/dev-1/reply", "fg/v1/a/b/hello", "other/dev-1/hello", "fg/v1//hello"):
        assert pipeline.work([Said(topic, b"{}", now_utc())]).replies == [None]
