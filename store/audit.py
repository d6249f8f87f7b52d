"""What operators did: appended with each change, then hash-chained by one sealer (invariant I9)."""

import hashlib
import json
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from provisioning.ids import OrganizationId
from store.database import Transaction
from store.schema import audit
from store.times import to_ms

_MOST_SEALED: Final = 1000


def append(
    tx: Transaction,
    *,
    at: datetime,
    organization_id: OrganizationId,
    actor: str,
    action: str,
    object_type: str,
    object_id: int | str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Notes one change, in its own transaction.

    Args:
        actor: the API key's name, or `init`.
        action: `product.create` and the like.
        before: what changed, as it was; JSON.
        after: what changed, as it is; JSON.
    """
    tx.connection.execute(
        sa.insert(audit).values(
            at=to_ms(at),
            organization_id=organization_id,
            actor=actor,
            action=action,
            object_type=object_type,
            object_id=str(object_id),
            before=sa.null() if before is None else before,
            after=sa.null() if after is None else after,
        )
    )


def chain(previous: str, body: list[Any]) -> str:
    """The next link: SHA-256 in hex over the previous link and the row as canonical JSON."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}{text}".encode()).hexdigest()


def seal(tx: Transaction) -> int:
    """Gives rows that have none their place in the chain; the caller holds the name `audit`.

    Returns:
        How many rows were sealed.
    """
    last = tx.connection.execute(
        sa.select(audit.c.position, audit.c.chain_sha256)
        .where(audit.c.position.is_not(None))
        .order_by(audit.c.position.desc())
        .limit(1)
    ).one_or_none()
    position, link = (last.position, last.chain_sha256) if last is not None else (0, "")
    rows = tx.connection.execute(
        sa.select(audit).where(audit.c.position.is_(None)).order_by(audit.c.id).limit(_MOST_SEALED)
    ).all()
    for row in rows:
        position += 1
        body = [row.at, row.organization_id, row.actor, row.action, row.object_type, row.object_id]
        link = chain(link, [*body, row.before, row.after])
        tx.connection.execute(
            sa.update(audit).where(audit.c.id == row.id).values(position=position, chain_sha256=link)
        )
    return len(rows)
