"""What a batch knows and what it has decided so far: one working copy, message after message.

Decisions read it and put their results into it, so the second message of a batch sees what the first one
did. `store.facts` fills it, `store.writer` writes what changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from provisioning.authorities import AuthorityState
from provisioning.devices import Connection, Credential, Device, DeviceState
from provisioning.ids import AuthorityId, CohortId, DeviceId, Fingerprint, KeyId, ProductId, TopicName
from provisioning.products import Product
from provisioning.statistics import Event, EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityFact:
    """What enrollment asks of a CA."""

    id: AuthorityId
    product_id: ProductId
    name: str
    state: AuthorityState


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The slow-moving part: products, cohorts and CAs, at one `revision`."""

    revision: int
    products: Mapping[ProductId, Product]
    cohorts: Mapping[ProductId, Mapping[str, CohortId]]
    authorities: Mapping[AuthorityId, AuthorityFact]

    def cohort_name(self, product_id: ProductId, cohort_id: CohortId | None) -> str | None:
        """The name of a cohort of a product; None for none."""
        names = self.cohorts.get(product_id, {})
        return next((name for name, number in names.items() if number == cohort_id), None)


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

    changed_devices: set[DeviceId] = field(default_factory=set)
    changed_credentials: set[KeyId] = field(default_factory=set)
    changed_connections: set[DeviceId] = field(default_factory=set)
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
        self.index_credential(credential)
        self.changed_credentials.add(credential.key_id)

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
