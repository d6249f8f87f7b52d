"""Logs: form, and repeats that are counted."""

import io
import json

import pytest
import structlog

from gateway.logs import Repeats, configure
from gateway.settings import LogSettings


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_equal_events_within_the_time_are_counted_and_said_once() -> None:
    clock, summaries = Clock(), []
    repeats = Repeats(10.0, summaries.append, clock)
    assert repeats(None, "info", {"event": "refused", "device": "a"})["device"] == "a"
    for _ in range(3):
        with pytest.raises(structlog.DropEvent):
            repeats(None, "info", {"event": "refused", "device": "a"})
    repeats(None, "info", {"event": "refused", "device": "b"})
    clock.seconds = 10.0
    assert repeats(None, "info", {"event": "other"})["event"] == "other"
    assert [(s["device"], s["repeated"]) for s in summaries] == [("a", 3)]


def test_a_caller_chooses_what_is_the_same() -> None:
    summaries: list[object] = []
    repeats = Repeats(10.0, summaries.append, Clock())
    repeats(None, "warning", {"event": "refused", "device": "a", "same": "unknown_ca"})
    with pytest.raises(structlog.DropEvent):
        repeats(None, "warning", {"event": "refused", "device": "b", "same": "unknown_ca"})
    repeats.flush()
    assert len(summaries) == 1


def test_memory_stays_bounded() -> None:
    repeats = Repeats(1000.0, lambda _event: None, Clock())
    for number in range(5000):
        repeats(None, "info", {"event": "x", "n": number})
    assert len(repeats._seen) == 2000


def test_json_lines() -> None:
    output = io.StringIO()
    before = structlog.get_config()
    try:
        repeats = configure(LogSettings(as_json=True), output)
        for _ in range(3):
            structlog.get_logger().info("device_enrolled", device="p-17")
        structlog.get_logger().debug("unseen")
        repeats.flush()
    finally:
        structlog.configure(**before)
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["event"], first["device"], first["level"]) == ("device_enrolled", "p-17", "info")
    assert (second["repeated"], second["level"]) == (2, "info")
