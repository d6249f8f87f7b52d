"""What devices say is what the gateway's own parsers read; what they are told is read with every member missing."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.device.factory import create_authority, new_key
from gateway.device.messages import (
    Identity,
    Presence,
    Profile,
    Reply,
    Result,
    Voice,
    load_identity,
    new_nonce,
    parse_reply,
)
from provisioning.envelope import (
    key_id_of,
    parse_envelope,
    previous_statement,
    spki_of,
    verify_envelope,
    verify_signature,
)
from provisioning.errors import InvalidError, MessageError, RejectReason
from provisioning.ids import TopicName
from provisioning.messages import Hello, Message, Progress, decode_chain, parse_message
from provisioning.messages import Presence as HeardPresence
from provisioning.messages import Reply as SaidReply
from provisioning.messages import Result as SaidResult
from provisioning.topics import Up, parse_up
from store.times import now_utc

NOW = now_utc()
ROOT = create_authority("root", now=NOW)
BETWEEN = create_authority("between", now=NOW, issuer=ROOT)
MADE = BETWEEN.issue("dev-1", now=NOW, send_issuer=True)
PREFIX = "acme/v1"


def voice(**more: Any) -> Voice:
    return Voice(load_identity(MADE.pem, MADE.key_pem), audience="gw.example.com", prefix=PREFIX, **more)


def heard(speaker: Voice, verb: Up, data: bytes) -> Message:
    """What the gateway makes of a message: parsed, and its signature proven."""
    full = speaker.topic(verb)
    topic = parse_up(full, PREFIX)
    assert topic is not None
    envelope = parse_envelope(data)
    assert envelope.key_id == key_id_of(speaker.identity.key.public_key())
    verify_envelope(envelope, speaker.identity.key.public_key())
    return parse_message(envelope, topic, full_topic=full, audience=speaker.audience)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519"])
def test_every_kind_of_key_signs_what_the_gateway_verifies(kind: str) -> None:
    made = ROOT.issue("dev-2", now=NOW, key=kind)
    speaker = Voice(load_identity(made.pem, made.key_pem), audience="gw", prefix=PREFIX)
    assert isinstance(heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce())), Hello)


def test_a_full_hello_says_everything_it_was_told() -> None:
    profile = Profile(
        model="pump",
        revision="B",
        version="1.4.0",
        bundle_seq=7,
        time_zone="Europe/Berlin",
        attributes={"site": "north", "floor": 3, "tested": True, "load": 0.5},
        stays=False,
    )
    speaker = voice(profile=profile)
    last_update = {"offer_id": "12", "result": "failed", "reason": "no_space"}
    said = heard(speaker, Up.HELLO, speaker.hello(nonce="n" * 8, ts=1234, last_update=last_update))
    assert isinstance(said, Hello)
    assert (said.conn, said.boot, said.seq) == (speaker.conn, speaker.boot, 1)
    assert (said.ts, said.challenge, said.nonce, said.stays) == (1234, None, "n" * 8, False)
    assert (said.hardware.model, said.hardware.revision) == ("pump", "B")
    assert (said.firmware.version, said.firmware.bundle_seq) == ("1.4.0", 7)
    assert said.time_zone == "Europe/Berlin"
    assert said.attributes == dict(profile.attributes)
    assert said.last_update is not None
    assert said.last_update.model_dump() == last_update
    assert decode_chain(said) == MADE.der_chain
    assert said.previous is None


def test_a_bare_hello_leaves_out_what_there_is_not() -> None:
    speaker = voice()
    said = heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce(), with_chain=False))
    assert isinstance(said, Hello)
    assert (said.ts, said.challenge, said.chain, said.stays) == (None, None, [], True)
    assert (said.time_zone, said.firmware.bundle_seq, said.hardware.revision) == (None, None, "")


def test_a_challenge_takes_the_place_of_the_time() -> None:
    speaker = voice()
    said = heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce(), ts=5, challenge="c1"))
    assert isinstance(said, Hello)
    assert (said.ts, said.challenge) == (None, "c1")


def test_the_old_key_speaks_for_the_new_one() -> None:
    old = new_key()
    speaker = voice(previous_key=old)
    said = heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce()))
    assert isinstance(said, Hello)
    assert said.previous is not None
    assert said.previous.keyid == key_id_of(old.public_key())
    statement = previous_statement("gw.example.com", "dev-1", spki_of(speaker.identity.key.public_key()))
    verify_signature(old.public_key(), base64.b64decode(said.previous.signature), statement)


@pytest.mark.parametrize("state", list(Presence))
def test_every_presence_is_read(state: Presence) -> None:
    speaker = voice()
    said = heard(speaker, Up.PRESENCE, speaker.presence(state))
    assert isinstance(said, HeardPresence)
    assert (said.state, said.seq) == (state, 1)


def test_a_report_on_an_update_is_read() -> None:
    speaker = voice()
    said = heard(
        speaker,
        Up.PROGRESS,
        speaker.progress(
            offer_id="17", state="downloading", percent=40, reason="r", detail="d", defer_until=99
        ),
    )
    assert isinstance(said, Progress)
    assert (said.offer_id, said.state, said.percent) == ("17", "downloading", 40)
    assert (said.reason, said.detail, said.defer_until) == ("r", "d", 99)


def test_seq_counts_all_verbs_within_a_conn_and_the_will_has_none() -> None:
    speaker = voice()
    boot, first_conn = speaker.boot, speaker.conn
    will = heard(speaker, Up.PRESENCE, speaker.begin_connection())
    assert isinstance(will, HeardPresence)
    assert (will.seq, will.state, will.conn) == (0, "offline", speaker.conn)
    said = [
        heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce())),
        heard(speaker, Up.PRESENCE, speaker.presence(Presence.ONLINE)),
        heard(speaker, Up.PROGRESS, speaker.progress(offer_id="1", state="accepted")),
    ]
    assert [message.seq for message in said] == [1, 2, 3]
    assert {message.conn for message in said} == {speaker.conn} != {first_conn}
    speaker.begin_connection()
    again = heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce()))
    assert (again.seq, again.boot) == (1, boot)
    speaker.reboot(version="2.0.0", bundle_seq=8)
    reborn = heard(speaker, Up.HELLO, speaker.hello(nonce=new_nonce()))
    assert isinstance(reborn, Hello)
    assert reborn.boot != boot
    assert (reborn.firmware.version, reborn.firmware.bundle_seq) == ("2.0.0", 8)


def said_reply(result: SaidResult, **more: Any) -> Reply:
    reply = SaidReply(topic_name=TopicName("dev-1"), result=result, for_nonce="nonce-01", **more)
    return parse_reply(reply.encode(NOW))


def test_a_welcome_of_the_gateway_is_understood() -> None:
    reply = said_reply(
        SaidResult.WELCOME,
        device_id="99",
        identifier="pump-17",
        product="pump",
        cohort="main",
        heartbeat_seconds=60,
        offer={"offer_id": "1"},
    )
    assert reply == Reply(
        nonce="nonce-01",
        result=Result.WELCOME,
        identifier="pump-17",
        product="pump",
        cohort="main",
        heartbeat_seconds=60,
        server_time=int(NOW.timestamp() * 1000),
        offer={"offer_id": "1"},
    )


@pytest.mark.parametrize("result", [SaidResult.PENDING, SaidResult.REJECTED, SaidResult.BUSY])
def test_every_refusal_of_the_gateway_is_understood(result: SaidResult) -> None:
    reply = said_reply(result, reason=RejectReason.QUOTA_EXHAUSTED, retry_after_seconds=600)
    assert (reply.result, reply.reason, reply.retry_after_seconds) == (result, "quota_exhausted", 600)


def test_a_challenge_of_the_gateway_is_understood() -> None:
    reply = said_reply(SaidResult.CHALLENGE, reason=RejectReason.CLOCK_OFF, challenge="c1")
    assert (reply.result, reply.reason, reply.challenge) == (Result.CHALLENGE, "clock_off", "c1")


def test_a_result_of_a_later_version_is_busy_and_unknown_members_are_ignored() -> None:
    reply = parse_reply(b'{"v":1,"for":null,"result":"come_on_tuesday","weather":{"rain":[1,2]}}')
    assert reply == Reply(nonce=None, result=Result.BUSY)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("reason", ["x"]),
        ("retry_after_seconds", "soon"),
        ("retry_after_seconds", -1),
        ("retry_after_seconds", True),
        ("heartbeat_seconds", -5),
        ("device", "dev-1"),
        ("product", None),
        ("challenge", {}),
        ("offer", []),
        ("server_time", False),
    ],
)
def test_a_member_of_the_wrong_kind_is_as_if_it_were_missing(member: str, value: object) -> None:
    document = {"v": 1, "for": None, "result": "welcome"}
    assert parse_reply(json.dumps(document | {member: value}).encode()) == parse_reply(
        json.dumps(document).encode()
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", RejectReason.MALFORMED_JSON),
        (b"\xff\xfe", RejectReason.MALFORMED_JSON),
        (b"[]", RejectReason.MALFORMED_MESSAGE),
        (b"{}", RejectReason.MALFORMED_MESSAGE),
        (b'{"result":null}', RejectReason.MALFORMED_MESSAGE),
        (b'{"result":"welcome"}', RejectReason.MALFORMED_MESSAGE),
        (b'{"for":7,"result":"welcome"}', RejectReason.MALFORMED_MESSAGE),
        (b'{"result":{"welcome":1}}', RejectReason.MALFORMED_MESSAGE),
    ],
)
def test_what_is_no_reply_says_so(data: bytes, reason: RejectReason) -> None:
    with pytest.raises(MessageError) as caught:
        parse_reply(data)
    assert caught.value.reason is reason


@given(st.binary(max_size=200))
def test_whatever_arrives_nothing_else_is_raised(data: bytes) -> None:
    try:
        parse_reply(data)
    except MessageError:
        return


def test_an_identity_is_a_pair_that_fits() -> None:
    identity: Identity = load_identity(MADE.pem, MADE.key_pem)
    assert (identity.topic_name, identity.chain) == ("dev-1", MADE.der_chain)
    other = ROOT.issue("dev-3", now=NOW)
    with pytest.raises(InvalidError, match="does not belong"):
        load_identity(MADE.pem, other.key_pem)
    with pytest.raises(InvalidError, match="cannot be read as PEM"):
        load_identity(b"nothing", MADE.key_pem)
    slash = ROOT.issue("a/b", now=NOW)
    with pytest.raises(InvalidError, match="cannot be a topic name"):
        load_identity(slash.pem, slash.key_pem)
