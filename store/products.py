"""Products and their cohorts: the pattern of a repository.

Functions take a transaction and speak in `provisioning`'s types; every query is scoped to an organization,
so another's product is not found rather than forbidden.
"""

from typing import Any

import sqlalchemy as sa

from provisioning.errors import NotFoundError
from provisioning.ids import CohortId, OrganizationId, ProductId
from provisioning.products import Cohort, JitpSettings, Product
from store.database import Transaction
from store.revision import bump_revision
from store.schema import cohorts, products
from store.times import from_ms, to_ms


def create(tx: Transaction, product: Product) -> None:
    """Adds a product.

    Raises:
        ConflictError: its organization has one of that name.
    """
    tx.connection.execute(
        sa.insert(products).values(
            id=product.id,
            organization_id=product.organization_id,
            name=product.name,
            description=product.description,
            tags=list(product.tags),
            notes=product.notes,
            created_at=to_ms(product.created_at),
            **_jitp_columns(product.jitp),
        )
    )
    bump_revision(tx)


def list_all(tx: Transaction, organization_id: OrganizationId) -> list[Product]:
    """The organization's products, by name."""
    query = sa.select(products).where(products.c.organization_id == organization_id).order_by(products.c.name)
    return [read_product(row) for row in tx.connection.execute(query)]


def load(tx: Transaction, organization_id: OrganizationId, name: str) -> Product:
    """The product of that name.

    Raises:
        NotFoundError: the organization has none.
    """
    row = tx.connection.execute(
        sa.select(products).where(products.c.organization_id == organization_id, products.c.name == name)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no product {name!r}; `fleetgate product list` shows those that there are"
        )
    return read_product(row)


def set_jitp(tx: Transaction, product_id: ProductId, settings: JitpSettings) -> None:
    """Replaces the JITP settings.

    Raises:
        ConflictError: the quota is below what has enrolled already.
    """
    tx.connection.execute(
        sa.update(products).where(products.c.id == product_id).values(**_jitp_columns(settings))
    )
    bump_revision(tx)


def create_cohort(tx: Transaction, cohort: Cohort) -> None:
    """Adds a cohort.

    Raises:
        ConflictError: its product has one of that name.
    """
    tx.connection.execute(
        sa.insert(cohorts).values(
            id=cohort.id,
            product_id=cohort.product_id,
            name=cohort.name,
            description=cohort.description,
            created_at=to_ms(cohort.created_at),
        )
    )
    bump_revision(tx)


def list_cohorts(tx: Transaction, product_id: ProductId) -> list[Cohort]:
    """The product's cohorts, by name."""
    query = sa.select(cohorts).where(cohorts.c.product_id == product_id).order_by(cohorts.c.name)
    return [
        Cohort(
            id=CohortId(row.id),
            product_id=ProductId(row.product_id),
            name=row.name,
            description=row.description,
            created_at=from_ms(row.created_at),
        )
        for row in tx.connection.execute(query)
    ]


def _jitp_columns(settings: JitpSettings) -> dict[str, Any]:
    return {"jitp": settings.model_dump(mode="json"), "enrollment_quota": settings.quota}


def read_product(row: sa.Row[Any]) -> Product:
    """A row of `products` as its type."""
    return Product(
        id=ProductId(row.id),
        organization_id=OrganizationId(row.organization_id),
        name=row.name,
        description=row.description,
        created_at=from_ms(row.created_at),
        tags=tuple(row.tags),
        notes=row.notes,
        jitp=JitpSettings.model_validate(row.jitp),
        enrolled=row.enrolled,
        support_until=from_ms(row.support_until),
        archived_at=from_ms(row.archived_at),
    )
