"""Bundles of products. They are immutable: added, and never changed or deleted."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from provisioning.bundles import Bundle, PushFacts, TrustedKey, parse_statement, read_envelope
from provisioning.errors import NotFoundError
from provisioning.ids import BundleId, KeyId, ProductId, SigningKeyId
from provisioning.products import Product
from store.artifacts import load_sizes
from store.database import Transaction
from store.firmware_schema import artifacts, bundle_artifacts, bundles, signing_keys
from store.revision import bump_revision
from store.schema import products
from store.times import to_ms


def load_push_facts(tx: Transaction, product: Product) -> PushFacts:
    """What a product has, for the decision about a new bundle. Hold `artifacts.push_lock` of the product."""
    keys = tx.connection.execute(
        sa.select(signing_keys, products.c.organization_id)
        .join(products, products.c.id == signing_keys.c.product_id)
        .where(products.c.organization_id == product.organization_id)
    ).all()
    own = {
        KeyId(row.key_id): TrustedKey(name=row.name, spki=row.spki, revoked=row.revoked_at is not None)
        for row in keys
        if row.product_id == product.id
    }
    rows = tx.connection.execute(
        sa.select(bundles.c.version, bundles.c.bundle_seq, bundles.c.digest).where(
            bundles.c.product_id == product.id
        )
    ).all()
    return PushFacts(
        product=product.name,
        keys=own,
        foreign_keys=frozenset(KeyId(row.key_id) for row in keys) - frozenset(own),
        last=max((row.bundle_seq for row in rows), default=0),
        versions={row.version: row.digest for row in rows},
        sequences={row.bundle_seq: row.digest for row in rows},
        stored=load_sizes(tx, product.id),
    )


def create(tx: Transaction, bundle: Bundle, key_id: KeyId, at: datetime) -> None:
    """Adds a bundle whose artifacts are all here.

    Raises:
        BrokenConstraintError: its version or `bundle_seq` is taken.
    """
    signer = tx.connection.execute(
        sa.select(signing_keys.c.id).where(
            signing_keys.c.product_id == bundle.product_id, signing_keys.c.key_id == key_id
        )
    ).scalar_one()
    tx.connection.execute(
        sa.insert(bundles).values(
            id=bundle.id,
            product_id=bundle.product_id,
            version=bundle.version,
            bundle_seq=bundle.bundle_seq,
            digest=bundle.digest,
            signing_key_id=SigningKeyId(signer),
            envelope=bundle.envelope,
            created_at=to_ms(at),
        )
    )
    here = {
        row.sha256: row.id
        for row in tx.connection.execute(
            sa.select(artifacts.c.id, artifacts.c.sha256).where(artifacts.c.product_id == bundle.product_id)
        )
    }
    tx.connection.execute(
        sa.insert(bundle_artifacts),
        [
            {
                "bundle_id": bundle.id,
                "position": position,
                "artifact_id": here[artifact.sha256],
                "name": artifact.name,
            }
            for position, artifact in enumerate(bundle.statement.artifacts)
        ],
    )
    bump_revision(tx)


def list_all(tx: Transaction, product_id: ProductId) -> list[Bundle]:
    """The product's bundles, the newest first."""
    query = sa.select(bundles).where(bundles.c.product_id == product_id).order_by(bundles.c.bundle_seq.desc())
    return [read_bundle(row) for row in tx.connection.execute(query)]


def load(tx: Transaction, product: Product, version: str) -> Bundle:
    """The product's bundle of that version.

    Raises:
        NotFoundError: it has none.
    """
    row = tx.connection.execute(
        sa.select(bundles).where(bundles.c.product_id == product.id, bundles.c.version == version)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"product {product.name!r} has no bundle {version!r}; `fleetgate bundle list {product.name}`"
            " shows those that there are"
        )
    return read_bundle(row)


def load_by_ids(tx: Transaction, numbers: Iterable[BundleId]) -> dict[BundleId, Bundle]:
    """Bundles by id."""
    query = sa.select(bundles).where(bundles.c.id.in_(sorted(set(numbers))))
    return {BundleId(row.id): read_bundle(row) for row in tx.connection.execute(query)}


def list_versions(tx: Transaction) -> dict[ProductId, dict[str, int]]:
    """Every bundle's version → `bundle_seq`, by product."""
    found: dict[ProductId, dict[str, int]] = {}
    query = sa.select(bundles.c.product_id, bundles.c.version, bundles.c.bundle_seq)
    for row in tx.connection.execute(query):
        found.setdefault(ProductId(row.product_id), {})[row.version] = row.bundle_seq
    return found


def read_bundle(row: sa.Row[Any]) -> Bundle:
    """A row of `bundles` as its type; the statement was verified before it was stored."""
    return Bundle(
        id=BundleId(row.id),
        product_id=ProductId(row.product_id),
        digest=row.digest,
        envelope=row.envelope,
        statement=parse_statement(read_envelope(row.envelope).payload),
    )
