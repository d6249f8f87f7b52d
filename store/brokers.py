"""Brokers and their epochs: how often each is known to have restarted."""

from typing import Final

import sqlalchemy as sa

from store.database import Transaction
from store.schema import brokers, workers

SLACK_MS: Final = 5000
"""By how much the clocks of workers on different hosts may differ."""


def note_uptime(tx: Transaction, name: str, uptime_seconds: int, at_ms: int) -> bool:
    """Takes the broker's own uptime; one that began after the last one was seen is a restart.

    Several workers hear it, and one that stands still for a while says an old one: this broker began before the
    last one was seen, so it is the same, and has not restarted.

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
    went_back = uptime_seconds < row.uptime_seconds
    restarted = bool(went_back and at_ms - uptime_seconds * 1000 > row.uptime_at - SLACK_MS)
    if went_back and not restarted:
        return False
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
