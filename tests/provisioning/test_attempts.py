"""Attempts under any order, repetition and loss of reports: ends are final, slots return, nothing counts twice."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, World

from provisioning.attempts import (
    ENDS,
    STEPS,
    Attempt,
    AttemptState,
    Ending,
    Timeouts,
    clean_reason,
    defer,
    end,
    judge_hello,
    resume,
    step,
    timeout_of,
)
from provisioning.ids import AttemptId, BundleId, CohortId, DeviceId, ProductId, RolloutId
from provisioning.messages import Progress
from provisioning.statistics import list_deltas, success_rate
from provisioning.updates import apply_progress, apply_timeout

LIMITS = Timeouts(accept_seconds=60, step_seconds=120, total_seconds=600)
WORDS = [state.value for state in AttemptState] + ["unheard_of"]


def make(device: int = 1, number: int = 7, **changes: Any) -> Attempt:
    return Attempt(
        **(
            {
                "id": AttemptId(number),
                "device_id": DeviceId(device),
                "product_id": ProductId(1),
                "cohort_id": CohortId(1),
                "rollout_id": RolloutId(5),
                "override_id": None,
                "bundle_id": BundleId(3),
                "bundle_version": "2.0.0",
                "bundle_seq": 2,
                "hardware_model": "m",
                "from_version": "1.0.0",
                "from_boot": "a" * 16,
                "state": AttemptState.OFFERED,
                "revision": 1,
                "timeouts": LIMITS,
                "offered_at": NOW,
                "stepped_at": NOW,
            }
            | changes
        )
    )


def report(state: str, offer_id: str = "7", **more: Any) -> Progress:
    return Progress.model_validate(
        {
            "v": 1,
            "aud": "gw",
            "topic": "t",
            "conn": "c" * 16,
            "boot": "b" * 16,
            "seq": 1,
            "offer_id": offer_id,
            "state": state,
            **more,
        }
    )


REPORTS = st.tuples(
    st.sampled_from(WORDS),
    st.sampled_from(["7", "8"]),
    st.integers(0, 100) | st.none(),
    st.sampled_from(["", "no_space", "Sentence with blanks", "x" * 200]),
    st.integers(0, 2**53) | st.none(),
    st.integers(0, 300),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(REPORTS, st.just("timeout"), st.just("resume")), max_size=25), st.data())
def test_any_order_repetition_and_loss_of_reports(happened: list[Any], data: st.DataObject) -> None:
    world = World()
    device = data.draw(st.just(_device(world)))
    facts, now = world.facts, NOW
    facts.save_attempt(make(device.id), now)
    seen_ends: list[Attempt] = []
    for one in happened:
        before = facts.attempts[device.id]
        match one:
            case "timeout":
                apply_timeout(facts, before, now)
            case "resume":
                if before.state is AttemptState.DEFERRED:
                    facts.save_attempt(resume(before, before.revision + 1, now), now)
            case (word, offer_id, percent, reason, until, seconds):
                now += timedelta(seconds=seconds)
                more = {"percent": percent, "reason": reason, "defer_until": until}
                progress = report(word, offer_id, **{k: v for k, v in more.items() if v is not None})
                apply_progress(facts, device, progress, now)
        after = facts.attempts[device.id]
        if not before.is_open:
            assert after == before, "an end is final"
        if before.state in STEPS and after.state in STEPS and one != "resume":
            assert STEPS.index(after.state) >= STEPS.index(before.state), "steps go forward"
        if not after.is_open:
            seen_ends.append(after)
            assert after.finished_at is not None
        assert after.in_flight == (after.state in STEPS), "a slot is held by steps alone"
        assert (after.times_out_at is None) == (not after.is_open)
        assert len(after.reason) <= 32
    counted: Counter[tuple[str, str]] = Counter()
    for event in facts.events:
        for delta in list_deltas(event):
            if delta.bucket == 0:
                counted[delta.name, delta.word] += delta.change
    last = facts.attempts[device.id]
    states = {word: value for (name, word), value in counted.items() if name == "attempts" and value}
    assert states == {last.state.value: 1}, "counted exactly where it stands"
    assert {word: value for (name, word), value in counted.items() if name == "rollout" and value} == {
        f"5/{last.state.value}": 1
    }
    ended = sum(value for (name, _), value in counted.items() if name == "outcomes")
    assert ended == (0 if last.is_open else 1)
    assert all(value >= 0 for value in counted.values())


def _device(world: World) -> Any:
    world.say(world.make("dev-1"))
    world.facts.events.clear()
    (device,) = world.facts.devices.values()
    return device


@pytest.mark.parametrize(
    ("state", "version", "seq", "boot", "result", "expected"),
    [
        ("offered", "2.0.0", None, "b" * 16, None, AttemptState.SUCCEEDED),
        ("rebooting", "2.0.0", 2, "b" * 16, None, AttemptState.SUCCEEDED),
        ("rebooting", "2.0.0", 3, "b" * 16, None, None),  # another image of that version
        ("rebooting", "2.0.0", 2, "b" * 16, "failed", AttemptState.SUCCEEDED),  # what runs has the last word
        ("installing", "1.0.0", None, "b" * 16, None, AttemptState.ROLLED_BACK),
        ("installing", "1.0.0", None, "a" * 16, None, None),  # only reconnected
        ("downloading", "1.0.0", None, "b" * 16, None, None),  # rebooted before it installed
        ("downloading", "1.0.0", None, "b" * 16, "rolled_back", AttemptState.ROLLED_BACK),
        ("offered", "1.0.0", None, "a" * 16, "failed", AttemptState.FAILED),
        ("offered", "1.0.0", None, "a" * 16, "rejected", AttemptState.REJECTED),
        ("offered", "1.0.0", None, "a" * 16, "succeeded", None),  # a claim is no proof
        ("deferred", "1.0.0", None, "b" * 16, None, None),
    ],
)
def test_what_a_hello_says_of_an_open_attempt(
    state: str, version: str, seq: int | None, boot: str, result: str | None, expected: AttemptState | None
) -> None:
    attempt = make(state=AttemptState(state))
    ending = judge_hello(attempt, version=version, bundle_seq=seq, boot=boot, result=result, reason="")
    assert (None if ending is None else ending.state) == expected


@pytest.mark.parametrize(
    ("state", "seconds", "reason"),
    [
        ("offered", 60, "not_accepted_in_time"),
        ("downloading", 120, "step_too_long"),
        ("waiting", 600, "attempt_too_long"),
        ("deferred", 600, "attempt_too_long"),
    ],
)
def test_when_an_attempt_ends_by_itself(state: str, seconds: int, reason: str) -> None:
    attempt = make(state=AttemptState(state))
    assert timeout_of(attempt) == (NOW + timedelta(seconds=seconds), reason)


def test_what_was_put_off_has_its_whole_time_to_be_accepted_again() -> None:
    later = NOW + timedelta(seconds=300)  # longer than an offer waits to be accepted
    put_off = defer(make(), later, NOW)
    assert timeout_of(put_off) == (NOW + timedelta(seconds=600), "attempt_too_long")
    again = resume(put_off, 2, later)
    assert timeout_of(again) == (later + timedelta(seconds=60), "not_accepted_in_time")


def test_a_step_that_is_alive_is_not_timed_out_but_the_whole_is() -> None:
    attempt, now = make(state=AttemptState.DOWNLOADING), NOW
    for percent in range(0, 60, 10):
        now += timedelta(seconds=100)
        attempt = step(attempt, AttemptState.DOWNLOADING, percent=percent, now=now)
    assert timeout_of(attempt) == (NOW + timedelta(seconds=600), "attempt_too_long")


def test_the_same_end_twice_is_the_first() -> None:
    first = end(make(), Ending(state=AttemptState.FAILED, reason="no_space"), NOW)
    assert end(first, Ending(state=AttemptState.SUCCEEDED), NOW + timedelta(seconds=1)) is first
    assert all(end(make(), Ending(state=state), NOW).state is state for state in ENDS)


@pytest.mark.parametrize(
    ("text", "kept"), [("no_space", "no_space"), ("No space!", ""), ("x" * 33, ""), ("", "")]
)
def test_reasons_are_words(text: str, kept: str) -> None:
    assert clean_reason(text) == kept


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({}, (0, 0, None, None)),
        ({"cancelled": 5, "superseded": 1, "already_installed": 2}, (0, 0, None, None)),
        ({"succeeded": 10}, (10, 10, 0.722467, 1.0)),
        # 81 of 100: Wilson's interval by hand, z = 1.959964.
        (
            {"succeeded": 81, "failed": 10, "rolled_back": 5, "rejected": 3, "timed_out": 1},
            (81, 100, 0.722225, 0.874853),
        ),
    ],
)
def test_the_success_rate_has_a_denominator_and_an_honest_interval(
    outcomes: dict[str, int], expected: tuple[int, int, float | None, float | None]
) -> None:
    rate = success_rate(outcomes)
    assert (rate.succeeded, rate.finished) == expected[:2]
    for found, wanted in ((rate.low, expected[2]), (rate.high, expected[3])):
        assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-4))
