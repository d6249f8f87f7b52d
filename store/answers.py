"""First answers to requests that may be repeated (`Idempotency-Key`), kept with the change that they answer.

A key is claimed before the work and answered after it, in the work's own transaction: a crash loses both or
neither. Whoever comes with the same key meanwhile waits for the row, and finds the answer.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from provisioning.ids import OrganizationId
from store.database import Transaction
from store.schema import answers
from store.times import to_ms

LIFE: Final = timedelta(hours=24)
_MOST_PRUNED: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, and by which key. `actor` is the API key's name: it is never given out twice."""

    organization_id: OrganizationId
    actor: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered first, and to what: `request_sha256` is over method, path and body."""

    request_sha256: str
    status: int
    body: str


def claim(tx: Transaction, asker: Asker, request_sha256: str, now: datetime) -> Answer | None:
    """Claims a key for this transaction. One that is over its time counts as new.

    Returns: the first answer, where there was one; then nothing is claimed.
    """
    tx.connection.execute(sa.delete(answers).where(_is(asker), answers.c.created_at <= to_ms(now - LIFE)))
    insert = tx.insert(answers).values(
        organization_id=asker.organization_id,
        actor=asker.actor,
        key=asker.key,
        request_sha256=request_sha256,
        status=0,
        body="",
        created_at=to_ms(now),
    )
    # On PostgreSQL this waits for another transaction that has claimed the key and is not over yet.
    claimed = tx.connection.execute(insert.on_conflict_do_nothing().returning(answers.c.key)).one_or_none()
    if claimed is not None:
        return None
    row = tx.connection.execute(sa.select(answers).where(_is(asker))).one()
    return Answer(request_sha256=row.request_sha256, status=row.status, body=row.body)


def save(tx: Transaction, asker: Asker, status: int, body: str) -> None:
    """Keeps the answer under the key that this transaction has claimed."""
    tx.connection.execute(sa.update(answers).where(_is(asker)).values(status=status, body=body))


def prune(tx: Transaction, now: datetime) -> int:
    """Forgets answers that are over their time, a bounded number at once. Returns how many."""
    ended = (
        sa.select(answers.c.organization_id, answers.c.actor, answers.c.key)
        .where(answers.c.created_at <= to_ms(now - LIFE))
        .order_by(answers.c.created_at)
        .limit(_MOST_PRUNED)
    )
    key = sa.tuple_(answers.c.organization_id, answers.c.actor, answers.c.key)
    return tx.connection.execute(sa.delete(answers).where(key.in_(ended))).rowcount


def _is(asker: Asker) -> sa.ColumnElement[bool]:
    return sa.and_(
        answers.c.organization_id == asker.organization_id,
        answers.c.actor == asker.actor,
        answers.c.key == asker.key,
    )
