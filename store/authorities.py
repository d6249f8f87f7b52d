"""Registered CAs. A key, and a subject, belong to one product once proven; the schema's indexes hold that."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from provisioning.authorities import AuthorityFacts, AuthorityState
from provisioning.errors import NotFoundError
from provisioning.ids import AuthorityId, OrganizationId, ProductId
from store.database import Transaction
from store.revision import bump_revision
from store.schema import authorities, products
from store.times import from_ms, to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A registered CA, as operators see it. `code` is proven with, and worthless afterwards."""

    id: AuthorityId
    product_id: ProductId
    product: str
    name: str
    state: AuthorityState
    key_id: str
    fingerprint: str
    subject: str
    certificate: bytes
    legacy: bool
    code: str
    code_expires_at: datetime
    proven_at: datetime | None
    not_before: datetime
    not_after: datetime


def create(
    tx: Transaction,
    *,
    id: AuthorityId,
    product_id: ProductId,
    name: str,
    facts: AuthorityFacts,
    code: str,
    code_expires_at: datetime,
    at: datetime,
) -> None:
    """Adds a pending CA.

    Raises:
        ConflictError: the product has a CA of that name, or this very certificate.
    """
    tx.connection.execute(
        sa.insert(authorities).values(
            id=id,
            product_id=product_id,
            name=name,
            state=AuthorityState.PENDING.value,
            key_id=facts.key_id,
            fingerprint=facts.fingerprint,
            subject=facts.subject,
            subject_sha256=facts.subject_der_sha256,
            certificate=facts.der,
            legacy=facts.legacy,
            code=code,
            code_expires_at=to_ms(code_expires_at),
            not_before=to_ms(facts.not_before),
            not_after=to_ms(facts.not_after),
            created_at=to_ms(at),
        )
    )
    bump_revision(tx)


def renew_code(
    tx: Transaction, product_id: ProductId, fingerprint: str, *, code: str, code_expires_at: datetime
) -> AuthorityId | None:
    """Gives a CA that was never proven a new code; None where the product has no such CA."""
    number = tx.connection.execute(
        sa.update(authorities)
        .where(
            authorities.c.product_id == product_id,
            authorities.c.fingerprint == fingerprint,
            authorities.c.proven_at.is_(None),
        )
        .values(code=code, code_expires_at=to_ms(code_expires_at))
        .returning(authorities.c.id)
    ).scalar()
    return None if number is None else AuthorityId(number)


def list_all(tx: Transaction, organization_id: OrganizationId, product: str | None = None) -> list[Authority]:
    """The organization's CAs, by product and name."""
    query = _query().where(products.c.organization_id == organization_id)
    if product is not None:
        query = query.where(products.c.name == product)
    return [_read(row) for row in tx.connection.execute(query.order_by(products.c.name, authorities.c.name))]


def list_trusted(tx: Transaction) -> list[bytes]:
    """The certificates, DER, of all CAs that the broker is to trust: active and retiring."""
    states = [AuthorityState.ACTIVE.value, AuthorityState.RETIRING.value]
    query = sa.select(authorities.c.certificate).where(authorities.c.state.in_(states))
    return list(tx.connection.execute(query.order_by(authorities.c.id)).scalars())


def list_of_others(tx: Transaction, product_id: ProductId) -> list[tuple[str, bytes]]:
    """(product name, DER) of every CA of other products, of all organizations, that is not revoked."""
    query = (
        sa.select(products.c.name, authorities.c.certificate)
        .join(products, products.c.id == authorities.c.product_id)
        .where(
            authorities.c.product_id != product_id,
            authorities.c.proven_at.is_not(None),
            authorities.c.state != AuthorityState.REVOKED.value,
        )
    )
    return [(row.name, row.certificate) for row in tx.connection.execute(query)]


def load(tx: Transaction, organization_id: OrganizationId, id: AuthorityId) -> Authority:
    """The CA of that number.

    Raises:
        NotFoundError: the organization has none.
    """
    row = tx.connection.execute(
        _query().where(products.c.organization_id == organization_id, authorities.c.id == id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no CA {id}; `fleetgate ca list` shows those that there are")
    return _read(row)


def prove(tx: Transaction, id: AuthorityId, at: datetime) -> None:
    """Notes that possession was proven.

    Raises:
        ConflictError: the key or the subject is another product's.
    """
    tx.connection.execute(
        sa.update(authorities)
        .where(authorities.c.id == id, authorities.c.proven_at.is_(None))
        .values(proven_at=to_ms(at))
    )
    bump_revision(tx)


def set_state(tx: Transaction, id: AuthorityId, state: AuthorityState) -> None:
    """Moves a CA; `authorities.decide_transition` has allowed it."""
    tx.connection.execute(sa.update(authorities).where(authorities.c.id == id).values(state=state.value))
    bump_revision(tx)


def _query() -> sa.Select[Any]:
    return sa.select(authorities, products.c.name.label("product")).join(
        products, products.c.id == authorities.c.product_id
    )


def _read(row: sa.Row[Any]) -> Authority:
    return Authority(
        id=AuthorityId(row.id),
        product_id=ProductId(row.product_id),
        product=row.product,
        name=row.name,
        state=AuthorityState(row.state),
        key_id=row.key_id,
        fingerprint=row.fingerprint,
        subject=row.subject,
        certificate=row.certificate,
        legacy=row.legacy,
        code=row.code,
        code_expires_at=from_ms(row.code_expires_at),
        proven_at=from_ms(row.proven_at),
        not_before=from_ms(row.not_before),
        not_after=from_ms(row.not_after),
    )
