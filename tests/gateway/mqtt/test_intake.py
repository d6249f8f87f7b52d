"""The bounded queue and the rates, without a broker."""

import threading
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.intake import Incoming, Intake
from gateway.mqtt.rates import TopicRates


def incoming(number: int) -> Incoming:
    return Incoming(
        topic="t",
        payload=b"%d" % number,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        response_topic=None,
        correlation=None,
        mid=number,
        qos=1,
        generation=0,
    )


def test_room_is_told_once_when_half_is_drained() -> None:
    told: list[int] = []
    intake = Intake(4, lambda: told.append(len(intake)))
    for number in range(4):
        intake.put(incoming(number))
    assert intake.full
    intake.take(1, 0)
    assert intake.full
    assert told == []
    intake.take(1, 0)
    assert not intake.full
    intake.take(5, 0)
    assert told == [2]
    assert intake.pauses == 1


def test_taking_waits_for_a_message_and_not_longer_when_closed() -> None:
    intake = Intake(4, lambda: None)
    taken: list[list[Incoming]] = []
    waiting = threading.Thread(target=lambda: taken.append(intake.take(10, 30)))
    waiting.start()
    intake.put(incoming(1))
    waiting.join(10)
    assert [[message.mid for message in batch] for batch in taken] == [[1]]
    intake.put(incoming(2))
    intake.close()
    assert [message.mid for message in intake.take(10, 30)] == [2], "what is queued can still be taken"
    assert intake.take(10, 30) == []


def test_discarding_makes_room() -> None:
    intake = Intake(2, lambda: None)
    intake.put(incoming(1))
    intake.put(incoming(2))
    assert intake.discard() == 2
    assert not intake.full
    assert intake.take(10, 0) == []
    assert intake.discarded == 2


def test_a_topic_speaks_its_burst_and_then_its_rate() -> None:
    rates = TopicRates(per_minute=60, burst=3)
    assert [rates.allow("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert rates.allow("b", 0.0), "each topic has its own"
    assert [rates.allow("a", 1.0) for _ in range(2)] == [True, False]
    assert [rates.allow("a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_no_limit_remembers_nothing() -> None:
    rates = TopicRates(per_minute=0, burst=1)
    assert all(rates.allow("a", 0.0) for _ in range(100))
    assert len(rates) == 0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), max_size=200),
    st.integers(1, 10),
    st.floats(1, 600),
)
def test_no_topic_exceeds_burst_and_rate(
    steps: list[tuple[int, float]], burst: int, per_minute: float
) -> None:
    rates = TopicRates(per_minute=per_minute, burst=burst)
    now, allowed = 0.0, dict.fromkeys(range(31), 0)
    for topic, seconds in steps:
        now += seconds
        allowed[topic] += rates.allow(str(topic), now)
        assert allowed[topic] <= burst + now * per_minute / 60 + 1e-6


def test_memory_is_bounded_and_the_longest_silent_goes_first() -> None:
    rates = TopicRates(per_minute=1, burst=1, topics=2)
    assert rates.allow("a", 0.0)
    assert rates.allow("b", 0.0)
    assert not rates.allow("a", 0.0)
    assert rates.allow("c", 0.0)
    assert len(rates) == 2
    assert not rates.allow("a", 0.0), "a spoke after b"
    assert rates.allow("b", 0.0), "b was forgotten"
