"""Who may do what: API keys, their roles, and the organization that nobody sees beyond."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from provisioning.errors import AccessError
from provisioning.ids import OrganizationId

KEY_PREFIX: Final = "fgk_"
KEY_BYTES: Final = 32


class Role(StrEnum):
    """What a key may do: everything, the daily work, or look."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"


_RANK: Final = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who acts: `name` is the API key's and stands in the audit."""

    organization_id: OrganizationId
    name: str
    role: Role


def new_key(random_bytes: bytes) -> str:
    """The text of an API key, from 32 bytes of the operating system's randomness; shown once."""
    assert len(random_bytes) == KEY_BYTES
    return KEY_PREFIX + random_bytes.hex()


def hash_key(key: str) -> str:
    """What is kept of a key: SHA-256 in hex. 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_role(principal: Principal, least: Role) -> None:
    """Refuses who may not.

    Raises:
        AccessError: the role does not reach.
    """
    if _RANK[principal.role] < _RANK[least]:
        raise AccessError(f"API key {principal.name!r} is {principal.role}; this needs {least}")
