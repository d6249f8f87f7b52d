"""Which firmware a device is offered, by rules in order, and what the offer looks like (protocol, section 14).

`decide_offer` decides and explains with the same list: may be updated at all → override → the cohort's
rollouts above what it runs, newest first → tries, open attempt, connected, pace. Only the offerer acts on it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, assert_never

from provisioning.attempts import UNSUCCESSFUL, Attempt, AttemptState
from provisioning.bundles import Bundle, check_floor, check_hardware
from provisioning.decision import Rule
from provisioning.devices import Device, DeviceState
from provisioning.messages import VERSION
from provisioning.pacing import Flight, explain_pace
from provisioning.rollouts import OFFERING, Override, Plan, Rollout, RolloutState

Source = Rollout | Override


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Earlier attempts of one device at one rollout or override."""

    count: int
    last: AttemptState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFacts:
    """What the decision asks about one device.

    Attributes:
        rollouts: of its cohort.
        override: the one that names it, if any.
        versions: the product's bundles, version → `bundle_seq`.
        attempt: the open one.
        tries: by the id of a rollout or override.
        connected: whether it would hear an offer now.
        flights: what is on its way, by the id of a rollout or override; none: nothing is.
    """

    device: Device
    rollouts: Sequence[Rollout] = ()
    override: Override | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    attempt: Attempt | None = None
    tries: Mapping[int, Tries] = field(default_factory=dict)
    connected: bool = False
    flights: Mapping[int, Flight] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class OfferDecision:
    """The rules in order, the candidate where there is one, and whether it is offered now.

    Attributes:
        ready: every rule passed.
        waits: only time or pace stands in the way: the device stays due.
        supersedes: the open attempt that the new one replaces.
        resumes: the deferred attempt that is offered anew.
    """

    rules: list[Rule] = field(default_factory=list)
    source: Source | None = None
    ready: bool = False
    waits: bool = False
    supersedes: Attempt | None = None
    resumes: Attempt | None = None

    def check(self, name: str, passed: bool, detail: str, *, changes_at: datetime | None = None) -> bool:
        """Notes a rule; returns whether it passed."""
        self.rules.append(Rule(name=name, passed=passed, detail=detail, changes_at=changes_at))
        return passed

    def not_reached(self, *names: str) -> None:
        """Notes rules that an earlier one kept from being asked."""
        self.rules += [Rule(name=name, passed=None, detail="not reached") for name in names]


def running_seq(device: Device, versions: Mapping[str, int]) -> int:
    """The `bundle_seq` of what a device runs: as it says, else that of the bundle of its version, else 0."""
    if device.firmware_bundle_seq is not None:
        return device.firmware_bundle_seq
    return versions.get(device.firmware_version, 0)


def decide_offer(facts: OfferFacts, now: datetime) -> OfferDecision:
    """Whether, and from what, a device is offered firmware now. Changes nothing.

    Args:
        facts: everything known about it; must hold the flights of its candidate, else pace passes.
        now: aware UTC.
    """
    decision = OfferDecision()
    last = ("tries", "open_attempt", "connected", "pace")
    if not _may_be_updated(decision, facts.device):
        decision.not_reached("override", "sequence", *last)
        return decision
    decision.source = _find_override(decision, facts, now) or _find_rollout(decision, facts)
    if decision.source is None:
        decision.not_reached(*last)
        return decision
    steps: tuple[Callable[[OfferDecision, OfferFacts, Source, datetime], bool], ...] = (
        _check_tries,
        _check_open_attempt,
        _check_connected,
        _check_pace,
    )
    for number, step in enumerate(steps):
        if not step(decision, facts, decision.source, now):
            decision.not_reached(*last[number + 1 :])
            return decision
    decision.ready = True
    return decision


def _may_be_updated(decision: OfferDecision, device: Device) -> bool:
    return decision.check(
        "device_state", device.state is DeviceState.ACTIVE, f"the device is {device.state}"
    ) and decision.check(
        "updates_enabled",
        device.updates_enabled,
        "updates are on" if device.updates_enabled else "updates are off for this device",
    )


def _find_override(decision: OfferDecision, facts: OfferFacts, now: datetime) -> Override | None:
    override = facts.override
    if override is None:
        decision.check("override", True, "none names this device")
        return None
    name = f"override to {override.bundle.version}"
    if now < override.starts_at:
        decision.check("override", False, f"{name} has not begun", changes_at=override.starts_at)
        return None
    if override.ends_at is not None and now >= override.ends_at:
        decision.check("override", False, f"{name} is over since {_time(override.ends_at)}")
        return None
    seq = running_seq(facts.device, facts.versions)
    if seq >= override.bundle.bundle_seq or facts.device.highest_bundle_seq > override.bundle.bundle_seq:
        decision.check("override", False, f"{name}: {_runs(facts)}, which is not below it")
        return None
    fault = _unfit(override.bundle, facts, seq)
    if fault is not None:
        decision.check("override", False, f"{name}: {fault}")
        return None
    decision.check("override", True, f"{name} names this device", changes_at=override.ends_at)
    return override


def _find_rollout(decision: OfferDecision, facts: OfferFacts) -> Rollout | None:
    """The newest rollout that applies, of those above what runs, up to the first required one that applies."""
    seq = running_seq(facts.device, facts.versions)
    floor = max(seq + 1, facts.device.highest_bundle_seq)
    above = sorted(
        (
            rollout
            for rollout in facts.rollouts
            if rollout.bundle.bundle_seq >= floor
            and rollout.state not in (RolloutState.DRAFT, RolloutState.CANCELLED)
        ),
        key=lambda rollout: (rollout.bundle.bundle_seq, rollout.id),
    )
    if not decision.check(
        "sequence",
        bool(above),
        f"{_runs(facts)}; {len(above)} newer in its cohort"
        if above
        else f"{_runs(facts)}; its cohort has nothing newer",
    ):
        return None
    for number, rollout in enumerate(above):
        if rollout.plan.required and _unfit(rollout.bundle, facts, seq) is None:
            if number + 1 < len(above):
                decision.check("required", True, f"{rollout.bundle.version} comes before any newer one")
            above = above[: number + 1]
            break
    for number, rollout in enumerate(reversed(above)):
        name = f"rollout {rollout.id} of {rollout.bundle.version}"
        fault, changes_at = _why_not(rollout, facts, seq)
        if fault is None:
            decision.check("rollout", True, f"{name} is {rollout.state}, and fits")
            for older in list(reversed(above))[number + 1 :]:
                decision.rules.append(
                    Rule(
                        name="rollout",
                        passed=None,
                        detail=f"rollout {older.id} of {older.bundle.version}: not reached",
                    )
                )
            return rollout
        decision.check("rollout", False, f"{name}: {fault}", changes_at=changes_at)
    return None


def _why_not(rollout: Rollout, facts: OfferFacts, seq: int) -> tuple[str | None, datetime | None]:
    match rollout.state:
        case RolloutState.SCHEDULED:
            return f"begins at {_time(rollout.start_at)}", rollout.start_at
        case RolloutState.PAUSED:
            return "paused by an operator", None
        case RolloutState.HALTED:
            return "halted", None
        case RolloutState.RUNNING | RolloutState.COMPLETED:
            return _unfit(rollout.bundle, facts, seq), None
        case RolloutState.DRAFT | RolloutState.CANCELLED:
            return f"is {rollout.state}", None
        case _:
            assert_never(rollout.state)


def fits(bundle: Bundle, *, model: str, revision: str, running: int) -> bool:
    """Whether a bundle is for hardware of this kind, above what runs, and may be installed from there."""
    return bundle.bundle_seq > running and _fault(bundle, model, revision, running) is None


def _fault(bundle: Bundle, model: str, revision: str, running: int) -> str | None:
    for rule in (check_hardware(bundle.statement, model, revision), check_floor(bundle.statement, running)):
        if rule.passed is False:
            return rule.detail
    return None


def _unfit(bundle: Bundle, facts: OfferFacts, seq: int) -> str | None:
    return _fault(bundle, facts.device.hardware_model, facts.device.hardware_revision, seq)


def _check_tries(decision: OfferDecision, facts: OfferFacts, source: Source, _now: datetime) -> bool:
    tries = facts.tries.get(source.id)
    if tries is None or tries.count == 0:
        return decision.check("tries", True, "the first try")
    plan: Plan = source.plan
    why = f" ({tries.reason})" if tries.reason else ""
    text = f"tried {tries.count} of {plan.tries} times, the last one {tries.last}{why}"
    if tries.last in UNSUCCESSFUL and tries.last is not AttemptState.TIMED_OUT:
        return decision.check("tries", False, f"{text}: not again with the same bundle")
    return decision.check("tries", tries.count < plan.tries, text)


def _check_open_attempt(decision: OfferDecision, facts: OfferFacts, source: Source, now: datetime) -> bool:
    attempt = facts.attempt
    if attempt is None:
        return decision.check("open_attempt", True, "none is open")
    text = f"an attempt at {attempt.bundle_version} is {attempt.state}"
    same = source.id in (attempt.rollout_id, attempt.override_id)
    if attempt.state is AttemptState.DEFERRED and same:
        due = attempt.defer_until is None or attempt.defer_until <= now
        if due:
            decision.resumes = attempt
        decision.waits = not due
        return decision.check("open_attempt", due, text, changes_at=None if due else attempt.defer_until)
    replaceable = attempt.state in (AttemptState.OFFERED, AttemptState.DEFERRED)
    if replaceable and not same and source.bundle.bundle_seq > attempt.bundle_seq:
        decision.supersedes = attempt
        return decision.check("open_attempt", True, f"{text}; the newer one takes its place")
    return decision.check("open_attempt", False, text, changes_at=attempt.times_out_at)


def _check_connected(decision: OfferDecision, facts: OfferFacts, _source: Source, _now: datetime) -> bool:
    text = "connected" if facts.connected else "not connected; it is offered at its next hello"
    return decision.check("connected", facts.connected, text)


def _check_pace(decision: OfferDecision, facts: OfferFacts, source: Source, _now: datetime) -> bool:
    rule = explain_pace(source.plan, facts.flights.get(source.id, Flight()))
    decision.rules.append(rule)
    decision.waits = rule.passed is False
    return bool(rule.passed)


def is_offering(source: Source) -> bool:
    """Whether the offerer may open attempts for it at all; an override's period is decided with each device."""
    return isinstance(source, Override) or source.state in OFFERING


def render_offer(attempt: Attempt, bundle: Bundle, url_of: Callable[[str, str], str]) -> dict[str, Any]:
    """An offer as devices read it, or, for an ended attempt, its cancellation.

    Args:
        url_of: the address of an artifact for this device, by SHA-256 and name.
    """
    offer: dict[str, Any] = {"v": VERSION, "offer_id": str(attempt.id), "revision": attempt.revision}
    if not attempt.is_open:
        return {**offer, "cancelled": True, "reason": attempt.reason or attempt.state.value}
    deadline = attempt.times_out_at
    assert deadline is not None
    return {
        **offer,
        "version": bundle.version,
        "bundle_seq": bundle.bundle_seq,
        "statement": _statement_of(bundle.envelope),
        "artifacts": [
            {
                "name": artifact.name,
                "url": url_of(artifact.sha256, artifact.name),
                "size": artifact.size,
                "sha256": artifact.sha256,
            }
            for artifact in bundle.statement.artifacts
        ],
        "deadline": int(deadline.timestamp() * 1000),
    }


@lru_cache(maxsize=64)  # a rollout offers one bundle to its whole cohort
def _statement_of(envelope: bytes) -> Any:
    """A bundle's envelope as JSON; shared, and not to be changed."""
    return json.loads(envelope)


def _runs(facts: OfferFacts) -> str:
    seq = running_seq(facts.device, facts.versions)
    known = f"bundle {seq}" if seq else "no bundle of this product"
    return f"it runs {facts.device.firmware_version or 'an unknown version'} ({known})"


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
