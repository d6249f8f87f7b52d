"""Which firmware a device is offered: the rules, one by one, as the function that decides lists them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from test_attempts import make as make_attempt
from worlds import NOW

from provisioning.attempts import AttemptState
from provisioning.bundles import Artifact, Bundle, BundleStatement, Hardware
from provisioning.devices import Device, DeviceState
from provisioning.ids import BundleId, CohortId, DeviceId, OverrideId, ProductId, RolloutId, TopicName
from provisioning.offers import OfferDecision, OfferFacts, Tries, decide_offer, render_offer
from provisioning.pacing import Flight, count_room
from provisioning.rollouts import Override, Plan, Rollout, RolloutState

DEVICE = Device(
    id=DeviceId(1),
    product_id=ProductId(1),
    cohort_id=CohortId(1),
    identifier="dev-1",
    broker="main",
    topic_name=TopicName("dev-1"),
    state=DeviceState.ACTIVE,
    created_at=NOW,
    hardware_model="m",
    hardware_revision="r1",
    firmware_version="1.0.0",
)
VERSIONS = {"1.0.0": 1, "2.0.0": 2, "3.0.0": 3}


def bundle(seq: int, **changes: Any) -> Bundle:
    statement = BundleStatement(
        **(
            {
                "product": "sensor",
                "version": f"{seq}.0.0",
                "bundle_seq": seq,
                "artifacts": (Artifact(name="a.bin", size=1, sha256="0" * 64),),
            }
            | changes
        )
    )
    return Bundle(
        id=BundleId(seq), product_id=ProductId(1), digest="0" * 64, envelope=b"{}", statement=statement
    )


def rollout(seq: int, state: RolloutState = RolloutState.RUNNING, **changes: Any) -> Rollout:
    plan = Plan(**changes.pop("plan", {}))
    return Rollout(
        id=RolloutId(100 + seq),
        group=1,
        product_id=ProductId(1),
        cohort_id=CohortId(1),
        bundle=bundle(seq, **changes),
        state=state,
        plan=plan,
        start_at=NOW + timedelta(hours=1),
        created_at=NOW,
    )


def decide(**changes: Any) -> OfferDecision:
    device = replace(DEVICE, **changes.pop("device", {}))
    facts = {"device": device, "rollouts": [rollout(2)], "versions": VERSIONS, "connected": True}
    return decide_offer(OfferFacts(**(facts | changes)), NOW)


def failed(decision: OfferDecision) -> list[str]:
    return [rule.name for rule in decision.rules if rule.passed is False]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"device": {"state": DeviceState.QUARANTINED}}, "device_state"),
        ({"device": {"state": DeviceState.BLOCKED}}, "device_state"),
        ({"device": {"updates_enabled": False}}, "updates_enabled"),
        ({"rollouts": []}, "sequence"),
        ({"device": {"firmware_version": "2.0.0"}}, "sequence"),
        ({"device": {"firmware_version": "other", "firmware_bundle_seq": 2}}, "sequence"),
        ({"device": {"highest_bundle_seq": 3}}, "sequence"),
        ({"rollouts": [rollout(2, RolloutState.SCHEDULED)]}, "rollout"),
        ({"rollouts": [rollout(2, RolloutState.PAUSED)]}, "rollout"),
        ({"rollouts": [rollout(2, RolloutState.HALTED)]}, "rollout"),
        ({"rollouts": [rollout(2, RolloutState.CANCELLED)]}, "sequence"),
        ({"rollouts": [rollout(2, hardware=(Hardware(model="n"),))]}, "rollout"),
        ({"rollouts": [rollout(2, hardware=(Hardware(model="m", revisions=("r2",)),))]}, "rollout"),
        ({"rollouts": [rollout(3, floor=2)]}, "rollout"),
        ({"tries": {102: Tries(count=1, last=AttemptState.FAILED)}}, "tries"),
        ({"tries": {102: Tries(count=3, last=AttemptState.TIMED_OUT)}}, "tries"),
        ({"attempt": make_attempt(rollout_id=RolloutId(102))}, "open_attempt"),
        ({"connected": False}, "connected"),
        ({"flights": {102: Flight(in_flight=100)}}, "pace"),
        ({"flights": {102: Flight(last_minute=600, oldest_at=NOW)}}, "pace"),
    ],
)
def test_each_rule_keeps_an_offer_back_and_is_named(changes: dict[str, Any], rule: str) -> None:
    decision = decide(**changes)
    assert not decision.ready
    assert failed(decision) == [rule]
    after = [one.name for one in decision.rules][[one.passed for one in decision.rules].index(False) + 1 :]
    assert {one.passed for one in decision.rules if one.name in after and one.passed is not True} <= {
        None,
        False,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device": {"firmware_version": "unknown"}},
        {
            "device": {"highest_bundle_seq": 2}
        },  # it ran this one before, and went back: the same again is no way back
        {"rollouts": [rollout(2, RolloutState.COMPLETED)]},  # late joiners are served
        {"rollouts": [rollout(2, hardware=(Hardware(model="m", revisions=("r1",)),))]},
        {"tries": {102: Tries(count=1, last=AttemptState.TIMED_OUT)}},
        {"tries": {999: Tries(count=9, last=AttemptState.FAILED)}},
    ],
)
def test_nothing_stands_in_the_way(changes: dict[str, Any]) -> None:
    decision = decide(**changes)
    assert decision.ready
    assert failed(decision) == []
    assert decision.source is not None
    assert decision.source.id == 102


def test_the_newest_that_applies_is_the_candidate_up_to_the_first_required() -> None:
    newest = decide(rollouts=[rollout(2), rollout(3)])
    assert newest.source is not None
    assert newest.source.bundle.version == "3.0.0"
    passed_over = decide(rollouts=[rollout(2), rollout(3, RolloutState.PAUSED)])
    assert passed_over.source is not None
    assert (passed_over.source.bundle.version, failed(passed_over)) == ("2.0.0", ["rollout"])
    required = decide(rollouts=[rollout(2, plan={"required": True}), rollout(3)])
    assert required.source is not None
    assert required.source.bundle.version == "2.0.0"
    unfit = decide(
        rollouts=[rollout(2, plan={"required": True}, hardware=(Hardware(model="n"),)), rollout(3)]
    )
    assert unfit.source is not None
    assert unfit.source.bundle.version == "3.0.0"


def override(seq: int, **changes: Any) -> Override:
    return Override(
        id=OverrideId(50),
        product_id=ProductId(1),
        bundle=bundle(seq),
        starts_at=changes.get("starts_at", NOW),
        ends_at=changes.get("ends_at"),
        plan=Plan(),
    )


@pytest.mark.parametrize(
    ("chosen", "version"),
    [
        (override(3), "3.0.0"),
        (override(3, starts_at=NOW + timedelta(seconds=1)), "2.0.0"),
        (override(3, ends_at=NOW), "2.0.0"),
        (override(1), "2.0.0"),
    ],
)
def test_an_override_goes_first_while_it_lasts(chosen: Override, version: str) -> None:
    decision = decide(override=chosen)
    assert decision.source is not None
    assert decision.source.bundle.version == version


def test_a_newer_bundle_supersedes_what_was_only_offered_and_nothing_that_has_begun() -> None:
    older = make_attempt(rollout_id=RolloutId(102), bundle_seq=2)
    decision = decide(rollouts=[rollout(2), rollout(3)], attempt=older)
    assert (decision.ready, decision.supersedes) == (True, older)
    begun = replace(older, state=AttemptState.DOWNLOADING)
    assert failed(decide(rollouts=[rollout(2), rollout(3)], attempt=begun)) == ["open_attempt"]


def test_a_deferred_attempt_resumes_when_its_time_has_come() -> None:
    later = make_attempt(
        rollout_id=RolloutId(102), state=AttemptState.DEFERRED, defer_until=NOW + timedelta(seconds=5)
    )
    waiting = decide(attempt=later)
    assert (waiting.ready, waiting.waits) == (False, True)
    assert waiting.rules[-3].changes_at == NOW + timedelta(seconds=5)
    due = replace(later, defer_until=NOW)
    decision = decide(attempt=due)
    assert (decision.ready, decision.resumes) == (True, due)


@pytest.mark.parametrize(
    ("flight", "room"),
    [
        (Flight(), 5),
        (Flight(in_flight=3), 2),
        (Flight(in_flight=9), 0),
        (Flight(in_flight=1, last_minute=7), 1),
        (Flight(last_minute=8), 0),
    ],
)
def test_the_room_is_the_lesser_of_both_limits_and_never_negative(flight: Flight, room: int) -> None:
    assert count_room(Plan(most_in_flight=5, most_per_minute=8), flight) == room


def test_an_offer_and_its_cancellation() -> None:
    attempt = make_attempt()
    offer = render_offer(attempt, bundle(2), lambda sha256, name: f"http://x/{sha256[:2]}/{name}")
    assert (offer["offer_id"], offer["revision"], offer["bundle_seq"]) == ("7", 1, 2)
    assert offer["artifacts"] == [
        {"name": "a.bin", "url": "http://x/00/a.bin", "size": 1, "sha256": "0" * 64}
    ]
    ended = replace(
        attempt, state=AttemptState.CANCELLED, reason="rollout_cancelled", finished_at=NOW, revision=2
    )
    assert render_offer(ended, bundle(2), lambda *_: "") == {
        "v": 1, "offer_id": "7", "revision": 2, "cancelled": True, "reason": "rollout_cancelled",
    }  # fmt: skip
