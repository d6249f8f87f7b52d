"""What is still to be sent: a set, one row per (device, kind); the payload is rendered when it is published.

A row is written in the transaction that causes it and deleted once the broker has acknowledged that revision.
The worker that wrote it publishes; what is left for some seconds is adopted by any worker on that broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from provisioning.ids import DeviceId
from store.database import Transaction
from store.prepared import run_many
from store.schema import outbox

OFFER: Final = "offer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An offer, or its cancellation, to publish to a device."""

    device_id: DeviceId
    revision: int


def put(tx: Transaction, broker: str, offers: Iterable[Outgoing], at_ms: int) -> None:
    """Adds offers; a newer revision takes the place of an older one."""
    rows = [
        {
            "device_id": offer.device_id,
            "kind": OFFER,
            "revision": offer.revision,
            "broker": broker,
            "nonce": None,
            "created_at": at_ms,
        }
        for offer in sorted(offers, key=lambda offer: offer.device_id)
    ]

    def make() -> sa.Insert:
        insert = tx.insert(outbox)
        return insert.on_conflict_do_update(
            index_elements=[outbox.c.device_id, outbox.c.kind],
            set_={"revision": insert.excluded.revision, "created_at": insert.excluded.created_at},
            where=outbox.c.revision < insert.excluded.revision,
        )

    run_many(tx, "outbox.put", make, rows)


def has_left(tx: Transaction, broker: str, before_ms: int) -> bool:
    """Whether anything was left lying since before `before_ms`."""
    query = sa.select(outbox.c.device_id).where(
        outbox.c.broker == broker, outbox.c.kind == OFFER, outbox.c.created_at <= before_ms
    )
    return tx.connection.execute(query.limit(1)).first() is not None


def adopt(tx: Transaction, broker: str, before_ms: int, limit: int) -> list[Outgoing]:
    """What was left lying since before `before_ms`, the oldest first; it is this worker's from now on."""
    now = tx.now_ms()
    query = (
        sa.select(outbox.c.device_id, outbox.c.revision)
        .where(outbox.c.broker == broker, outbox.c.kind == OFFER, outbox.c.created_at <= before_ms)
        .order_by(outbox.c.created_at)
        .limit(limit)
    )
    if not tx.is_sqlite:
        query = query.with_for_update(skip_locked=True)
    found = [
        Outgoing(device_id=DeviceId(row.device_id), revision=row.revision)
        for row in tx.connection.execute(query)
    ]
    if found:
        tx.connection.execute(
            sa.update(outbox)
            .where(outbox.c.kind == OFFER, outbox.c.device_id == sa.bindparam("device"))
            .values(created_at=now),
            [{"device": offer.device_id} for offer in found],
        )
    return found


def delete(tx: Transaction, sent: Iterable[Outgoing]) -> None:
    """Forgets what the broker has acknowledged; a newer revision stays."""
    rows = [{"device": offer.device_id, "sent": offer.revision} for offer in sent]
    if rows:
        tx.connection.execute(
            sa.delete(outbox).where(
                outbox.c.device_id == sa.bindparam("device"),
                outbox.c.kind == OFFER,
                outbox.c.revision <= sa.bindparam("sent"),
            ),
            sorted(rows, key=lambda row: row["device"]),
        )
