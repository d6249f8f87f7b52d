"""Artifacts of products: what was uploaded, and what is removed because no bundle came to use it.

A blob is shared by its content, and lies outside the database. So that no upload loses its blob to a removal at the
same time, and no crash leaves a row without its blob, a row says by its `size` how far both are:

| `size` | means |
|---|---|
| above 0 | stored; a bundle may use it |
| `ARRIVING` | an upload is verified and is put in place; a bundle may not use it |
| `REMOVED` | the blob is being deleted since `created_at`; an upload has to wait |

Every change of a row is made under `lock`; a removal also holds the `push_lock` of every product it takes a row from.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from provisioning.errors import ConflictError
from provisioning.ids import ProductId
from store.database import Transaction
from store.firmware_schema import artifacts, bundle_artifacts
from store.times import to_ms

ARRIVING: Final = 0
REMOVED: Final = -1
FENCE: Final = timedelta(minutes=10)
"""After this a removal is taken for one whose process has died; deleting a blob gives up much earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """An artifact that no bundle of these products uses, and whose upload was long ago."""

    sha256: str
    product_ids: tuple[ProductId, ...]


def lock(sha256: str) -> str:
    """The name under which a blob comes and goes."""
    return f"blob/{sha256}"


def begin(tx: Transaction, number: int, product_id: ProductId, sha256: str) -> None:
    """Says that verified bytes are about to be put in place; call `complete` once they are. Hold `lock`.

    From here on a removal leaves the blob alone, and a crash leaves a row by which the blob is found again.

    Raises:
        ConflictError: the blob is just being deleted.
    """
    now = tx.now_ms()
    removed = sa.select(artifacts.c.id).where(
        artifacts.c.sha256 == sha256,
        artifacts.c.size == REMOVED,
        artifacts.c.created_at > now - FENCE // timedelta(milliseconds=1),
    )
    if tx.connection.execute(removed.limit(1)).first() is not None:
        raise ConflictError(
            f"artifact {sha256} is just being removed, since no bundle came to use it; send it again in a moment"
        )
    insert = tx.insert(artifacts).values(
        id=number, product_id=product_id, sha256=sha256, size=ARRIVING, created_at=now
    )
    kept = sa.case((artifacts.c.size == REMOVED, ARRIVING), else_=artifacts.c.size)
    tx.connection.execute(
        insert.on_conflict_do_update(
            index_elements=[artifacts.c.product_id, artifacts.c.sha256],
            set_={"size": kept, "created_at": insert.excluded.created_at},
        )
    )


def complete(tx: Transaction, product_id: ProductId, sha256: str, size: int) -> int:
    """Notes that a product has an artifact, whose blob is in place. Hold `lock`.

    Returns:
        Its number.

    Raises:
        ConflictError: it took so long that the blob was removed meanwhile.
    """
    number = tx.connection.execute(
        sa.update(artifacts)
        .where(
            artifacts.c.product_id == product_id, artifacts.c.sha256 == sha256, artifacts.c.size != REMOVED
        )
        .values(size=size, created_at=tx.now_ms())
        .returning(artifacts.c.id)
    ).scalar()
    if number is None:
        raise ConflictError(f"artifact {sha256} was removed while it arrived; send it again")
    return int(number)


def list_unused(tx: Transaction, before: datetime, most: int) -> list[Unused]:
    """Artifacts that were uploaded before a time and that no bundle uses; not those of a removal under way."""
    rows = tx.connection.execute(
        sa.select(artifacts.c.sha256, artifacts.c.product_id)
        .where(_is_unused(before))
        .order_by(artifacts.c.sha256, artifacts.c.product_id)
        .limit(most)
    )
    found: dict[str, list[ProductId]] = {}
    for row in rows:
        found.setdefault(row.sha256, []).append(ProductId(row.product_id))
    return [Unused(sha256=sha256, product_ids=tuple(products)) for sha256, products in found.items()]


def condemn(tx: Transaction, unused: Unused, before: datetime) -> bool:
    """Takes an artifact away from those products where it is still unused. Hold `lock` and their `push_lock`.

    Returns:
        Whether nothing is left that needs the blob: delete it, then call `forget`.
    """
    gone = sa.and_(
        artifacts.c.sha256 == unused.sha256,
        artifacts.c.product_id.in_(unused.product_ids),
        _is_unused(before),
    )
    rows = tx.connection.execute(sa.select(artifacts.c.id).where(gone)).scalars().all()
    of_blob = sa.select(sa.func.count()).where(artifacts.c.sha256 == unused.sha256)
    if not rows:
        return False
    these = artifacts.c.id.in_(rows)
    if tx.connection.execute(of_blob).scalar_one() > len(rows):
        tx.connection.execute(sa.delete(artifacts).where(these))
        return False
    tx.connection.execute(sa.update(artifacts).where(these).values(size=REMOVED, created_at=tx.now_ms()))
    return True


def forget(tx: Transaction, sha256: str) -> None:
    """Forgets an artifact whose blob is deleted. Hold `lock`."""
    tx.connection.execute(
        sa.delete(artifacts).where(artifacts.c.sha256 == sha256, artifacts.c.size == REMOVED)
    )


def load_sizes(tx: Transaction, product_id: ProductId) -> dict[str, int]:
    """The sizes in bytes of what a product has, by SHA-256."""
    query = sa.select(artifacts.c.sha256, artifacts.c.size).where(
        artifacts.c.product_id == product_id, artifacts.c.size > 0
    )
    return {row.sha256: row.size for row in tx.connection.execute(query)}


def push_lock(product_id: ProductId) -> str:
    """The name under which a product's bundles are added, one at a time, and its unused artifacts removed."""
    return f"bundles/{product_id}"


def _is_unused(before: datetime) -> sa.ColumnElement[bool]:
    used = sa.exists().where(bundle_artifacts.c.artifact_id == artifacts.c.id)
    return sa.and_(artifacts.c.created_at < to_ms(before), ~used)
