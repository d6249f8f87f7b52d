"""Commands on API keys. Only an admin's key makes, lists or revokes any."""

import secrets
from datetime import datetime, timedelta
from typing import Final

from gateway.operations.desk import Desk
from provisioning.access import KEY_BYTES, Principal, Role, check_role, hash_key, new_key
from provisioning.errors import ConflictError, InvalidError, NotFoundError
from provisioning.products import parse_name
from store import organizations
from store.organizations import ApiKey

LONGEST_LIFE: Final = timedelta(days=3660)


def create(
    desk: Desk, principal: Principal, *, name: str, role: Role, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Makes a key. Only its hash is kept, so that this is the one time that anybody sees it.

    Args:
        expires_at: aware; None: it lasts until it is revoked.

    Returns: the key's record, and the key.

    Raises:
        AccessError: the principal is no admin.
        InvalidError: the name is none, or the time is over or too far.
        ConflictError: the name is taken, be it by a revoked key: the audit names keys.
    """
    check_role(principal, Role.ADMIN)
    parse_name(name, "API key")
    now = desk.clock()
    if expires_at is not None and not now < expires_at <= now + LONGEST_LIFE:
        raise InvalidError(
            f"expires_at must lie within {LONGEST_LIFE.days} days from now, got {expires_at.isoformat()}",
            field="expires_at",
        )
    key = new_key(secrets.token_bytes(KEY_BYTES))
    number = desk.new_id()
    try:
        with desk.database.write() as tx:
            organizations.create_key(
                tx,
                id=number,
                organization_id=principal.organization_id,
                name=name,
                role=role,
                sha256=hash_key(key),
                at=now,
                expires_at=expires_at,
            )
            until = None if expires_at is None else expires_at.isoformat()
            after = {"name": name, "role": role, "expires_at": until}
            desk.note(tx, principal, "api_key.create", number, after=after)
    except ConflictError as error:
        raise ConflictError(
            f"there is, or was, an API key {name!r} already: names are not used twice, for the audit's sake"
        ) from error
    return _find(list_all(desk, principal), name), key


def list_all(desk: Desk, principal: Principal) -> list[ApiKey]:
    """The organization's keys, also those that ended.

    Raises:
        AccessError: the principal is no admin.
    """
    check_role(principal, Role.ADMIN)
    with desk.database.read() as tx:
        return organizations.list_keys(tx, principal.organization_id)


def revoke(desk: Desk, principal: Principal, name: str) -> ApiKey:
    """Revokes a key, at once and for good. Repeating changes nothing.

    Raises:
        AccessError: the principal is no admin.
        NotFoundError: there is no such key.
        ConflictError: it is the last admin key that works.
    """
    check_role(principal, Role.ADMIN)
    now = desk.clock()
    with desk.database.write([f"api-keys/{principal.organization_id}"]) as tx:
        known = organizations.list_keys(tx, principal.organization_id)
        key = _find(known, name)
        if key.revoked_at is None:
            others = [one for one in known if one.id != key.id and one.role is Role.ADMIN]
            if key.works_at(now) and key.role is Role.ADMIN and not any(one.works_at(now) for one in others):
                raise ConflictError(
                    f"{name!r} is the last admin key that works; make another first: "
                    "`fleetgate api-key create NAME --role admin`"
                )
            organizations.revoke_key(tx, key.id, now)
            desk.note(tx, principal, "api_key.revoke", key.id, before={"name": name, "role": key.role})
    return _find(list_all(desk, principal), name)


def _find(known: list[ApiKey], name: str) -> ApiKey:
    for key in known:
        if key.name == name:
            return key
    raise NotFoundError(f"there is no API key {name!r}; `fleetgate api-key list` shows those that there are")
