"""Products, how they take in devices, and their cohorts."""

from typing import Any

from fastapi import APIRouter, Response

from gateway.http import views
from gateway.http.auth import AtDesk, Operator, Who
from gateway.http.etags import make_etag
from gateway.http.idempotency import AtDeskForEdit, Posted
from gateway.http.text import has_nul
from gateway.operations import products
from provisioning.errors import InvalidError
from provisioning.products import parse_jitp

router = APIRouter(prefix="/api/v1/products", tags=["products"])


@router.post("", status_code=201)
def create_product(order: Posted, body: views.NewProduct) -> views.ProductOut:
    """Makes a product."""
    return order.answer(
        lambda desk: views.ProductOut.of(
            products.create(
                desk, order.principal, name=body.name, description=body.description, tags=body.tags
            )
        )
    )


@router.get("")
def list_products(desk: AtDesk, principal: Who) -> list[views.ProductOut]:
    """The organization's products, by name."""
    return [views.ProductOut.of(product) for product in products.list_all(desk, principal)]


@router.get("/{product}")
def show_product(desk: AtDesk, principal: Who, product: str, response: Response) -> views.ProductOut:
    """One product, with its ETag."""
    shown = views.ProductOut.of(products.load(desk, principal, product))
    response.headers["ETag"] = make_etag(shown)
    return shown


@router.put("/{product}/jitp")
def set_jitp(
    desk: AtDeskForEdit, principal: Operator, product: str, body: dict[str, Any]
) -> views.ProductOut:
    """Replaces the settings by which the product takes in devices."""
    if has_nul(body):
        raise InvalidError("no text may have the character U+0000", field="body")
    return views.ProductOut.of(products.set_jitp(desk, principal, product, parse_jitp(body)))


@router.post("/{product}/cohorts", status_code=201)
def create_cohort(order: Posted, product: str, body: views.NewCohort) -> views.CohortOut:
    """Makes a cohort."""
    return order.answer(
        lambda desk: views.CohortOut.of(
            products.create_cohort(
                desk, order.principal, product=product, name=body.name, description=body.description
            )
        )
    )


@router.get("/{product}/cohorts")
def list_cohorts(desk: AtDesk, principal: Who, product: str) -> list[views.CohortOut]:
    """The product's cohorts, by name."""
    return [views.CohortOut.of(cohort) for cohort in products.list_cohorts(desk, principal, product)]


@router.get("/{product}/cohorts/{cohort}")
def show_cohort(
    desk: AtDesk, principal: Who, product: str, cohort: str, response: Response
) -> views.CohortOut:
    """One cohort, with its ETag."""
    shown = views.CohortOut.of(products.load_cohort(desk, principal, product, cohort))
    response.headers["ETag"] = make_etag(shown)
    return shown
