"""Organizations and their API keys."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from provisioning.access import Principal, Role
from provisioning.ids import OrganizationId
from store.database import Transaction
from store.schema import api_keys, organizations
from store.times import from_ms, to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it is known here: all but the key."""

    id: int
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def works_at(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


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
    expires_at: datetime | None = None,
) -> None:
    """Adds an API key by its hash; the key itself is never kept. A name is never free again, not by revoking.

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
            expires_at=None if expires_at is None else to_ms(expires_at),
        )
    )


def list_keys(tx: Transaction, organization_id: OrganizationId) -> list[ApiKey]:
    """The organization's API keys, also those that ended, by name."""
    query = sa.select(api_keys).where(api_keys.c.organization_id == organization_id).order_by(api_keys.c.name)
    return [
        ApiKey(
            id=row.id,
            name=row.name,
            role=Role(row.role),
            created_at=from_ms(row.created_at),
            expires_at=from_ms(row.expires_at),
            revoked_at=from_ms(row.revoked_at),
        )
        for row in tx.connection.execute(query)
    ]


def revoke_key(tx: Transaction, id: int, at: datetime) -> None:
    """Revokes an API key; whoever asks with it from then on is unknown."""
    tx.connection.execute(sa.update(api_keys).where(api_keys.c.id == id).values(revoked_at=to_ms(at)))


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
