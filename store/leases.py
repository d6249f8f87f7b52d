"""Who does what only one worker may do at a time: a lease by the database's clock, which all workers share."""

from datetime import datetime

import sqlalchemy as sa

from store.database import Transaction
from store.schema import leases
from store.times import from_ms


def take(tx: Transaction, name: str, holder: str, seconds: float) -> datetime | None:
    """Takes a lease that is free, expired or already one's own.

    Args:
        holder: this worker.
        seconds: how long it holds, from now.

    Returns:
        The database's time, or None where another holds it.
    """
    now = tx.now_ms()
    insert = tx.insert(leases).values(name=name, holder=holder, expires_at=now + int(seconds * 1000))
    taken = tx.connection.execute(
        insert.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": insert.excluded.holder, "expires_at": insert.excluded.expires_at},
            where=sa.or_(leases.c.holder == holder, leases.c.expires_at <= now),
        ).returning(leases.c.holder)
    )
    return from_ms(now) if taken.first() is not None else None


def release(tx: Transaction, name: str, holder: str) -> None:
    """Gives a lease back, if it is one's own."""
    tx.connection.execute(sa.delete(leases).where(leases.c.name == name, leases.c.holder == holder))
