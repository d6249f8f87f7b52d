"""What a batch knows and what it has decided so far: one working copy, message after message.

Decisions read it and put their results into it, so the second message of a batch sees what the first one
did. `store.facts` fills it, `store.writer` writes what changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from provisioning.attempts import UNSUCCESSFUL, Attempt, count_reason
from provisioning.authorities import AuthorityState
from provisioning.devices import Connection, Credential, Device, DeviceState
from provisioning.ids import AuthorityId, CohortId, DeviceId, Fingerprint, KeyId, ProductId, TopicName
from provisioning.products import Product
from provisioning.rollouts import Override, Rollout
from provisioning.statistics import AttemptMark, Event, EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityFact:
    """What enrollment asks of a CA."""

    id: AuthorityId
    product_id: ProductId
    name: str
    state: AuthorityState


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The slow-moving part at one `revision`: products, cohorts, CAs, and what is rolled out.

    Attributes:
        rollouts: those that are planned or may still offer, by cohort.
        versions: every bundle's version → `bundle_seq`, by product.
    """

    revision: int
    products: Mapping[ProductId, Product]
    cohorts: Mapping[ProductId, Mapping[str, CohortId]]
    authorities: Mapping[AuthorityId, AuthorityFact]
    rollouts: Mapping[CohortId, tuple[Rollout, ...]] = field(default_factory=dict)
    overrides: Mapping[DeviceId, Override] = field(default_factory=dict)
    versions: Mapping[ProductId, Mapping[str, int]] = field(default_factory=dict)

    def cohort_name(self, product_id: ProductId, cohort_id: CohortId | None) -> str | None:
        """The name of a cohort of a product; None for none."""
        names = self.cohorts.get(product_id, {})
        for name, number in names.items():
            if number == cohort_id:
                return name
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A proven stranger's or device's refusal, for the inbox."""

    product_id: ProductId
    authority_id: AuthorityId
    reason: str
    key_id: KeyId
    identifier: str
    topic_name: TopicName
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCertificate:
    """A certificate that belongs to a credential."""

    fingerprint: Fingerprint
    key_id: KeyId
    authority_id: AuthorityId
    serial_number: str
    not_before_ms: int
    not_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedSession:
    """A session that ended."""

    device_id: DeviceId
    conn: str
    opened_at_ms: int
    reason: str


@dataclass(slots=True, kw_only=True)
class WorkingSet:
    """Facts of one batch, and what its decisions changed in them."""

    registry: Registry
    broker: str
    worker: str
    epoch: int
    devices: dict[DeviceId, Device] = field(default_factory=dict)
    credentials: dict[KeyId, Credential] = field(default_factory=dict)
    connections: dict[DeviceId, Connection] = field(default_factory=dict)
    by_identifier: dict[tuple[ProductId, str], DeviceId] = field(default_factory=dict)
    by_topic: dict[TopicName, DeviceId] = field(default_factory=dict)
    keys_of: dict[DeviceId, set[KeyId]] = field(default_factory=dict)
    enrolled: dict[ProductId, int] = field(default_factory=dict)
    attempts: dict[DeviceId, Attempt] = field(default_factory=dict)
    """Open ones, and those that this batch ended."""

    before: dict[KeyId, Credential | None] = field(default_factory=dict)
    """Changed credentials as they were loaded; None for new ones."""
    changed_devices: set[DeviceId] = field(default_factory=set)
    changed_connections: set[DeviceId] = field(default_factory=set)
    changed_attempts: set[DeviceId] = field(default_factory=set)
    superseded: list[Attempt] = field(default_factory=list)
    due: dict[DeviceId, int] = field(default_factory=dict)
    """Devices for the offerer, with the rollout or override that is their candidate."""
    outgoing: set[DeviceId] = field(default_factory=set)
    """Devices whose attempt is to be published: an offer, or its cancellation."""
    new_enrollments: dict[ProductId, int] = field(default_factory=dict)
    seen: set[DeviceId] = field(default_factory=set)
    certificates: dict[Fingerprint, SeenCertificate] = field(default_factory=dict)
    closed: list[ClosedSession] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def index(self, device: Device) -> None:
        """Makes a device findable; for facts that were loaded, changes nothing."""
        self.devices[device.id] = device
        self.by_identifier[device.product_id, device.identifier] = device.id
        if device.topic_name is not None:
            self.by_topic[device.topic_name] = device.id

    def index_credential(self, credential: Credential) -> None:
        """Makes a credential findable; for facts that were loaded, changes nothing."""
        self.credentials[credential.key_id] = credential
        self.keys_of.setdefault(credential.device_id, set()).add(credential.key_id)

    def save_device(self, device: Device) -> None:
        """Takes over a new or changed device."""
        if self.devices.get(device.id) != device:
            self.index(device)
            self.changed_devices.add(device.id)

    def save_credential(self, credential: Credential) -> None:
        """Takes over a new or changed credential."""
        self.before.setdefault(credential.key_id, self.credentials.get(credential.key_id))
        self.index_credential(credential)

    def save_connection(self, connection: Connection) -> None:
        """Takes over a new or changed connection."""
        self.connections[connection.device_id] = connection
        self.changed_connections.add(connection.device_id)

    def set_state(self, device: Device, state: DeviceState, event: Event) -> Device:
        """Moves a device to another state, with the event that counts it."""
        assert event.kind == EventKind.DEVICE_STATE
        moved = replace(device, state=state)
        self.save_device(moved)
        self.events.append(event)
        return moved

    def save_attempt(self, attempt: Attempt, at: datetime) -> None:
        """Takes over a new or changed attempt, with the event that counts a change of its state."""
        before = self.attempts.get(attempt.device_id)
        known = before is not None and before.id == attempt.id
        if known and before == attempt:
            return
        if before is not None and not known:
            assert not before.is_open
            if attempt.device_id in self.changed_attempts:
                self.superseded.append(before)
        old = before.state if known and before is not None else ""
        self.attempts[attempt.device_id] = attempt
        self.changed_attempts.add(attempt.device_id)
        if old == attempt.state:
            return
        source = attempt.rollout_id if attempt.rollout_id is not None else attempt.override_id
        assert source is not None
        self.events.append(
            Event(
                at=at,
                kind=EventKind.ATTEMPT,
                product_id=attempt.product_id,
                cohort_id=attempt.cohort_id,
                device_id=attempt.device_id,
                word=attempt.state,
                before=old,
                attempt=AttemptMark(
                    attempt_id=attempt.id,
                    source_id=source,
                    bundle_id=attempt.bundle_id,
                    hardware=attempt.hardware_model,
                    ends=not attempt.is_open,
                    reason=count_reason(attempt) if attempt.state in UNSUCCESSFUL else "",
                ),
            )
        )
