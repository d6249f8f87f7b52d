"""The application: `/api/v1` behind an API key; health and metrics without one, for the loopback listener."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Response
from fastapi.responses import JSONResponse

from gateway.http import problems, views
from gateway.http.auth import Operator, Who
from gateway.http.routes import bundles, rollouts
from gateway.operations import authorities, devices, products
from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.authorities import AuthorityState
from provisioning.ids import AuthorityId, DeviceId
from provisioning.products import parse_jitp


def create_app(
    desk: Desk,
    *,
    is_ready: Callable[[], dict[str, bool]] = dict,
    render_metrics: Callable[[], bytes] = bytes,
    most_artifact_bytes: int = 1 << 30,
) -> FastAPI:
    """The API over one desk.

    Args:
        is_ready: each part by name, and whether it works.
        render_metrics: in Prometheus' text format.
        most_artifact_bytes: of the largest artifact that may be pushed.
    """
    app = FastAPI(title="Fleetgate", version="1", docs_url="/api/docs", openapi_url="/api/openapi.json")
    problems.install(app)

    app.state.desk = desk
    app.state.most_artifact_bytes = most_artifact_bytes
    router = APIRouter(prefix="/api/v1")

    @router.post("/products", status_code=201)
    def create_product(principal: Operator, body: views.NewProduct) -> views.ProductOut:
        made = products.create(desk, principal, name=body.name, description=body.description, tags=body.tags)
        return views.ProductOut.of(made)

    @router.get("/products")
    def list_products(principal: Who) -> list[views.ProductOut]:
        return [views.ProductOut.of(product) for product in products.list_all(desk, principal)]

    @router.get("/products/{product}")
    def show_product(principal: Who, product: str) -> views.ProductOut:
        return views.ProductOut.of(products.load(desk, principal, product))

    @router.put("/products/{product}/jitp")
    def set_jitp(principal: Operator, product: str, body: dict[str, Any]) -> views.ProductOut:
        return views.ProductOut.of(products.set_jitp(desk, principal, product, parse_jitp(body)))

    @router.post("/products/{product}/cohorts", status_code=201)
    def create_cohort(principal: Operator, product: str, body: views.NewCohort) -> views.CohortOut:
        made = products.create_cohort(
            desk, principal, product=product, name=body.name, description=body.description
        )
        return views.CohortOut.of(made)

    @router.get("/products/{product}/cohorts")
    def list_cohorts(principal: Who, product: str) -> list[views.CohortOut]:
        return [views.CohortOut.of(cohort) for cohort in products.list_cohorts(desk, principal, product)]

    @router.get("/authorities")
    def list_authorities(principal: Who, product: str | None = None) -> list[views.AuthorityOut]:
        return [views.AuthorityOut.of(one) for one in authorities.list_all(desk, principal, product)]

    @router.post("/products/{product}/authorities", status_code=201)
    def register_authority(principal: Operator, product: str, body: views.NewAuthority) -> views.AuthorityOut:
        made = authorities.register(
            desk, principal, product=product, name=body.name, pem=body.certificate.encode()
        )
        return views.AuthorityOut.of(made)

    @router.post("/authorities/{authority}/prove")
    def prove_authority(
        principal: Operator, authority: views.Number, body: views.Proof
    ) -> views.AuthorityOut:
        proof = body.certificate.encode()
        return views.AuthorityOut.of(authorities.prove(desk, principal, AuthorityId(authority), proof))

    @router.post("/authorities/{authority}/activate")
    def activate_authority(principal: Operator, authority: views.Number) -> views.AuthorityOut:
        return move(principal, authority, AuthorityState.ACTIVE)

    @router.post("/authorities/{authority}/retire")
    def retire_authority(principal: Operator, authority: views.Number) -> views.AuthorityOut:
        return move(principal, authority, AuthorityState.RETIRING)

    @router.post("/authorities/{authority}/revoke")
    def revoke_authority(principal: Operator, authority: views.Number) -> views.AuthorityOut:
        return move(principal, authority, AuthorityState.REVOKED)

    def move(principal: Principal, authority: int, to: AuthorityState) -> views.AuthorityOut:
        return views.AuthorityOut.of(authorities.move(desk, principal, AuthorityId(authority), to))

    @router.post("/products/{product}/devices", status_code=201)
    def create_device(principal: Operator, product: str, body: views.NewDevice) -> views.DeviceOut:
        made = devices.create(
            desk,
            principal,
            product=product,
            identifier=body.identifier,
            cohort=body.cohort,
            tags=body.tags,
        )
        return views.DeviceOut.of(made)

    @router.get("/devices")
    def list_devices(
        principal: Who,
        product: str | None = None,
        cohort: str | None = None,
        state: str | None = None,
        cursor: views.Number | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> views.DevicePage:
        found = devices.list_all(
            desk,
            principal,
            product=product,
            cohort=cohort,
            state=state,
            after=None if cursor is None else DeviceId(cursor),
            limit=limit,
        )
        following = str(found[-1].device.id) if len(found) == limit else None
        return views.DevicePage(items=[views.DeviceOut.of(view) for view in found], next_cursor=following)

    @router.get("/devices/{device}")
    def show_device(principal: Who, device: str) -> views.DeviceOut:
        return views.DeviceOut.of(devices.find(desk, principal, device))

    @router.post("/devices/{device}/block")
    def block_device(principal: Operator, device: str) -> views.DeviceOut:
        return views.DeviceOut.of(devices.set_blocked(desk, principal, device, blocked=True))

    @router.post("/devices/{device}/unblock")
    def unblock_device(principal: Operator, device: str) -> views.DeviceOut:
        return views.DeviceOut.of(devices.set_blocked(desk, principal, device, blocked=False))

    @router.get("/inbox")
    def list_inbox(
        principal: Who,
        product: str | None = None,
        reason: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[views.InboxOut]:
        found = devices.list_inbox(desk, principal, product=product, reason=reason, limit=limit)
        return [views.InboxOut.of(item) for item in found]

    @router.get("/stats")
    def show_figures(principal: Who, product: str | None = None) -> dict[str, Any]:
        return devices.load_figures(desk, principal, product)

    @router.post("/certificates/check")
    def check_certificate(principal: Who, body: views.CertificateToCheck) -> views.CheckOut:
        rules = devices.check_certificate(desk, principal, body.chain.encode(), product=body.product)
        return views.CheckOut.of(rules)

    app.include_router(router)
    app.include_router(bundles.router)
    app.include_router(rollouts.router)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> JSONResponse:
        parts = is_ready()
        return JSONResponse(parts, status_code=200 if all(parts.values()) else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app
