"""Brokers and their epochs: how often each is known to have restarted."""

import sqlalchemy as sa

from store.database import Transaction
from store.schema import brokers, workers


def note_uptime(tx: Transaction, name: str, uptime_seconds: int, at_ms: int) -> bool:
    """Takes the broker's own uptime; one that began after the last one was seen is a restart.

    Args:
        uptime_seconds: as `$SYS/broker/uptime` says it.
        at_ms: when it was heard.

    Returns:
        Whether the broker has restarted since: its epoch is then one higher.
    """
    row = tx.connection.execute(sa.select(brokers).where(brokers.c.name == name)).one_or_none()
    values = {"uptime_seconds": uptime_seconds, "uptime_at": at_ms}
    if row is None:
        insert = tx.insert(brokers).values(name=name, epoch=1, **values)
        tx.connection.execute(insert.on_conflict_do_nothing(index_elements=[brokers.c.name]))
        return False
    restarted = bool(uptime_seconds < row.uptime_seconds)
    tx.connection.execute(
        sa.update(brokers)
        .where(brokers.c.name == name)
        .values(epoch=brokers.c.epoch + (1 if restarted else 0), **values)
    )
    return restarted


def list_names(tx: Transaction) -> list[str]:
    """Every broker that was ever heard, or that a worker works on."""
    query = sa.select(brokers.c.name).union(sa.select(workers.c.broker))
    return sorted(tx.connection.execute(query).scalars())
