"""Signing keys, artifacts and bundles of a product."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from gateway.http import problems
from gateway.http.auth import AtDesk, Operator, Who
from gateway.http.firmware_views import (
    BundleOut,
    NewBundle,
    NewSigningKey,
    PushCheckOut,
    SigningKeyOut,
    refusal,
)
from gateway.http.idempotency import Posted
from gateway.operations import bundles
from gateway.operations.bundles import RefusedBundleError
from provisioning.errors import InvalidError

router = APIRouter(prefix="/api/v1/products/{product}", tags=["firmware"])
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 in hex")]


@router.post("/keys", status_code=201)
def add_key(order: Posted, product: str, body: NewSigningKey) -> SigningKeyOut:
    """Lets a public key sign the product's bundles."""
    return order.answer(
        lambda desk: SigningKeyOut.of(
            bundles.add_key(desk, order.principal, product=product, name=body.name, pem=body.key)
        )
    )


@router.get("/keys")
def list_keys(desk: AtDesk, principal: Who, product: str) -> list[SigningKeyOut]:
    """The product's signing keys."""
    return [SigningKeyOut.of(key) for key in bundles.list_keys(desk, principal, product)]


@router.post("/keys/{name}/revoke")
def revoke_key(order: Posted, product: str, name: str) -> SigningKeyOut:
    """Lets a key sign no further bundles."""
    return order.answer(
        lambda desk: SigningKeyOut.of(bundles.revoke_key(desk, order.principal, product=product, name=name))
    )


@router.put("/artifacts/{sha256}", status_code=204)
async def push_artifact(
    desk: AtDesk, principal: Operator, product: str, sha256: Digest, request: Request
) -> Response:
    """Streams an artifact in; it is taken only if its bytes have that digest. Repeating it is harmless."""
    most = request.app.state.most_artifact_bytes
    product_id, upload = await run_in_threadpool(bundles.begin_upload, desk, principal, product)
    with upload:
        async for chunk in request.stream():
            await run_in_threadpool(upload.write, chunk)
            if upload.size > most:
                raise InvalidError(f"an artifact has at most {most} bytes (blobs.most_bytes)", field="body")
        await run_in_threadpool(bundles.finish_upload, desk, principal, product_id, upload, sha256)
    return Response(status_code=204)


@router.post("/bundles/check")
def check_bundle(desk: AtDesk, principal: Who, product: str, body: NewBundle) -> PushCheckOut:
    """What would come of pushing a bundle, and which artifacts are missing; changes nothing."""
    return PushCheckOut.of(bundles.check(desk, principal, product, body.envelope.encode()))


@router.post(
    "/bundles",
    status_code=201,
    response_model=BundleOut,
    responses={409: {"description": "Refused; `reason` and `rules` say why"}},
)
def push_bundle(order: Posted, product: str, body: NewBundle) -> BundleOut | JSONResponse:
    """Takes a bundle in, once its artifacts are here. The very same one again changes nothing."""
    try:
        return order.answer(
            lambda desk: BundleOut.of_pushed(
                bundles.push(desk, order.principal, product, body.envelope.encode())
            )
        )
    except RefusedBundleError as error:
        title = "The bundle is not taken in"
        return problems.problem(409, "bundle_refused", title, str(error), **refusal(error.decision))


@router.get("/bundles")
def list_bundles(desk: AtDesk, principal: Who, product: str) -> list[BundleOut]:
    """The product's bundles, the newest first."""
    return [BundleOut.of(bundle) for bundle in bundles.list_all(desk, principal, product)]


@router.get("/bundles/{version}")
def show_bundle(desk: AtDesk, principal: Who, product: str, version: str) -> BundleOut:
    """One bundle."""
    return BundleOut.of(bundles.load(desk, principal, product, version))
