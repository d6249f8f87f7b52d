"""Which connections need an end from our side: silent for too long, or of a broker's earlier life."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from provisioning.devices import ConnectionState
from provisioning.ids import DeviceId, TopicName
from store.database import Transaction
from store.schema import connections, devices
from store.times import to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenConnection:
    """An online connection, by its device and the topic name that locks it."""

    device_id: DeviceId
    topic_name: TopicName


def list_silent(tx: Transaction, broker: str, now: datetime, limit: int) -> list[OpenConnection]:
    """Online connections that should have been heard by `now`, the longest silent first."""
    return _list(tx, broker, connections.c.heard_by < to_ms(now), limit)


def list_of_earlier_epochs(tx: Transaction, broker: str, epoch: int, limit: int) -> list[OpenConnection]:
    """Online connections from before the broker's last restart."""
    return _list(tx, broker, connections.c.epoch < epoch, limit)


def _list(
    tx: Transaction, broker: str, condition: sa.ColumnElement[bool], limit: int
) -> list[OpenConnection]:
    query = (
        sa.select(connections.c.device_id, devices.c.topic_name)
        .join(devices, devices.c.id == connections.c.device_id)
        .where(connections.c.state == ConnectionState.ONLINE.value, connections.c.broker == broker, condition)
        .limit(limit)
    )
    return [
        OpenConnection(device_id=DeviceId(row.device_id), topic_name=TopicName(row.topic_name))
        for row in tx.connection.execute(query)
    ]
