"""The slow-moving facts, read whole: products, cohorts, CAs and what is rolled out, at one revision.

They fit in memory by far and change rarely, so every worker keeps a copy and asks, batch by batch, only for
the revision (one row). Every change of any of them bumps it in its own transaction.
"""

import sqlalchemy as sa
from cryptography import x509

from provisioning.authorities import AuthorityState
from provisioning.ids import AuthorityId, CohortId, KeyId, ProductId
from provisioning.verification import Anchor, TrustAnchors
from provisioning.working import AuthorityFact, Registry
from store import bundles, rollouts
from store.database import Transaction
from store.products import read_product
from store.revision import load_revision
from store.schema import authorities, cohorts, products


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
    registry = Registry(
        revision=revision,
        products=known,
        cohorts=named,
        authorities=facts,
        rollouts=rollouts.load_for_registry(tx),
        overrides=rollouts.load_overrides_for_registry(tx),
        versions=bundles.list_versions(tx),
    )
    return registry, TrustAnchors(anchors)
