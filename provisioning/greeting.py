"""One verified message against what is known: the decision that the pipeline applies and answers.

Order for a hello: enrollment, then replay, then freshness, then what it reports. A refusal of something
proven goes to the inbox and is counted; one that only lacks freshness gets a challenge and changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Final

from provisioning.decision import Rule
from provisioning.devices import Credential, CredentialState, Device, DeviceState
from provisioning.enrollment import HELLOS_UNTIL_REPLACED, Enrollment, apply_enrollment, decide_enrollment
from provisioning.errors import RejectReason
from provisioning.freshness import make_challenge, place_in_time
from provisioning.ids import TopicName
from provisioning.messages import Hello, Presence, Progress, Reply, Result, decode_chain
from provisioning.offers import running_seq
from provisioning.sessions import apply_hello, apply_presence, heard_by_of, take_report
from provisioning.statistics import Event, EventKind
from provisioning.updates import apply_hello_to_attempt, apply_progress
from provisioning.verification import VerifiedIdentity
from provisioning.working import Refusal, SeenCertificate, WorkingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a gateway says of itself to every decision.

    Attributes:
        audience: its name, as devices are told.
        challenge_key: 32 bytes that all workers share.
        heartbeat_seconds: how often devices are to speak.
    """

    audience: str
    challenge_key: bytes
    heartbeat_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision: what to answer (None: nothing) and why."""

    reply: Reply | None
    rules: tuple[Rule, ...] = ()
    held: bool = False  # for a session that is not known yet


def decide_message(
    message: Hello | Presence | Progress,
    identity: VerifiedIdentity,
    facts: WorkingSet,
    *,
    terms: Terms,
    now: datetime,
    new_id: Callable[[], int],
) -> Verdict:
    """Decides one message and puts its changes into `facts`; the same input gives the same result.

    Args:
        message: read and verified.
        identity: whose key signed it.
        facts: the batch's working copy.
        terms: this gateway's.
        now: aware UTC, one per message.
        new_id: makes numbers for new rows.
    """
    match message:
        case Hello():
            return _decide_hello(message, identity, facts, terms, now, new_id)
        case Presence():
            return _decide_presence(message, identity, facts, terms, now)
        case Progress():
            return _decide_progress(message, identity, facts, terms, now)


def decide_ended(
    hello: Hello,
    identity: VerifiedIdentity,
    facts: WorkingSet,
    *,
    reason: RejectReason,
    detail: str,
    terms: Terms,
    now: datetime,
) -> Verdict:
    """Decides a hello that is genuine, but whose CA or certificate has ended: refused, and seen in the inbox.

    Args:
        hello, identity: read and verified, but for the time or state that `reason` names.
        reason, detail: what `verification` found.
    """
    result = Enrollment(identifier=identity.certificate.common_name)
    known = facts.credentials.get(identity.key_id)
    if known is not None:
        result.identifier = facts.devices[known.device_id].identifier
    now_ms = int(now.timestamp() * 1000)
    fresh = place_in_time(terms.challenge_key, identity.topic_name, hello.ts, hello.challenge, now_ms)
    if fresh.at_ms is None:
        return _challenge(hello, identity, terms, now_ms, fresh.reason or RejectReason.NOT_FRESH, result)
    rule = Rule(name="certificate", passed=False, detail=detail, reason=reason)
    result.rules.append(rule)
    return _refuse(hello, identity, facts, result, rule, now)


def _decide_hello(
    hello: Hello,
    identity: VerifiedIdentity,
    facts: WorkingSet,
    terms: Terms,
    now: datetime,
    new_id: Callable[[], int],
) -> Verdict:
    result = decide_enrollment(identity, facts, hello=hello, audience=terms.audience, now=now, new_id=new_id)
    now_ms = int(now.timestamp() * 1000)
    fresh = place_in_time(terms.challenge_key, identity.topic_name, hello.ts, hello.challenge, now_ms)
    known = facts.credentials.get(identity.key_id)
    replayed = known is not None and known.last_nonce == hello.nonce
    if fresh.at_ms is None and not replayed:
        return _challenge(hello, identity, terms, now_ms, fresh.reason or RejectReason.NOT_FRESH, result)
    refusing = result.refused
    if refusing is not None:
        return _refuse(hello, identity, facts, result, refusing, now)
    device, credential = result.device, result.credential
    assert device is not None
    assert credential is not None
    if replayed:  # the answer was lost, not the hello: answer again from the current state
        return _welcome(hello, device, facts, terms, result, identity.topic_name)
    assert fresh.at_ms is not None
    returns = credential.previous_boot is not None and hello.boot == credential.previous_boot
    if fresh.at_ms <= credential.last_ts or (returns and not fresh.by_challenge):
        return _challenge(hello, identity, terms, now_ms, RejectReason.NOT_FRESH, result)
    apply_enrollment(result, facts, now)
    facts.save_credential(_accepted(credential, hello, identity, fresh.at_ms, returns))
    if known is None or known.fingerprint != identity.fingerprint:
        _note_certificate(identity, facts)
    _end_replaced(credential, facts)
    device = _report(facts, device, hello, now)
    if returns and credential.boot_returns + 1 >= 2 and device.state is DeviceState.ACTIVE:
        device = facts.set_state(
            device,
            DeviceState.QUARANTINED,
            Event(at=now, kind=EventKind.DEVICE_STATE, product_id=device.product_id,
                  cohort_id=device.cohort_id, device_id=device.id, word=DeviceState.QUARANTINED,
                  before=device.state),
        )  # fmt: skip
        facts.refusals.append(
            _refusal(identity, device.identifier, RejectReason.DEVICE_QUARANTINED,
                     "two boots take turns on one key: a clone, or a key that was copied")
        )  # fmt: skip
    apply_hello(
        facts,
        device,
        hello,
        key_id=identity.key_id,
        now=now,
        heard_by=heard_by_of(now, terms.heartbeat_seconds),
    )
    facts.seen.add(device.id)
    apply_hello_to_attempt(facts, device, hello, now)
    return _welcome(hello, device, facts, terms, result, identity.topic_name)


def _note_certificate(identity: VerifiedIdentity, facts: WorkingSet) -> None:
    certificate = identity.certificate
    facts.certificates.setdefault(
        certificate.fingerprint,
        SeenCertificate(
            fingerprint=certificate.fingerprint,
            key_id=identity.key_id,
            authority_id=identity.authority_id,
            serial_number=f"{certificate.serial_number:x}",
            not_before_ms=int(certificate.not_before.timestamp() * 1000),
            not_after_ms=int(certificate.not_after.timestamp() * 1000),
        ),
    )


def _accepted(
    credential: Credential, hello: Hello, identity: VerifiedIdentity, at_ms: int, returns: bool
) -> Credential:
    new_boot = hello.boot != credential.last_boot
    renewed = hello.chain and (identity.fingerprint != credential.fingerprint or not credential.certificate)
    return replace(
        credential,
        certificate=decode_chain(hello)[0] if renewed else credential.certificate,
        authority_id=identity.authority_id,
        fingerprint=identity.fingerprint,
        not_before=identity.valid_from,
        not_after=identity.valid_until,
        last_ts=at_ms,
        last_nonce=hello.nonce,
        last_boot=hello.boot,
        previous_boot=credential.last_boot if new_boot else credential.previous_boot,
        boot_returns=credential.boot_returns + 1 if returns else credential.boot_returns,
        hellos=credential.hellos + 1,
    )


def _end_replaced(credential: Credential, facts: WorkingSet) -> None:
    """At a new key's second accepted hello, the key that it replaces stops working."""
    if credential.replaces_id is None or credential.hellos + 1 != HELLOS_UNTIL_REPLACED:
        return
    for key in facts.keys_of.get(credential.device_id, set()):
        old = facts.credentials[key]
        if old.id == credential.replaces_id and old.state is CredentialState.ACTIVE:
            facts.save_credential(replace(old, state=CredentialState.REPLACED))


_SAID: Final = attrgetter(
    "attributes",
    "hardware_model",
    "hardware_revision",
    "firmware_version",
    "firmware_bundle_seq",
    "time_zone",
)


def _report(facts: WorkingSet, device: Device, hello: Hello, now: datetime) -> Device:
    """What the device says of itself, kept, and its running version counted."""
    attributes = tuple(sorted(hello.attributes.items()))
    hardware, firmware = hello.hardware, hello.firmware
    zone = hello.time_zone if hello.time_zone is not None else device.time_zone
    reported = device
    said = (attributes, hardware.model, hardware.revision, firmware.version, firmware.bundle_seq, zone)
    if said != _SAID(device):  # most say what they said before
        reported = replace(
            device,
            attributes=attributes,
            hardware_model=hardware.model,
            hardware_revision=hardware.revision,
            firmware_version=firmware.version,
            firmware_bundle_seq=firmware.bundle_seq,
            time_zone=zone,
        )
    seq = running_seq(reported, facts.registry.versions.get(device.product_id, {}))
    if seq > reported.highest_bundle_seq:
        reported = replace(reported, highest_bundle_seq=seq)
    if device.firmware_version != reported.firmware_version:
        facts.events.append(
            Event(
                at=now,
                kind=EventKind.FIRMWARE,
                product_id=device.product_id,
                cohort_id=device.cohort_id,
                device_id=device.id,
                word=reported.firmware_version,
                before=device.firmware_version,
            )
        )
    facts.save_device(reported)
    return reported


def _welcome(
    hello: Hello, device: Device, facts: WorkingSet, terms: Terms, result: Enrollment, topic_name: TopicName
) -> Verdict:
    quarantined = device.state is DeviceState.QUARANTINED
    reply = Reply(
        topic_name=topic_name,
        result=Result.WELCOME,
        for_nonce=hello.nonce,
        reason=RejectReason.DEVICE_QUARANTINED if quarantined else None,
        device_id=str(device.id),
        identifier=device.identifier,
        product=facts.registry.products[device.product_id].name,
        cohort=facts.registry.cohort_name(device.product_id, device.cohort_id),
        heartbeat_seconds=terms.heartbeat_seconds,
    )
    return Verdict(reply=reply, rules=tuple(result.rules))


def _challenge(
    hello: Hello,
    identity: VerifiedIdentity,
    terms: Terms,
    now_ms: int,
    reason: RejectReason,
    result: Enrollment,
) -> Verdict:
    reply = Reply(
        topic_name=identity.topic_name,
        result=Result.CHALLENGE,
        for_nonce=hello.nonce,
        reason=reason,
        challenge=make_challenge(terms.challenge_key, identity.topic_name, now_ms),
    )
    return Verdict(reply=reply, rules=tuple(result.rules))


def _refuse(
    hello: Hello, identity: VerifiedIdentity, facts: WorkingSet, result: Enrollment, rule: Rule, now: datetime
) -> Verdict:
    reason = rule.reason or RejectReason.INTERNAL_ERROR
    facts.refusals.append(_refusal(identity, result.identifier, reason, rule.detail))
    facts.events.append(
        Event(
            at=now,
            kind=EventKind.REFUSED,
            product_id=identity.product_id,
            cohort_id=None,
            device_id=None,
            word=reason,
        )
    )
    pending = reason is RejectReason.APPROVAL_REQUIRED
    reply = Reply(
        topic_name=identity.topic_name,
        result=Result.PENDING if pending else Result.REJECTED,
        for_nonce=hello.nonce,
        reason=reason,
        retry_after_seconds=60 if pending else 600,
    )
    return Verdict(reply=reply, rules=tuple(result.rules))


def _refusal(identity: VerifiedIdentity, identifier: str, reason: RejectReason, detail: str) -> Refusal:
    return Refusal(
        product_id=identity.product_id,
        authority_id=identity.authority_id,
        reason=reason,
        key_id=identity.key_id,
        identifier=identifier,
        topic_name=identity.topic_name,
        detail=detail,
    )


def _decide_presence(
    message: Presence, identity: VerifiedIdentity, facts: WorkingSet, terms: Terms, now: datetime
) -> Verdict:
    device = _speaker(identity, facts)
    if device is None:
        return Verdict(reply=None)
    heard_by = heard_by_of(now, terms.heartbeat_seconds)
    current = apply_presence(facts, device, message, now=now, heard_by=heard_by)
    if current:
        facts.seen.add(device.id)
    return Verdict(reply=None, held=not current)


def _decide_progress(
    message: Progress, identity: VerifiedIdentity, facts: WorkingSet, terms: Terms, now: datetime
) -> Verdict:
    device = _speaker(identity, facts)
    if device is None:
        return Verdict(reply=None)
    taken = take_report(facts, device, message, heard_by=heard_by_of(now, terms.heartbeat_seconds))
    if taken is None:
        return Verdict(reply=None, held=True)
    if taken:
        facts.seen.add(device.id)
        apply_progress(facts, device, message, now)
    return Verdict(reply=None)


def _speaker(identity: VerifiedIdentity, facts: WorkingSet) -> Device | None:
    """The device that may speak of itself with this key, or None."""
    credential = facts.credentials.get(identity.key_id)
    if credential is None or credential.state is not CredentialState.ACTIVE:
        return None
    device = facts.devices[credential.device_id]
    return None if device.state in (DeviceState.BLOCKED, DeviceState.RETIRED) else device
