"""Devices and the inbox, as operators look at them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from provisioning.devices import ConnectionState, Device
from provisioning.errors import ConflictError, NotFoundError
from provisioning.ids import DeviceId, OrganizationId, TopicName
from store.database import Transaction
from store.facts import read_device
from store.schema import cohorts, connections, credentials, devices, inbox, last_seen, products
from store.times import from_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device with the names of what it belongs to, and how it is connected."""

    device: Device
    product: str
    cohort: str | None
    connection: ConnectionState | None
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxItem:
    """What was proven genuine and refused, grouped by reason, CA and key."""

    id: int
    product: str
    reason: str
    identifier: str
    topic_name: str
    key_id: str
    detail: str
    seen: int
    first_at: datetime
    last_at: datetime


def list_all(
    tx: Transaction,
    organization_id: OrganizationId,
    *,
    product: str | None = None,
    cohort: str | None = None,
    state: str | None = None,
    after: DeviceId | None = None,
    limit: int = 100,
) -> list[DeviceView]:
    """The organization's devices in the order of their numbers, which is that of their arrival.

    Args:
        after: the last device of the page before.
        limit: 1–1000.
    """
    query = _query(organization_id)
    if state is not None:
        query = query.where(devices.c.state == state)
    if after is not None:
        query = query.where(devices.c.id > after)
    query = query.order_by(devices.c.id).limit(limit)
    # Product by product, or cohort by cohort, the index gives their order; over all of them the fleet would be sorted.
    found = [
        _read(row)
        for part in _list_parts(tx, organization_id, product, cohort)
        for row in tx.connection.execute(query.where(part))
    ]
    return sorted(found, key=lambda view: view.device.id)[:limit]


def _list_parts(
    tx: Transaction, organization_id: OrganizationId, product: str | None, cohort: str | None
) -> list[sa.ColumnElement[bool]]:
    """Conditions of which each device of a list fulfils one."""
    mine = products.c.organization_id == organization_id
    if product is not None:
        mine = sa.and_(mine, products.c.name == product)
    if cohort is None:
        numbers = tx.connection.execute(sa.select(products.c.id).where(mine)).scalars()
        return [devices.c.product_id == number for number in numbers]
    named = sa.select(cohorts.c.id).join(products, products.c.id == cohorts.c.product_id)
    numbers = tx.connection.execute(named.where(mine, cohorts.c.name == cohort)).scalars()
    return [devices.c.cohort_id == number for number in numbers]


def find(tx: Transaction, organization_id: OrganizationId, name: str) -> DeviceView:
    """The device that `name` means: its number, topic name or identifier, in this order.

    Raises:
        NotFoundError: none.
        ConflictError: an identifier that several products have.
    """
    tries: list[sa.ColumnElement[bool]] = [devices.c.topic_name == name, devices.c.identifier == name]
    if name.isascii() and name.isdigit() and len(name) <= 19 and int(name) < 1 << 63:
        tries.insert(0, devices.c.id == int(name))
    for condition in tries:
        found = [
            _read(row) for row in tx.connection.execute(_query(organization_id).where(condition).limit(2))
        ]
        if len(found) > 1:
            raise ConflictError(
                f"{name!r} is a device of {found[0].product} and of {found[1].product}; give its id"
            )
        if found:
            return found[0]
    raise NotFoundError(f"there is no device {name!r}, by id, topic name or identifier")


def has_topic_name(tx: Transaction, broker: str, topic_name: TopicName) -> bool:
    """Whether any organization's device has this name on the broker."""
    query = sa.select(devices.c.id).where(devices.c.broker == broker, devices.c.topic_name == topic_name)
    return tx.connection.execute(query.limit(1)).first() is not None


def list_keys(tx: Transaction, device_id: DeviceId) -> list[str]:
    """The keys by which a device is known."""
    query = sa.select(credentials.c.key_id).where(credentials.c.device_id == device_id)
    return sorted(tx.connection.execute(query).scalars())


def list_inbox(
    tx: Transaction,
    organization_id: OrganizationId,
    *,
    product: str | None = None,
    reason: str | None = None,
    limit: int = 100,
) -> list[InboxItem]:
    """The inbox, the newest first."""
    query = (
        sa.select(inbox, products.c.name.label("product"))
        .join(products, products.c.id == inbox.c.product_id)
        .where(products.c.organization_id == organization_id)
    )
    if product is not None:
        query = query.where(products.c.name == product)
    if reason is not None:
        query = query.where(inbox.c.reason == reason)
    return [
        InboxItem(
            id=row.id,
            product=row.product,
            reason=row.reason,
            identifier=row.identifier,
            topic_name=row.topic_name,
            key_id=row.key_id,
            detail=row.detail,
            seen=row.seen,
            first_at=from_ms(row.first_at),
            last_at=from_ms(row.last_at),
        )
        for row in tx.connection.execute(query.order_by(inbox.c.last_at.desc()).limit(limit))
    ]


def _query(organization_id: OrganizationId) -> sa.Select[Any]:
    return (
        sa.select(
            devices,
            products.c.name.label("product"),
            cohorts.c.name.label("cohort"),
            connections.c.state.label("connection"),
            last_seen.c.at.label("last_seen_at"),
        )
        .join(products, products.c.id == devices.c.product_id)
        .outerjoin(cohorts, cohorts.c.id == devices.c.cohort_id)
        .outerjoin(connections, connections.c.device_id == devices.c.id)
        .outerjoin(last_seen, last_seen.c.device_id == devices.c.id)
        .where(products.c.organization_id == organization_id)
    )


def _read(row: sa.Row[Any]) -> DeviceView:
    return DeviceView(
        device=read_device(row),
        product=row.product,
        cohort=row.cohort,
        connection=None if row.connection is None else ConnectionState(row.connection),
        last_seen_at=from_ms(row.last_seen_at),
    )
