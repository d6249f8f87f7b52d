"""Who asks, for every route: an API key in the `Authorization` header, and the desk that the answer comes from."""

from typing import Annotated

from fastapi import Depends, Request

from gateway.operations.desk import Desk
from provisioning.access import Principal, Role, check_role, hash_key
from provisioning.errors import UnknownKeyError
from store import organizations


def desk_of(request: Request) -> Desk:
    """The application's desk."""
    desk: Desk = request.app.state.desk
    return desk


def authenticate(request: Request) -> Principal:
    """Whose key was sent.

    Raises:
        UnknownKeyError: none, or one that is unknown, expired or revoked.
    """
    desk = desk_of(request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise UnknownKeyError("send `Authorization: Bearer KEY`; `fleetgate init` made one")
    with desk.database.read() as tx:
        principal = organizations.find_principal(tx, hash_key(key.strip()), desk.clock())
    if principal is None:
        raise UnknownKeyError("this key is unknown, expired or revoked")
    return principal


Who = Annotated[Principal, Depends(authenticate)]


def authorize(principal: Who) -> Principal:
    """The principal, if it may change things.

    Raises:
        AccessError: it may only look.
    """
    check_role(principal, Role.OPERATOR)
    return principal


Operator = Annotated[Principal, Depends(authorize)]
AtDesk = Annotated[Desk, Depends(desk_of)]
