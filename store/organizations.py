"""Organizations and their API keys."""

from datetime import datetime

import sqlalchemy as sa

from provisioning.access import Principal, Role
from provisioning.ids import OrganizationId
from store.database import Transaction
from store.schema import api_keys, organizations
from store.times import to_ms


def create(tx: Transaction, *, id: OrganizationId, name: str, at: datetime) -> None:
    """Adds an organization.

    Raises:
        ConflictError: the name is taken.
    """
    tx.connection.execute(sa.insert(organizations).values(id=id, name=name, created_at=to_ms(at)))


def create_key(
    tx: Transaction,
    *,
    id: int,
    organization_id: OrganizationId,
    name: str,
    role: Role,
    sha256: str,
    at: datetime,
) -> None:
    """Adds an API key by its hash; the key itself is never kept.

    Raises:
        ConflictError: the organization has a key of that name.
    """
    tx.connection.execute(
        sa.insert(api_keys).values(
            id=id,
            organization_id=organization_id,
            name=name,
            role=role.value,
            secret_sha256=sha256,
            created_at=to_ms(at),
        )
    )


def find_principal(tx: Transaction, sha256: str, now: datetime) -> Principal | None:
    """Whose key that is; None where it is unknown, expired or revoked."""
    row = tx.connection.execute(
        sa.select(api_keys).where(
            api_keys.c.secret_sha256 == sha256,
            api_keys.c.revoked_at.is_(None),
            sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > to_ms(now)),
        )
    ).one_or_none()
    if row is None:
        return None
    return Principal(organization_id=OrganizationId(row.organization_id), name=row.name, role=Role(row.role))
