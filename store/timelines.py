"""What happened to one device, from its events and sessions, the newest first."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from provisioning.ids import DeviceId
from store.database import Transaction
from store.firmware_schema import attempts
from store.schema import events
from store.times import from_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event. `before` and `word` are the two sides of the change; `about` names the bundle of an attempt."""

    at: datetime
    kind: str
    word: str
    before: str
    about: str
    reason: str


def load(tx: Transaction, device_id: DeviceId, limit: int) -> list[Happening]:
    """The device's latest events."""
    rows = tx.connection.execute(
        sa.select(
            events.c.at,
            events.c.kind,
            events.c.word,
            events.c.before,
            events.c.reason,
            attempts.c.bundle_version,
        )
        .outerjoin(attempts, attempts.c.id == events.c.attempt_id)
        .where(events.c.device_id == device_id)
        .order_by(events.c.id.desc())
        .limit(limit)
    )
    return [
        Happening(
            at=from_ms(row.at),
            kind=row.kind,
            word=row.word,
            before=row.before,
            about=row.bundle_version or "",
            reason=row.reason or "",
        )
        for row in rows
    ]
