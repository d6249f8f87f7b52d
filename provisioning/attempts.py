"""One device's try at one bundle: its states, what moves it on, and what ends it (protocol, section 15).

Steps go forward only and may be skipped; ends are final; what repeats or comes late changes nothing. Success
is never reported: it is a later hello from the new image. Which offers are made is `offers`' to decide.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from provisioning.ids import (
    AttemptId,
    BundleId,
    CohortId,
    DeviceId,
    OverrideId,
    ProductId,
    RolloutId,
)


class AttemptState(StrEnum):
    """Where an attempt stands. `deferred` has given its slot back and waits for a new revision of its offer."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    VERIFIED = "verified"
    WAITING = "waiting"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    CONFIRMING = "confirming"
    DEFERRED = "deferred"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    ALREADY_INSTALLED = "already_installed"


STEPS: Final = (
    AttemptState.OFFERED,
    AttemptState.ACCEPTED,
    AttemptState.DOWNLOADING,
    AttemptState.DOWNLOADED,
    AttemptState.VERIFIED,
    AttemptState.WAITING,
    AttemptState.INSTALLING,
    AttemptState.REBOOTING,
    AttemptState.CONFIRMING,
)
"""In order; a device may leave some out."""
ENDS: Final = frozenset(AttemptState) - frozenset(STEPS) - {AttemptState.DEFERRED}
UNSUCCESSFUL: Final = frozenset(
    {AttemptState.FAILED, AttemptState.ROLLED_BACK, AttemptState.REJECTED, AttemptState.TIMED_OUT}
)
"""Ends that count against the bundle; the others but `succeeded` say nothing about it."""
REASONS: Final = frozenset(
    {
        "download_failed",
        "url_refused",
        "digest_mismatch",
        "statement_invalid",
        "not_above_installed",
        "wrong_product",
        "wrong_hardware",
        "below_floor",
        "no_space",
        "install_failed",
        "boot_failed",
        "health_check_failed",
        "battery_low",
        "user_declined",
        "not_accepted_in_time",
        "step_too_long",
        "attempt_too_long",
        "device_blocked",
        "rollout_cancelled",
        "newer_offer",
    }
)
"""Words that are counted as they are; any other is counted as `other`, so that counters stay bounded."""
_WORD: Final = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long an attempt may take, in seconds: to be accepted, for one step, and in all."""

    accept_seconds: int
    step_seconds: int
    total_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try. `revision` grows with every offer that the device is sent, over all of its attempts.

    Attributes:
        rollout_id, override_id: exactly one is given: what the offer came from.
        from_version, from_boot: what ran when it was offered, and in which life of the device.
        percent: of the current step, 0–100; -1: not said.
        reason: the device's or our word for an end; `detail` the device's sentence, for people.
        times_out_at: when nobody's report will end it; None once it has ended.
    """

    id: AttemptId
    device_id: DeviceId
    product_id: ProductId
    cohort_id: CohortId | None
    rollout_id: RolloutId | None
    override_id: OverrideId | None
    bundle_id: BundleId
    bundle_version: str
    bundle_seq: int
    hardware_model: str
    from_version: str
    from_boot: str
    state: AttemptState
    revision: int
    timeouts: Timeouts
    offered_at: datetime
    stepped_at: datetime
    percent: int = -1
    reason: str = ""
    detail: str = ""
    defer_until: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state not in ENDS

    @property
    def in_flight(self) -> bool:
        """Whether it holds one of its rollout's slots."""
        return self.is_open and self.state is not AttemptState.DEFERRED

    @property
    def times_out_at(self) -> datetime | None:
        """When it ends by itself."""
        if not self.is_open:
            return None
        return timeout_of(self)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a report or a hello ends an attempt."""

    state: AttemptState
    reason: str = ""
    detail: str = ""


def timeout_of(attempt: Attempt) -> tuple[datetime, str]:
    """When an open attempt ends by itself, and the reason it will then have.

    A device that said it waits for its own window, or deferred, is bound by the total alone.
    """
    limits = attempt.timeouts
    total = attempt.offered_at + timedelta(seconds=limits.total_seconds), "attempt_too_long"
    match attempt.state:
        case AttemptState.OFFERED:
            # The latest offer: one that was put off is offered anew, and has its whole time again.
            step = attempt.stepped_at + timedelta(seconds=limits.accept_seconds), "not_accepted_in_time"
        case AttemptState.WAITING | AttemptState.DEFERRED:
            return total
        case _:
            step = attempt.stepped_at + timedelta(seconds=limits.step_seconds), "step_too_long"
    return min(step, total)


def step(attempt: Attempt, to: AttemptState, *, percent: int | None, now: datetime) -> Attempt:
    """The attempt after a report that it has come to step `to`; the same one where that changes nothing.

    Args:
        percent: of that step, 0–100, where the device says it.
    """
    if attempt.state not in STEPS or to not in STEPS:
        return attempt
    new, old = STEPS.index(to), STEPS.index(attempt.state)
    shown = -1 if percent is None else percent
    if new < old or (new == old and shown <= attempt.percent):
        return attempt
    return replace(attempt, state=to, percent=shown, stepped_at=now)


def defer(attempt: Attempt, until: datetime, now: datetime) -> Attempt:
    """The attempt after the device put it off; not any more once it installs."""
    if attempt.state not in STEPS or STEPS.index(attempt.state) >= STEPS.index(AttemptState.INSTALLING):
        return attempt
    return replace(attempt, state=AttemptState.DEFERRED, defer_until=until, percent=-1, stepped_at=now)


def resume(attempt: Attempt, revision: int, now: datetime) -> Attempt:
    """A deferred attempt offered anew, under the next revision."""
    assert attempt.state is AttemptState.DEFERRED
    return replace(attempt, state=AttemptState.OFFERED, revision=revision, defer_until=None, stepped_at=now)


def end(attempt: Attempt, ending: Ending, now: datetime) -> Attempt:
    """The attempt after its end; the same one where it had ended already."""
    if not attempt.is_open:
        return attempt
    assert ending.state in ENDS
    return replace(
        attempt,
        state=ending.state,
        reason=ending.reason,
        detail=ending.detail[:256],
        finished_at=now,
        defer_until=None,
    )


def judge_hello(
    attempt: Attempt,
    *,
    version: str,
    bundle_seq: int | None,
    boot: str,
    result: str | None,
    reason: str,
) -> Ending | None:
    """What an accepted hello says of an open attempt: its end, or None where it goes on.

    Args:
        version, bundle_seq: of the running image.
        boot: the device's current life.
        result, reason: its `last_update`, where that names this attempt.
    """
    runs_it = version == attempt.bundle_version and bundle_seq in (None, attempt.bundle_seq)
    if runs_it:
        was_there = attempt.from_version == version and attempt.from_boot == boot
        return Ending(state=AttemptState.ALREADY_INSTALLED if was_there else AttemptState.SUCCEEDED)
    match result:
        case "failed":
            return Ending(state=AttemptState.FAILED, reason=reason)
        case "rolled_back":
            return Ending(state=AttemptState.ROLLED_BACK, reason=reason)
        case "rejected":
            return Ending(state=AttemptState.REJECTED, reason=reason)
    installed = attempt.state in STEPS and STEPS.index(attempt.state) >= STEPS.index(AttemptState.INSTALLING)
    if installed and boot != attempt.from_boot and version == attempt.from_version:
        return Ending(state=AttemptState.ROLLED_BACK, reason=reason)
    return None


def count_reason(attempt: Attempt) -> str:
    """The word under which an unsuccessful end is counted."""
    if attempt.reason in REASONS:
        return attempt.reason
    return "other" if attempt.reason else "none"


def clean_reason(text: str) -> str:
    """A device's reason as kept: a word as it is, anything else as none."""
    return text if _WORD.fullmatch(text) else ""
