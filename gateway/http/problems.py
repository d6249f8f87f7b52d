"""Errors as problem documents (RFC 9457): one type per class of error, the detail a person can act on."""

from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from gateway.mqtt.listening import BrokerAwayError
from provisioning.errors import (
    AccessError,
    ConflictError,
    FleetgateError,
    InvalidError,
    NotFoundError,
    TooManyError,
    TransitionError,
    UnknownKeyError,
)
from store.database import StoreUnavailableError

log: Final = structlog.get_logger()
MEDIA_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = 5
"""When to ask again while the database is away."""


class Problem(BaseModel):
    """A problem document (RFC 9457); `type` is stable, `detail` a sentence for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


DESCRIBED: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""What routes answer besides their own, for the description of the API."""


class PreconditionError(FleetgateError):
    """An edit of an object in another state than the one that the caller has seen (`If-Match`)."""


class ReusedKeyError(FleetgateError):
    """An `Idempotency-Key` that another request has used."""


_KINDS: Final[tuple[tuple[type[FleetgateError], int, str, str], ...]] = (
    (UnknownKeyError, 401, "unknown_key", "No valid API key"),
    (AccessError, 403, "access", "Not allowed"),
    (InvalidError, 422, "invalid", "The input breaks a rule"),
    (PreconditionError, 412, "precondition_failed", "The object has changed"),
    (ReusedKeyError, 422, "idempotency_key_reused", "Another request had this Idempotency-Key"),
    (NotFoundError, 404, "not_found", "There is no such object"),
    (ConflictError, 409, "conflict", "It collides with what is there"),
    (TransitionError, 409, "transition", "The object's life has no such step"),
    (TooManyError, 429, "busy", "Too much of it at once"),
    (BrokerAwayError, 503, "broker_away", "The broker is not available"),
    (StoreUnavailableError, 503, "database_away", "The database is not available"),
)


def describe(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document, with problem documents and the API key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


def problem(status: int, kind: str, title: str, detail: str, **more: object) -> JSONResponse:
    """A problem document; `kind` is stable and documented in docs/api.md."""
    body = {
        "type": f"urn:fleetgate:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        **more,
    }
    later = {"Retry-After": str(RETRY_SECONDS)}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: later, 503: later}.get(status)
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""

    @app.exception_handler(FleetgateError)
    def _ours(_: Request, error: FleetgateError) -> JSONResponse:
        for kind, status, word, title in _KINDS:
            if isinstance(error, kind):
                field = getattr(error, "field", None)
                return problem(status, word, title, str(error), **({"field": field} if field else {}))
        return problem(500, "internal", "Something failed here", "see the gateway's log")

    @app.exception_handler(RequestValidationError)
    def _shape(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return problem(422, "invalid", "The input breaks a rule", f"{place}: {first['msg']}", field=place)

    @app.exception_handler(HTTPException)
    def _plain(_: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
        answer = problem(error.status_code, kind, str(error.detail), str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    def _unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", cause=str(error), exc_info=error)
        return problem(500, "internal", "Something failed here", "see the gateway's log")
