"""What happened to one device, from its events, the newest first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from provisioning.ids import DeviceId
from store import horizons
from store.database import Transaction
from store.firmware_schema import attempts
from store.horizons import Horizon
from store.schema import devices, events
from store.times import from_ms

PRUNED: Final = "older_pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event. `before` and `word` are the two sides of the change; `about` names the bundle of an attempt.

    The kind `PRUNED` is none: it ends a list whose earlier events were deleted, those up to its time.
    """

    at: datetime
    kind: str
    word: str
    before: str
    about: str
    reason: str


def load(tx: Transaction, device_id: DeviceId, limit: int) -> list[Happening]:
    """The device's latest events; where there are no more, and earlier ones were deleted, `PRUNED` says so."""
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
    found = [
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
    if len(found) < limit:
        pruned_until = horizons.load(tx, Horizon.EVENTS)
        made = sa.select(devices.c.id).where(devices.c.id == device_id, devices.c.created_at <= pruned_until)
        if tx.connection.execute(made).first() is not None:
            found.append(
                Happening(at=from_ms(pruned_until), kind=PRUNED, word="", before="", about="", reason="")
            )
    return found
