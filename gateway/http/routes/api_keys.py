"""API keys; for admins."""

from fastapi import APIRouter

from gateway.http import views
from gateway.http.auth import AtDesk, Who
from gateway.http.idempotency import Posted
from gateway.operations import api_keys
from gateway.operations.desk import Desk

router = APIRouter(prefix="/api/v1/api-keys", tags=["API keys"])


@router.post("", status_code=201)
def create_api_key(order: Posted, body: views.NewApiKey) -> views.MadeApiKeyOut:
    """Makes a key, and shows it this once."""

    def make(desk: Desk) -> views.MadeApiKeyOut:
        made, key = api_keys.create(
            desk, order.principal, name=body.name, role=body.role, expires_at=body.expires_at
        )
        return views.MadeApiKeyOut(**views.ApiKeyOut.of(made).model_dump(), key=key)

    def keep(made: views.MadeApiKeyOut) -> views.MadeApiKeyOut:
        return made.model_copy(update={"key": None})  # only its hash is ever at rest

    return order.answer(make, keep=keep)


@router.get("")
def list_api_keys(desk: AtDesk, principal: Who) -> list[views.ApiKeyOut]:
    """The organization's keys, also those that ended."""
    return [views.ApiKeyOut.of(key) for key in api_keys.list_all(desk, principal)]


@router.post("/{name}/revoke")
def revoke_api_key(order: Posted, name: str) -> views.ApiKeyOut:
    """Revokes a key, at once and for good."""
    return order.answer(lambda desk: views.ApiKeyOut.of(api_keys.revoke(desk, order.principal, name)))
