"""How far the past was pruned. A horizon only ever moves forward; `store.verify` reads both.

Kept among the named numbers of `revisions`.
"""

from enum import StrEnum

import sqlalchemy as sa

from store.database import Transaction
from store.schema import revisions


class Horizon(StrEnum):
    """What has an end towards the past."""

    EVENTS = "events_pruned_until"
    """The latest time of an event that was folded into the checkpoint, in milliseconds."""
    MINUTES = "minutes_pruned_before"
    """The first minute that counters still have, in milliseconds; what lies before it says nothing."""


def load(tx: Transaction, horizon: Horizon) -> int:
    """Milliseconds since 1970; 0: nothing was pruned yet."""
    query = sa.select(revisions.c.value).where(revisions.c.name == horizon.value)
    value = tx.connection.execute(query).scalar()
    return 0 if value is None else int(value)


def advance(tx: Transaction, horizon: Horizon, to_ms: int) -> None:
    """Moves a horizon forward; never back."""
    insert = tx.insert(revisions).values(name=horizon.value, value=to_ms)
    tx.connection.execute(
        insert.on_conflict_do_update(
            index_elements=[revisions.c.name],
            set_={"value": insert.excluded.value},
            where=revisions.c.value < insert.excluded.value,
        )
    )
