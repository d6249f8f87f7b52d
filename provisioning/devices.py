"""Devices, the credentials they are known by, and their connections, as the decisions see them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from provisioning.ids import (
    AuthorityId,
    CohortId,
    CredentialId,
    DeviceId,
    Fingerprint,
    KeyId,
    ProductId,
    TopicName,
)


class DeviceState(StrEnum):
    """A device's place in its life; `pending` waits for its first verified key."""

    PENDING = "pending"
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    BLOCKED = "blocked"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device of one product and one cohort.

    `highest_bundle_seq` is that of the newest bundle it was ever seen running: it is never offered less.
    """

    id: DeviceId
    product_id: ProductId
    cohort_id: CohortId | None
    identifier: str
    broker: str
    topic_name: TopicName | None
    state: DeviceState
    created_at: datetime
    cohort_pinned: bool = False
    tags: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str | int | float | bool], ...] = ()
    hardware_model: str = ""
    hardware_revision: str = ""
    firmware_version: str = ""
    firmware_bundle_seq: int | None = None
    highest_bundle_seq: int = 0
    time_zone: str | None = None
    updates_enabled: bool = True
    new_key_until: datetime | None = None


class CredentialState(StrEnum):
    """`replaced`: a newer key has said two hellos; `revoked`: an operator ended it."""

    ACTIVE = "active"
    REPLACED = "replaced"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A public key by which a device is known, and the newest certificate seen for it.

    `not_after` is the earliest end among that certificate and the intermediates above it.
    `last_ts` orders its accepted hellos (milliseconds). `previous_boot` and `boot_returns` watch for clones:
    a device never goes back to a boot it has left.
    """

    id: CredentialId
    device_id: DeviceId
    product_id: ProductId
    authority_id: AuthorityId
    key_id: KeyId
    spki: bytes
    state: CredentialState
    topic_name: TopicName
    certificate: bytes
    fingerprint: Fingerprint
    not_before: datetime
    not_after: datetime
    created_at: datetime
    last_ts: int = 0
    last_nonce: str | None = None
    last_boot: str | None = None
    previous_boot: str | None = None
    boot_returns: int = 0
    hellos: int = 0
    replaces_id: CredentialId | None = None


class ConnectionState(StrEnum):
    """`unknown`: its broker restarted, and it has not been heard since."""

    ONLINE = "online"
    OFFLINE = "offline"
    SLEEPING = "sleeping"
    REBOOTING = "rebooting"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A device's latest session: `conn` names it, (`seq`, `seq_window`) say which messages were counted."""

    device_id: DeviceId
    conn: str
    boot: str
    key_id: KeyId
    state: ConnectionState
    stays: bool
    broker: str
    epoch: int
    worker: str
    opened_at: datetime
    heard_by: datetime
    seq: int = 0
    seq_window: int = 0
    will_seen: bool = False
