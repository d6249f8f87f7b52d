"""Commands on products and their cohorts."""

from collections.abc import Sequence

from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.errors import ConflictError, NotFoundError
from provisioning.ids import CohortId, ProductId
from provisioning.products import Cohort, JitpSettings, Product, check_cohorts, parse_name
from store import products


def create(
    desk: Desk, principal: Principal, *, name: str, description: str, tags: Sequence[str] = ()
) -> Product:
    """Makes a product.

    Raises:
        InvalidError: the name is none.
        ConflictError: it is taken.
    """
    product = Product(
        id=ProductId(desk.new_id()),
        organization_id=principal.organization_id,
        name=parse_name(name, "product"),
        description=description,
        tags=tuple(tags),
        created_at=desk.clock(),
    )
    try:
        with desk.database.write() as tx:
            products.create(tx, product)
            desk.note(tx, principal, "product.create", product.id, after={"name": name})
    except ConflictError as error:
        raise ConflictError(f"there is a product {name!r} already") from error
    return product


def list_all(desk: Desk, principal: Principal) -> list[Product]:
    """The organization's products."""
    with desk.database.read() as tx:
        return products.list_all(tx, principal.organization_id)


def load(desk: Desk, principal: Principal, name: str) -> Product:
    """One product."""
    with desk.database.read() as tx:
        return products.load(tx, principal.organization_id, name)


def set_jitp(desk: Desk, principal: Principal, name: str, settings: JitpSettings) -> Product:
    """Replaces a product's JITP settings.

    Raises:
        InvalidError: they name a cohort that is not there.
        ConflictError: the quota is below what has enrolled already.
    """
    try:
        with desk.database.write([f"product/{principal.organization_id}/{name}"]) as tx:
            product = products.load(tx, principal.organization_id, name)
            desk.expect(product)
            cohorts = products.list_cohorts(tx, product.id)
            check_cohorts(settings, frozenset(cohort.name for cohort in cohorts))
            products.set_jitp(tx, product.id, settings)
            desk.note(
                tx,
                principal,
                "product.jitp",
                product.id,
                before=product.jitp.model_dump(mode="json"),
                after=settings.model_dump(mode="json"),
            )
    except ConflictError as error:
        raise ConflictError(f"the quota must not be below the {product.enrolled} already enrolled") from error
    return load(desk, principal, name)


def create_cohort(desk: Desk, principal: Principal, *, product: str, name: str, description: str) -> Cohort:
    """Makes a cohort of a product.

    Raises:
        InvalidError: the name is none.
        ConflictError: it is taken.
    """
    parse_name(name, "cohort")
    try:
        with desk.database.write() as tx:
            owner = products.load(tx, principal.organization_id, product)
            cohort = Cohort(
                id=CohortId(desk.new_id()),
                product_id=owner.id,
                name=name,
                description=description,
                created_at=desk.clock(),
            )
            products.create_cohort(tx, cohort)
            desk.note(tx, principal, "cohort.create", cohort.id, after={"product": product, "name": name})
    except ConflictError as error:
        raise ConflictError(f"product {product!r} has a cohort {name!r} already") from error
    return cohort


def list_cohorts(desk: Desk, principal: Principal, product: str) -> list[Cohort]:
    """A product's cohorts."""
    with desk.database.read() as tx:
        return products.list_cohorts(tx, products.load(tx, principal.organization_id, product).id)


def load_cohort(desk: Desk, principal: Principal, product: str, name: str) -> Cohort:
    """One cohort.

    Raises:
        NotFoundError: there is no such product, or it has no such cohort.
    """
    for cohort in list_cohorts(desk, principal, product):
        if cohort.name == name:
            return cohort
    raise NotFoundError(
        f"product {product!r} has no cohort {name!r}; `fleetgate cohort list {product}` shows them"
    )
