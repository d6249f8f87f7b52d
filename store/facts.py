"""Fills a batch's working copy in a few `IN` reads, and reads credentials before verification.

Everything a decision may look at is read here: by key, by identifier, by topic name, then the devices these
lead to, their other keys and their connections.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

import sqlalchemy as sa

from provisioning.devices import (
    Connection,
    ConnectionState,
    Credential,
    CredentialState,
    Device,
    DeviceState,
)
from provisioning.ids import DeviceId, KeyId, ProductId, TopicName
from provisioning.working import Registry, WorkingSet
from store import attempts
from store.database import Transaction, parts
from store.prepared import Query
from store.registry import load_registry
from store.rows import RowReader, by_value
from store.schema import brokers, connections, credentials, devices, products
from store.times import from_ms

_VALUES: Final[sa.BindParameter[Any]] = sa.bindparam("values", expanding=True)
_CREDENTIALS: Final = Query(sa.select(credentials).where(credentials.c.key_id.in_(_VALUES)))
_OTHER_CREDENTIALS: Final = Query(
    sa.select(credentials).where(
        credentials.c.device_id.in_(_VALUES),
        credentials.c.key_id.not_in(sa.bindparam("known", expanding=True)),
    ),
)
_EPOCH: Final = Query(sa.select(brokers.c.epoch).where(brokers.c.name == sa.bindparam("broker")))
_ENROLLED: Final = Query(sa.select(products.c.id, products.c.enrolled).where(products.c.id.in_(_VALUES)))
_CONNECTION: Final = tuple(
    column.label(f"connection_{column.name}") if column.name in devices.c else column
    for column in connections.c
)
"""The columns of a connection beside those of its device."""
_DEVICES: Final = sa.select(devices, *_CONNECTION).select_from(
    devices.outerjoin(connections, connections.c.device_id == devices.c.id)
)
_CONNECTION_AT: Final = len(devices.columns)
read_device: Final = RowReader(
    Device,
    devices,
    {
        "state": by_value(DeviceState),
        "created_at": from_ms,
        "tags": tuple,
        "attributes": lambda found: tuple(sorted(found.items())),
        "new_key_until": from_ms,
    },
)
"""A row that begins with `devices` as its type."""
read_credential: Final = RowReader(
    Credential,
    credentials,
    {
        "state": by_value(CredentialState),
        "not_before": from_ms,
        "not_after": from_ms,
        "created_at": from_ms,
    },
)
"""A row of `credentials` as its type."""
_read_connection: Final = RowReader(
    Connection,
    connections,
    {"state": by_value(ConnectionState), "opened_at": from_ms, "heard_by": from_ms},
    start=_CONNECTION_AT,
)
_DEVICES_BY_ID: Final = Query(_DEVICES.where(devices.c.id.in_(_VALUES)))
_DEVICES_BY_TOPIC: Final = Query(
    _DEVICES.where(devices.c.broker == sa.bindparam("broker"), devices.c.topic_name.in_(_VALUES)),
)
_DEVICES_BY_IDENTIFIER: Final = Query(
    _DEVICES.where(devices.c.product_id == sa.bindparam("product"), devices.c.identifier.in_(_VALUES)),
)


def load_credentials(tx: Transaction, keys: Iterable[KeyId]) -> dict[KeyId, Credential]:
    """The credentials of those keys that are known."""
    found: dict[KeyId, Credential] = {}
    for part in parts(sorted(keys)):
        for row in _CREDENTIALS.rows(tx, values=part):
            credential = read_credential(row)
            found[credential.key_id] = credential
    return found


def load_epoch(tx: Transaction, broker: str) -> int:
    """How often the broker is known to have restarted."""
    value = _EPOCH.value(tx, broker=broker)
    return 0 if value is None else int(value)


def load_working_set(
    tx: Transaction,
    registry: Registry,
    *,
    broker: str,
    worker: str,
    keys: Iterable[KeyId],
    identifiers: Iterable[tuple[ProductId, str]],
    topic_names: Iterable[TopicName],
) -> WorkingSet:
    """The facts of a batch.

    Args:
        registry: the products, cohorts and CAs to decide by.
        broker: on which broker topic names are looked up.
        worker: whose counters will change.
        keys: of all senders, known or not.
        identifiers: that the unknown ones may claim, by product.
        topic_names: of all senders.
    """
    facts = WorkingSet(registry=registry, broker=broker, worker=worker, epoch=load_epoch(tx, broker))
    for credential in load_credentials(tx, keys).values():
        facts.index_credential(credential)
    known = {credential.device_id for credential in facts.credentials.values()}
    _load_devices(tx, facts, _DEVICES_BY_ID, known)
    # The rest is for keys that nobody knows yet: devices that they may claim, or whose place they may want.
    others = set(topic_names) - {device.topic_name for device in facts.devices.values()}
    _load_devices(tx, facts, _DEVICES_BY_TOPIC, others, broker=broker)
    by_product: dict[ProductId, set[str]] = {}
    for product_id, identifier in identifiers:
        by_product.setdefault(product_id, set()).add(identifier)
    for product_id, claimed in sorted(by_product.items()):
        _load_devices(tx, facts, _DEVICES_BY_IDENTIFIER, claimed, product=product_id)
    _load_other_credentials(tx, facts)
    facts.attempts = attempts.load_open(tx, facts.devices)
    if by_product:
        facts.enrolled = dict(_ENROLLED.rows(tx, values=sorted(by_product)))
    return facts


def _load_devices(
    tx: Transaction, facts: WorkingSet, query: Query, values: Collection[Any], **more: object
) -> None:
    """Devices, each with its connection."""
    for part in parts(sorted(values)):
        for row in query.rows(tx, values=part, **more):
            device = read_device(row)
            facts.index(device)
            if row[_CONNECTION_AT] is not None:
                facts.connections[device.id] = _read_connection(row)


def _load_other_credentials(tx: Transaction, facts: WorkingSet) -> None:
    """A device's other keys: where a key takes the place of one, or an unknown key may claim the device."""
    settled = {one.device_id for one in facts.credentials.values() if one.replaces_id is None}
    known = sorted(facts.credentials)
    for part in parts(sorted(facts.devices.keys() - settled)):
        for row in _OTHER_CREDENTIALS.rows(tx, values=part, known=known):
            facts.index_credential(read_credential(row))


def load_devices(
    tx: Transaction,
    device_ids: Iterable[DeviceId],
    *,
    broker: str,
    worker: str,
    registry: Registry | None = None,
) -> WorkingSet:
    """The facts of devices that did not speak: their time has come, or an operator did. Without their keys.

    Args:
        registry: to decide by; None: as it is now.
    """
    found = WorkingSet(
        registry=load_registry(tx)[0] if registry is None else registry,
        broker=broker,
        worker=worker,
        epoch=load_epoch(tx, broker),
    )
    _load_devices(tx, found, _DEVICES_BY_ID, set(device_ids))
    found.attempts = attempts.load_open(tx, found.devices)
    return found
