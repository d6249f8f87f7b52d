"""What is counted, and how: each event changes counters by one fixed rule, here and nowhere else.

Counters are written in the transaction that causes them; `store.verify` proves them against the events with
SQL of its own (invariant I5: counters = checkpoint + fold of the events since).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, assert_never

from provisioning.attempts import UNSUCCESSFUL, AttemptState
from provisioning.ids import AttemptId, BundleId, CohortId, DeviceId, ProductId

NO_COHORT: Final = CohortId(0)
"""Stands in counters and events for "in no cohort", because a key column cannot be null."""
MINUTE_MS: Final = 60_000
ALL_TIME: Final = 0
"""The bucket of a gauge, and of a flow's total."""


class Per(StrEnum):
    """How wide a bucket of figures over time is."""

    MINUTE = "minute"
    HOUR = "hour"

    @property
    def width_ms(self) -> int:
        """In milliseconds; a whole number of the buckets that are kept."""
        return MINUTE_MS if self is Per.MINUTE else 60 * MINUTE_MS


FLOWS: Final = ("connects", "disconnects", "enrollments", "refusals", "outcomes", "failures")
"""What flows: devices' comings and goings, and how their updates end; people look at it over time."""
_Z95: Final = 1.959964
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRate:
    """Successes of those that say something about a bundle, with Wilson's 95 % interval; shares are 0–1.

    Attributes:
        finished: the denominator: succeeded, failed, rolled back, rejected, timed out. Cancelled, superseded
            and already installed say nothing.
        rate, low, high: None where nothing has finished.
    """

    succeeded: int
    finished: int
    rate: float | None
    low: float | None
    high: float | None


def success_rate(outcomes: Mapping[str, int]) -> SuccessRate:
    """The success rate of attempts, counted by state."""
    good = outcomes.get(AttemptState.SUCCEEDED.value, 0)
    finished = good + sum(outcomes.get(state.value, 0) for state in UNSUCCESSFUL)
    if not finished:
        return SuccessRate(succeeded=0, finished=0, rate=None, low=None, high=None)
    share, z2 = good / finished, _Z95 * _Z95
    # E. B. Wilson, 1927: stays within 0–1 and is honest for few attempts.
    middle = (share + z2 / (2 * finished)) / (1 + z2 / finished)
    reach = _Z95 * math.sqrt(share * (1 - share) / finished + z2 / (4 * finished**2)) / (1 + z2 / finished)
    return SuccessRate(
        succeeded=good,
        finished=finished,
        rate=round(share, 6),
        low=round(max(0.0, middle - reach), 6),
        high=round(min(1.0, middle + reach), 6),
    )


class EventKind(StrEnum):
    """What happened. `before` and `word` are the two sides of the change."""

    DEVICE_STATE = "device_state"
    FIRMWARE = "firmware"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ENROLLED = "enrolled"
    REFUSED = "refused"
    ATTEMPT = "attempt"
    ROLLOUT = "rollout"


_GAUGES: Final = {
    EventKind.DEVICE_STATE: "devices",
    EventKind.FIRMWARE: "firmware",
    EventKind.ROLLOUT: "rollouts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptMark:
    """What an attempt's event is counted by, beside its states.

    Attributes:
        source_id: its rollout or override.
        reason: the counted word of an unsuccessful end, else empty.
    """

    attempt_id: AttemptId
    source_id: int
    bundle_id: BundleId
    hardware: str
    ends: bool
    reason: str = ""


class Event(NamedTuple):
    """One thing that happened to one device, to a stranger at one product, or to a rollout (`source_id`).

    A tuple, because every hello makes two.
    """

    at: datetime
    kind: str
    product_id: ProductId
    cohort_id: CohortId | None
    device_id: DeviceId | None
    word: str
    before: str = ""
    attempt: AttemptMark | None = None
    source_id: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A change of one counter; `bucket` is a minute's start in milliseconds, or ALL_TIME."""

    product_id: ProductId
    cohort_id: CohortId
    name: str
    word: str
    bucket: int
    change: int


def list_deltas(event: Event) -> list[Delta]:
    """The counters that an event changes."""
    product, cohort = event.product_id, event.cohort_id or NO_COHORT
    minute = int(event.at.timestamp()) * 1000 // MINUTE_MS * MINUTE_MS

    def gauge(name: str, word: str, change: int) -> Delta:
        return Delta(product, cohort, name, word, ALL_TIME, change)

    def flow(name: str, word: str) -> list[Delta]:
        return [Delta(product, cohort, name, word, bucket, 1) for bucket in (ALL_TIME, minute)]

    kind = EventKind(event.kind)
    match kind:
        case EventKind.DEVICE_STATE | EventKind.FIRMWARE | EventKind.ROLLOUT:
            name = _GAUGES[kind]
            deltas = [gauge(name, event.word, 1)] if event.word else []
            if event.before:
                deltas.append(gauge(name, event.before, -1))
            return deltas
        case EventKind.CONNECTED:
            return [gauge("connected", "", 1), *flow("connects", event.word)]
        case EventKind.DISCONNECTED:
            return [gauge("connected", "", -1), *flow("disconnects", event.word)]
        case EventKind.ENROLLED:
            return flow("enrollments", event.word)
        case EventKind.REFUSED:
            return flow("refusals", event.word)
        case EventKind.ATTEMPT:
            mark = event.attempt
            assert mark is not None
            deltas = []
            for name, key in (("attempts", ""), ("rollout", f"{mark.source_id}/")):
                deltas.append(gauge(name, key + event.word, 1))
                if event.before:
                    deltas.append(gauge(name, key + event.before, -1))
            if mark.ends:
                deltas += flow("outcomes", event.word)
                deltas.append(gauge("bundle", f"{mark.bundle_id}/{event.word}", 1))
                deltas.append(gauge("hardware", f"{mark.hardware}/{event.word}", 1))
            if mark.reason:
                deltas += flow("failures", mark.reason)
            return deltas
        case _:
            assert_never(kind)
