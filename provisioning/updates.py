"""How what devices say moves their attempts: hellos prove and end, progress steps and ends (protocol, section 15).

A report counts only for an open attempt of that very device; anything else is read, verified, and changes
nothing. A hello also says whether the device is due, that is, whether the offerer should look at it.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from provisioning.attempts import (
    Attempt,
    AttemptState,
    Ending,
    clean_reason,
    defer,
    end,
    judge_hello,
    step,
    timeout_of,
)
from provisioning.devices import Device
from provisioning.messages import Hello, Progress
from provisioning.offers import OfferFacts, decide_offer
from provisioning.working import WorkingSet

_STEPS: Final = frozenset(
    {
        AttemptState.ACCEPTED,
        AttemptState.DOWNLOADING,
        AttemptState.DOWNLOADED,
        AttemptState.VERIFIED,
        AttemptState.WAITING,
        AttemptState.INSTALLING,
        AttemptState.REBOOTING,
        AttemptState.CONFIRMING,
    }
)
_ENDS: Final = frozenset({AttemptState.FAILED, AttemptState.REJECTED, AttemptState.ROLLED_BACK})
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)


def apply_hello_to_attempt(facts: WorkingSet, device: Device, hello: Hello, now: datetime) -> None:
    """What an accepted hello says of the device's open attempt; then whether the device is due."""
    attempt = facts.attempts.get(device.id)
    if attempt is not None and attempt.is_open:
        last = hello.last_update
        named = last is not None and last.offer_id == str(attempt.id)
        ending = judge_hello(
            attempt,
            version=hello.firmware.version,
            bundle_seq=hello.firmware.bundle_seq,
            boot=hello.boot,
            result=last.result if last is not None and named else None,
            reason=clean_reason(last.reason) if last is not None and named else "",
        )
        if ending is not None:
            facts.save_attempt(end(attempt, ending, now), now)
    mark_due(facts, device, now)


def apply_progress(facts: WorkingSet, device: Device, progress: Progress, now: datetime) -> bool:
    """Takes a progress report. Returns whether it changed the attempt it names."""
    attempt = facts.attempts.get(device.id)
    if attempt is None or not attempt.is_open or str(attempt.id) != progress.offer_id:
        return False
    changed = _report(attempt, progress, now)
    if changed == attempt:
        return False
    facts.save_attempt(changed, now)
    return True


def apply_timeout(facts: WorkingSet, attempt: Attempt, now: datetime) -> bool:
    """Ends an open attempt that nobody reports on. Returns whether its time was over."""
    at, reason = timeout_of(attempt)
    if at > now:
        return False
    facts.save_attempt(end(attempt, Ending(state=AttemptState.TIMED_OUT, reason=reason), now), now)
    return True


def apply_cancel(facts: WorkingSet, attempt: Attempt, ending: Ending, revision: int, now: datetime) -> None:
    """Ends an open attempt from our side, and has its device told under the next revision."""
    facts.save_attempt(replace(end(attempt, ending, now), revision=revision), now)
    facts.outgoing.add(attempt.device_id)


def mark_due(facts: WorkingSet, device: Device, now: datetime) -> None:
    """Marks a device that the offerer should look at: one with a candidate, as far as can be told here.

    Earlier tries and what is in flight are not known here; the offerer decides again, with everything.
    """
    registry = facts.registry
    rollouts = () if device.cohort_id is None else registry.rollouts.get(device.cohort_id, ())
    override = registry.overrides.get(device.id)
    if not rollouts and override is None:
        return  # nothing could be its candidate: most hellos of most days
    attempt = facts.attempts.get(device.id)
    decision = decide_offer(
        OfferFacts(
            device=device,
            rollouts=rollouts,
            override=override,
            versions=registry.versions.get(device.product_id, {}),
            attempt=attempt if attempt is not None and attempt.is_open else None,
            connected=True,
        ),
        now,
    )
    if decision.ready and decision.source is not None:
        facts.due[device.id] = decision.source.id


def _report(attempt: Attempt, progress: Progress, now: datetime) -> Attempt:
    try:
        state = AttemptState(progress.state)
    except ValueError:
        return attempt  # a newer device's word: nothing this gateway knows
    if state in _STEPS:
        return step(attempt, state, percent=progress.percent, now=now)
    if state is AttemptState.DEFERRED and progress.defer_until is not None:
        until = datetime.fromtimestamp(min(progress.defer_until / 1000, _LATEST.timestamp()), UTC)
        return defer(attempt, until, now)
    if state in _ENDS:
        return end(
            attempt,
            Ending(state=state, reason=clean_reason(progress.reason), detail=progress.detail),
            now,
        )
    return attempt
