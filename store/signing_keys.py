"""The public keys whose bundles a product accepts. The private ones never come near the gateway."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from provisioning.errors import NotFoundError
from provisioning.ids import KeyId, ProductId, SigningKeyId
from store.database import Transaction
from store.firmware_schema import signing_keys
from store.times import from_ms, to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A key that may sign a product's bundles, unless it is revoked."""

    id: SigningKeyId
    product_id: ProductId
    name: str
    key_id: KeyId
    spki: bytes
    created_at: datetime
    revoked_at: datetime | None = None


def create(tx: Transaction, key: SigningKey) -> None:
    """Adds a key.

    Raises:
        ConflictError: the product has that key, or one of that name.
    """
    tx.connection.execute(
        sa.insert(signing_keys).values(
            id=key.id,
            product_id=key.product_id,
            name=key.name,
            key_id=key.key_id,
            spki=key.spki,
            created_at=to_ms(key.created_at),
        )
    )


def list_all(tx: Transaction, product_id: ProductId) -> list[SigningKey]:
    """The product's keys, revoked ones too, by name."""
    query = (
        sa.select(signing_keys).where(signing_keys.c.product_id == product_id).order_by(signing_keys.c.name)
    )
    return [_read(row) for row in tx.connection.execute(query)]


def load(tx: Transaction, product_id: ProductId, name: str) -> SigningKey:
    """The product's key of that name.

    Raises:
        NotFoundError: it has none.
    """
    row = tx.connection.execute(
        sa.select(signing_keys).where(signing_keys.c.product_id == product_id, signing_keys.c.name == name)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no signing key {name!r}; `fleetgate key list PRODUCT` shows them")
    return _read(row)


def revoke(tx: Transaction, key_id: SigningKeyId, at: datetime) -> None:
    """Lets the key sign no further bundles; those that it signed stay. Repeating changes nothing."""
    tx.connection.execute(
        sa.update(signing_keys)
        .where(signing_keys.c.id == key_id, signing_keys.c.revoked_at.is_(None))
        .values(revoked_at=to_ms(at))
    )


def _read(row: sa.Row[Any]) -> SigningKey:
    return SigningKey(
        id=SigningKeyId(row.id),
        product_id=ProductId(row.product_id),
        name=row.name,
        key_id=KeyId(row.key_id),
        spki=row.spki,
        created_at=from_ms(row.created_at),
        revoked_at=from_ms(row.revoked_at),
    )
