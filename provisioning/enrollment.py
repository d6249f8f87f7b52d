"""Who a proven key is, and whether it may come in: the checks of enrollment, in order.

Takes a verified identity and facts, returns what to answer and what to write; it never sees a certificate
that was not verified, a clock, or SQL. Every check is a `Rule`, so `fleetgate certificate check` explains
with the very list that decides.
"""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from provisioning.authorities import AuthorityState
from provisioning.cohorts import decide_cohort
from provisioning.decision import Rule, first_failed
from provisioning.devices import Credential, CredentialState, Device, DeviceState
from provisioning.envelope import load_spki, previous_statement, verify_signature
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import CredentialId, DeviceId, ProductId, TopicName
from provisioning.messages import Hello
from provisioning.products import EnrollmentMode, IdentifierSource, Product
from provisioning.statistics import Event, EventKind
from provisioning.verification import VerifiedIdentity
from provisioning.working import AuthorityFact, WorkingSet

HELLOS_UNTIL_REPLACED: Final = 2
"""The old key works until the new one's second accepted hello."""


@dataclass(slots=True, kw_only=True)
class Enrollment:
    """The answer: the device and its credential where the identity may come in, else the refusing rule."""

    rules: list[Rule] = field(default_factory=list)
    device: Device | None = None
    credential: Credential | None = None
    identifier: str = ""
    created: bool = False

    @property
    def refused(self) -> Rule | None:
        """The rule that refused, or None."""
        return first_failed(self.rules)

    def passed(self, name: str, detail: str) -> None:
        """Notes a check that passed."""
        self.rules.append(Rule(name=name, passed=True, detail=detail))

    def failed(self, name: str, reason: RejectReason, detail: str) -> "Enrollment":
        """Notes the check that ends it."""
        self.rules.append(Rule(name=name, passed=False, detail=detail, reason=reason))
        return self

    def check(self, name: str, reason: RejectReason, ok: bool, yes: str, no: str) -> bool:
        """Notes a check either way; returns `ok`."""
        if ok:
            self.passed(name, yes)
        else:
            self.failed(name, reason, no)
        return ok


def list_claims(identity: VerifiedIdentity) -> set[tuple[ProductId, str]]:
    """Every identifier that an identity might claim, whatever source its product has chosen."""
    certificate = identity.certificate
    names = {certificate.common_name, *certificate.san_uris, *certificate.san_dns}
    if certificate.subject_serial_number:
        names.add(certificate.subject_serial_number)
    return {(identity.product_id, name) for name in names}


def decide_enrollment(
    identity: VerifiedIdentity,
    facts: WorkingSet,
    *,
    hello: Hello | None,
    audience: str,
    now: datetime,
    new_id: Callable[[], int],
) -> Enrollment:
    """Finds or makes the device of a verified identity. Writes nothing into `facts`.

    Args:
        identity: what verification proved.
        facts: what is known; must hold everything about this key, identifier and topic name.
        hello: the message, or None in a dry run of a certificate.
        audience: this gateway's name, which `previous` is signed over.
        now: aware UTC.
        new_id: makes numbers for new rows.
    """
    result = Enrollment()
    product = facts.registry.products[identity.product_id]
    authority = facts.registry.authorities[identity.authority_id]
    known = facts.credentials.get(identity.key_id)
    if known is not None:
        return _known_key(result, identity, known, facts)
    result.passed("known_key", "no: this key has never been seen")
    identifier = _read_identifier(result, identity, product)
    if identifier is None:
        return result
    result.identifier = identifier
    holder = facts.by_topic.get(identity.topic_name)
    number = facts.by_identifier.get((product.id, identifier))
    if number is not None:
        device = facts.devices[number]
        if not result.check(
            "topic_name",
            RejectReason.TOPIC_NAME_TAKEN,
            holder in (None, number),
            f"{identity.topic_name} is this device's or free",
            f"topic name {identity.topic_name!r} belongs to another device on broker {facts.broker!r}",
        ):
            return result
        return _new_key(
            result, identity, device, facts, hello=hello, audience=audience, now=now, new_id=new_id
        )
    result.passed("known_identifier", f"no: {product.name} has no device {identifier!r}")
    if not _may_enroll(result, product, authority, identifier, facts):
        return result
    if not result.check(
        "topic_name",
        RejectReason.TOPIC_NAME_TAKEN,
        holder is None,
        f"{identity.topic_name} is free",
        f"topic name {identity.topic_name!r} belongs to another device on broker {facts.broker!r}",
    ):
        return result
    cohort_id, rules = decide_cohort(
        product.jitp,
        product_id=product.id,
        identifier=identifier,
        certificate=identity.certificate,
        authority=authority.name,
        hello=hello,
        cohorts=facts.registry.cohorts.get(product.id, {}),
    )
    result.rules += rules
    device = Device(
        id=DeviceId(new_id()),
        product_id=product.id,
        cohort_id=cohort_id,
        identifier=identifier,
        broker=facts.broker,
        topic_name=identity.topic_name,
        state=DeviceState.ACTIVE,
        created_at=now,
        tags=product.jitp.tags,
    )
    result.device, result.created = device, True
    result.credential = _credential(identity, device.id, now, new_id)
    return result


def apply_enrollment(result: Enrollment, facts: WorkingSet, now: datetime) -> None:
    """Puts an accepted enrollment into the working copy: device, credential, quota, events."""
    device, credential = result.device, result.credential
    assert device is not None
    assert credential is not None
    if result.created:
        facts.save_device(device)
        facts.events += [
            Event(at=now, kind=kind, product_id=device.product_id, cohort_id=device.cohort_id,
                  device_id=device.id, word=word)
            for kind, word in ((EventKind.DEVICE_STATE, device.state), (EventKind.ENROLLED, "jitp"))
        ]  # fmt: skip
        facts.enrolled[device.product_id] = facts.enrolled.get(device.product_id, 0) + 1
        facts.new_enrollments[device.product_id] = facts.new_enrollments.get(device.product_id, 0) + 1
    else:
        before = facts.devices[device.id]
        if before.state != device.state:
            facts.events.append(
                Event(at=now, kind=EventKind.DEVICE_STATE, product_id=device.product_id,
                      cohort_id=device.cohort_id, device_id=device.id, word=device.state, before=before.state)
            )  # fmt: skip
        facts.save_device(device)
    if credential.key_id not in facts.credentials:
        facts.save_credential(credential)


def _known_key(
    result: Enrollment, identity: VerifiedIdentity, known: Credential, facts: WorkingSet
) -> Enrollment:
    device = facts.devices[known.device_id]
    result.identifier = device.identifier
    result.passed("known_key", f"yes: {device.identifier}")
    if not result.check(
        "same_product",
        RejectReason.KEY_IN_OTHER_PRODUCT,
        known.product_id == identity.product_id,
        "its CA belongs to the device's product",
        f"key {identity.key_id} is known through another product's CA",
    ):
        return result
    if not result.check(
        "key_state",
        RejectReason.KEY_REVOKED,
        known.state is CredentialState.ACTIVE,
        "the key is active",
        f"the key of device {device.identifier!r} is {known.state}",
    ):
        return result
    if not _state_allows(result, device):
        return result
    if not result.check(
        "topic_name",
        RejectReason.TOPIC_NAME_TAKEN,
        device.topic_name == identity.topic_name,
        f"{identity.topic_name} is this device's",
        f"device {device.identifier!r} lives at topic name {device.topic_name!r}, "
        f"the certificate says {identity.topic_name!r}",
    ):
        return result
    result.device, result.credential = device, known
    return result


def _state_allows(result: Enrollment, device: Device) -> bool:
    if not result.check(
        "not_blocked",
        RejectReason.DEVICE_BLOCKED,
        device.state is not DeviceState.BLOCKED,
        f"device is {device.state}",
        f"device {device.identifier!r} is blocked; `fleetgate device unblock` lets it in again",
    ):
        return False
    return result.check(
        "not_retired",
        RejectReason.DEVICE_RETIRED,
        device.state is not DeviceState.RETIRED,
        "device is in service",
        f"device {device.identifier!r} is retired",
    )


def _new_key(
    result: Enrollment,
    identity: VerifiedIdentity,
    device: Device,
    facts: WorkingSet,
    *,
    hello: Hello | None,
    audience: str,
    now: datetime,
    new_id: Callable[[], int],
) -> Enrollment:
    result.passed("known_identifier", f"yes: {device.identifier}")
    if not _state_allows(result, device):
        return result
    credential = _credential(identity, device.id, now, new_id)
    active = [
        facts.credentials[key]
        for key in sorted(facts.keys_of.get(device.id, ()))
        if facts.credentials[key].state is CredentialState.ACTIVE
    ]
    if not facts.keys_of.get(device.id):
        result.passed("new_key", "the device's first verified key binds")
    elif device.new_key_until is not None and device.new_key_until > now:
        result.passed("new_key", f"an operator allows a new key until {device.new_key_until.isoformat()}")
        device = replace(device, new_key_until=None)
        if active:
            credential = replace(credential, replaces_id=active[-1].id)
    else:
        old = _vouching(hello, identity, active, audience)
        if old is None:
            return result.failed(
                "new_key",
                RejectReason.KEY_CHANGE_UNPROVEN,
                f"device {device.identifier!r} has another key, and it did not sign for this one; "
                "send `previous`, or an operator grants a new key",
            )
        result.passed("new_key", "the old key signed for it")
        credential = replace(credential, replaces_id=old.id)
    state = DeviceState.ACTIVE if device.state is DeviceState.PENDING else device.state
    result.device = replace(device, topic_name=identity.topic_name, state=state)
    result.credential = credential
    return result


def _vouching(
    hello: Hello | None, identity: VerifiedIdentity, active: list[Credential], audience: str
) -> Credential | None:
    """The active credential whose key signed for the new one, or None."""
    if hello is None or hello.previous is None:
        return None
    old = next((credential for credential in active if credential.key_id == hello.previous.keyid), None)
    if old is None:
        return None
    try:
        signature = base64.b64decode(hello.previous.signature, validate=True)
        statement = previous_statement(audience, identity.topic_name, identity.spki)
        verify_signature(load_spki(old.spki), signature, statement)
    except (binascii.Error, ValueError, VerificationError):
        return None
    return old


def _read_identifier(result: Enrollment, identity: VerifiedIdentity, product: Product) -> str | None:
    certificate = identity.certificate
    source = product.jitp.identifier_source
    values: dict[IdentifierSource, str | None] = {
        IdentifierSource.CN: certificate.common_name,
        IdentifierSource.SERIAL_NUMBER: certificate.subject_serial_number,
        IdentifierSource.SAN_URI: certificate.san_uris[0] if len(certificate.san_uris) == 1 else None,
        IdentifierSource.SAN_DNS: certificate.san_dns[0] if len(certificate.san_dns) == 1 else None,
    }
    identifier = values[source]
    if identifier is None or not 0 < len(identifier) <= 128 or not identifier.isprintable():
        result.failed(
            "identifier",
            RejectReason.IDENTIFIER_MISSING,
            f"{product.name} names devices by {source}; the certificate must hold exactly one, of 1–128 "
            "printable characters",
        )
        return None
    result.passed("identifier", f"{identifier} from {source}")
    pattern = product.jitp.identifier_pattern
    if pattern is not None and not result.check(
        "identifier_pattern",
        RejectReason.IDENTIFIER_PATTERN,
        re.fullmatch(pattern, identifier) is not None,
        f"matches {pattern}",
        f"{identifier!r} does not match {product.name}'s pattern {pattern}",
    ):
        return None
    return identifier


def _may_enroll(
    result: Enrollment, product: Product, authority: AuthorityFact, identifier: str, facts: WorkingSet
) -> bool:
    settings = product.jitp
    quota = settings.quota
    enrolled = facts.enrolled.get(product.id, product.enrolled)
    checks = (
        ("product_active", RejectReason.PRODUCT_ARCHIVED, product.archived_at is None,
         f"{product.name} takes in devices", f"product {product.name!r} is archived"),
        ("ca_active", RejectReason.CA_RETIRING, authority.state is AuthorityState.ACTIVE,
         f"CA {authority.name} is active", f"CA {authority.name!r} is {authority.state}: no new devices"),
        ("jitp_enabled", RejectReason.JITP_DISABLED, settings.enabled,
         "just-in-time provisioning is on", f"just-in-time provisioning of {product.name!r} is off"),
        ("mode", RejectReason.NOT_ON_ALLOW_LIST,
         settings.mode is not EnrollmentMode.ALLOW_LIST or identifier in settings.allow_list,
         f"mode {settings.mode}", f"{identifier!r} is not on {product.name}'s allow list"),
        ("approval", RejectReason.APPROVAL_REQUIRED, settings.mode is not EnrollmentMode.APPROVAL,
         "no approval needed", f"{product.name} wants an operator's approval: `fleetgate device create`"),
        ("quota", RejectReason.QUOTA_EXHAUSTED, quota is None or enrolled < quota,
         "no quota" if quota is None else f"{enrolled} of {quota} used",
         f"{product.name} has used its quota of {quota}"),
    )  # fmt: skip
    return all(result.check(*check) for check in checks)


def _credential(
    identity: VerifiedIdentity, device_id: DeviceId, now: datetime, new_id: Callable[[], int]
) -> Credential:
    certificate = identity.certificate
    return Credential(
        id=CredentialId(new_id()),
        device_id=device_id,
        product_id=identity.product_id,
        authority_id=identity.authority_id,
        key_id=identity.key_id,
        spki=identity.spki,
        state=CredentialState.ACTIVE,
        topic_name=TopicName(identity.topic_name),
        certificate=b"",
        fingerprint=certificate.fingerprint,
        not_before=certificate.not_before,
        not_after=identity.valid_until,
        created_at=now,
    )
