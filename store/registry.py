"""The slow-moving facts, read whole: products, cohorts and CAs at one revision.

They fit in memory by far and change rarely, so every worker keeps a copy and asks, batch by batch, only for
the revision (one row). Every change of a product, a cohort or a CA bumps it in its own transaction.
"""

from typing import Any, Final

import sqlalchemy as sa
from cryptography import x509

from provisioning.authorities import AuthorityState
from provisioning.ids import AuthorityId, CohortId, KeyId, OrganizationId, ProductId
from provisioning.products import JitpSettings, Product
from provisioning.verification import Anchor, TrustAnchors
from provisioning.working import AuthorityFact, Registry
from store.database import Transaction
from store.schema import authorities, cohorts, products, revisions
from store.times import from_ms

_NAME: Final = "registry"


def load_revision(tx: Transaction) -> int:
    """How often products, cohorts or CAs have changed."""
    value = tx.connection.execute(sa.select(revisions.c.value).where(revisions.c.name == _NAME)).scalar()
    return 0 if value is None else int(value)


def bump_revision(tx: Transaction) -> None:
    """Says that products, cohorts or CAs have changed; workers read them again before their next batch."""
    insert = tx.insert(revisions).values(name=_NAME, value=1)
    tx.connection.execute(
        insert.on_conflict_do_update(index_elements=[revisions.c.name], set_={"value": revisions.c.value + 1})
    )


def load_registry(tx: Transaction) -> tuple[Registry, TrustAnchors]:
    """Everything, at one revision; the CAs both as facts and, the proven ones, as what chains may lead to."""
    revision = load_revision(tx)
    named: dict[ProductId, dict[str, CohortId]] = {}
    for row in tx.connection.execute(sa.select(cohorts.c.id, cohorts.c.product_id, cohorts.c.name)):
        named.setdefault(ProductId(row.product_id), {})[row.name] = CohortId(row.id)
    known = {ProductId(row.id): read_product(row) for row in tx.connection.execute(sa.select(products))}
    facts: dict[AuthorityId, AuthorityFact] = {}
    anchors: list[Anchor] = []
    proven = sa.select(authorities).where(authorities.c.proven_at.is_not(None)).order_by(authorities.c.id)
    for row in tx.connection.execute(proven):
        number, product_id, state = AuthorityId(row.id), ProductId(row.product_id), AuthorityState(row.state)
        facts[number] = AuthorityFact(id=number, product_id=product_id, name=row.name, state=state)
        anchors.append(
            Anchor(
                authority_id=number,
                product_id=product_id,
                certificate=x509.load_der_x509_certificate(row.certificate),
                key_id=KeyId(row.key_id),
                state=state,
                legacy=row.legacy,
            )
        )
    registry = Registry(revision=revision, products=known, cohorts=named, authorities=facts)
    return registry, TrustAnchors(anchors)


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
