"""Messages that could not be worked: kept with their cause, so that nothing is lost and nothing blocks."""

from datetime import datetime

import sqlalchemy as sa

from store.database import Transaction
from store.schema import set_aside
from store.times import to_ms


def append(tx: Transaction, *, at: datetime, topic_name: str, verb: str, payload: bytes, cause: str) -> None:
    """Keeps one message.

    Args:
        topic_name: as the broker proved it.
        payload: the whole message, at most 16 KiB.
        cause: for the operator.
    """
    tx.connection.execute(
        sa.insert(set_aside).values(
            at=to_ms(at), topic_name=topic_name, verb=verb, payload=payload, cause=cause[:2000]
        )
    )
