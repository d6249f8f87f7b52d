"""Decisions on hellos, as tables: who comes in, who does not, and why."""

import base64
from collections import Counter

import pytest
from worlds import TERMS, World

from provisioning.authorities import AuthorityState
from provisioning.devices import CredentialState, DeviceState
from provisioning.envelope import key_id_of, previous_statement, sign, spki_of
from provisioning.errors import RejectReason
from provisioning.freshness import make_challenge
from provisioning.ids import TopicName
from provisioning.messages import Result
from provisioning.statistics import list_deltas

BOOT_A, BOOT_B = "a" * 16, "b" * 16


@pytest.mark.parametrize(
    ("jitp", "cn", "reason"),
    [
        ({}, "dev-1", None),
        ({"enabled": False}, "dev-1", RejectReason.JITP_DISABLED),
        ({"identifier_pattern": "x.*"}, "dev-1", RejectReason.IDENTIFIER_PATTERN),
        ({"identifier_source": "serial_number"}, "dev-1", RejectReason.IDENTIFIER_MISSING),
        ({"mode": "allow_list", "allow_list": ["dev-2"]}, "dev-1", RejectReason.NOT_ON_ALLOW_LIST),
        ({"mode": "allow_list", "allow_list": ["dev-1"]}, "dev-1", None),
        ({"mode": "approval"}, "dev-1", RejectReason.APPROVAL_REQUIRED),
        ({"quota": 0}, "dev-1", RejectReason.QUOTA_EXHAUSTED),
    ],
)
def test_an_unknown_device(jitp: dict[str, object], cn: str, reason: RejectReason | None) -> None:
    world = World(**jitp)
    verdict = world.say(world.make(cn))
    assert verdict.reply is not None
    assert verdict.reply.reason == reason
    assert len(world.facts.devices) == (1 if reason is None else 0)
    assert [refusal.reason for refusal in world.facts.refusals] == ([] if reason is None else [reason])
    failed = [rule for rule in verdict.rules if rule.passed is False]
    assert [rule.reason for rule in failed] == ([] if reason is None else [reason])


def test_a_retiring_ca_keeps_its_devices_and_enrolls_no_new_ones() -> None:
    world = World()
    known = world.make("dev-1")
    world.say(known)
    world.with_authority(AuthorityState.RETIRING)
    replies = [world.say(made).reply for made in (known, world.make("dev-2"))]
    assert [reply.reason for reply in replies if reply] == [None, RejectReason.CA_RETIRING]


def test_the_quota_holds_within_one_batch() -> None:
    world = World(quota=2)
    replies = [world.say(world.make(f"dev-{number}")).reply for number in range(4)]
    assert Counter(reply.reason for reply in replies if reply) == {None: 2, RejectReason.QUOTA_EXHAUSTED: 2}


def test_a_new_key_without_the_old_ones_word_is_refused_and_with_it_replaces_the_old_at_its_second_hello() -> (
    None
):
    world = World()
    old = world.make("dev-1")
    world.say(old)
    new = world.make("dev-1")
    refused = world.say(new).reply
    assert refused is not None
    assert refused.reason is RejectReason.KEY_CHANGE_UNPROVEN
    statement = previous_statement(TERMS.audience, "dev-1", spki_of(new.key.public_key()))
    previous = {
        "keyid": key_id_of(old.key.public_key()),
        "signature": base64.b64encode(sign(old.key, statement)).decode(),
    }
    first = world.say(new, previous=previous).reply
    assert first is not None
    assert first.result is Result.WELCOME
    still = world.say(old).reply
    assert still is not None
    assert still.result is Result.WELCOME, "the old key works until the new one's second hello"
    world.say(new)
    assert world.facts.credentials[key_id_of(old.key.public_key())].state is CredentialState.REPLACED
    gone = world.say(old).reply
    assert gone is not None
    assert gone.reason is RejectReason.KEY_REVOKED
    assert len(world.facts.devices) == 1


def test_a_renewed_certificate_on_the_same_key_is_the_same_credential() -> None:
    world = World()
    first = world.make("dev-1")
    world.say(first)
    world.say(world.make("dev-1", private_key=first.key))
    assert len(world.facts.credentials) == 1
    assert len(world.facts.certificates) == 2


def test_an_older_time_than_the_last_accepted_is_challenged_and_changes_nothing() -> None:
    world = World()
    made = world.make("dev-1")
    world.say(made)
    events = len(world.facts.events)
    reply = world.say(made, ts=int(world.now.timestamp() * 1000) - 60_000).reply
    assert reply is not None
    assert (reply.result, reply.reason) == (Result.CHALLENGE, RejectReason.NOT_FRESH)
    assert len(world.facts.events) == events


def test_two_boots_that_take_turns_on_one_key_are_quarantined_and_a_reboot_is_not() -> None:
    world = World()
    made = world.make("dev-1")

    def challenged(boot: str) -> str:
        challenge = make_challenge(TERMS.challenge_key, TopicName("dev-1"), int(world.now.timestamp() * 1000))
        world.say(made, boot=boot, ts=None, challenge=challenge)
        (device,) = world.facts.devices.values()
        return device.state

    world.say(made, boot=BOOT_A)
    assert challenged(BOOT_B) == DeviceState.ACTIVE, "a reboot"
    assert challenged(BOOT_A) == DeviceState.ACTIVE, "once back is not proof"
    assert challenged(BOOT_B) == DeviceState.QUARANTINED
    reply = world.say(made, boot="c" * 16).reply
    assert reply is not None
    assert (reply.result, reply.reason) == (Result.WELCOME, RejectReason.DEVICE_QUARANTINED)


def test_counters_follow_the_events_of_sessions() -> None:
    world = World()
    made = world.make("dev-1")
    for _ in range(3):
        world.say(made)
    world.say(made, stays=False)
    sums: Counter[tuple[str, str]] = Counter()
    for event in world.facts.events:
        for delta in list_deltas(event):
            if delta.bucket == 0:
                sums[delta.name, delta.word] += delta.change
    assert sums["connected", ""] == 0
    assert sums["connects", "first"] + sums["connects", "return"] == 4
    assert sums["disconnects", "replaced"] == 3
    assert sums["disconnects", "short"] == 1
    assert sums["devices", "active"] == 1
