"""CAs: registered, proven, active, retiring, revoked; and what would happen to a certificate."""

from fastapi import APIRouter, Response

from gateway.http import views
from gateway.http.auth import AtDesk, Who
from gateway.http.etags import make_etag
from gateway.http.idempotency import Edited, Order, Posted
from gateway.operations import authorities, devices
from provisioning.authorities import AuthorityState
from provisioning.ids import AuthorityId

router = APIRouter(prefix="/api/v1", tags=["authorities"])


@router.get("/authorities")
def list_authorities(desk: AtDesk, principal: Who, product: str | None = None) -> list[views.AuthorityOut]:
    """The organization's CAs, or one product's."""
    return [views.AuthorityOut.of(one) for one in authorities.list_all(desk, principal, product)]


@router.get("/authorities/{authority}")
def show_authority(
    desk: AtDesk, principal: Who, authority: views.Number, response: Response
) -> views.AuthorityOut:
    """One CA, with its ETag."""
    shown = views.AuthorityOut.of(authorities.load(desk, principal, AuthorityId(authority)))
    response.headers["ETag"] = make_etag(shown)
    return shown


@router.post("/products/{product}/authorities", status_code=201)
def register_authority(order: Posted, product: str, body: views.NewAuthority) -> views.AuthorityOut:
    """Registers a CA, pending; the answer has the code to prove it with."""
    return order.answer(
        lambda desk: views.AuthorityOut.of(
            authorities.register(
                desk, order.principal, product=product, name=body.name, pem=body.certificate.encode()
            )
        )
    )


@router.post("/authorities/{authority}/prove")
def prove_authority(order: Edited, authority: views.Number, body: views.Proof) -> views.AuthorityOut:
    """Takes the proof that whoever registered the CA can use its key."""
    proof = body.certificate.encode()
    return order.answer(
        lambda desk: views.AuthorityOut.of(
            authorities.prove(desk, order.principal, AuthorityId(authority), proof)
        )
    )


@router.post("/authorities/{authority}/activate")
def activate_authority(order: Edited, authority: views.Number) -> views.AuthorityOut:
    """Lets the broker trust a proven CA, and its devices enroll."""
    return _move(order, authority, AuthorityState.ACTIVE)


@router.post("/authorities/{authority}/retire")
def retire_authority(order: Edited, authority: views.Number) -> views.AuthorityOut:
    """Lets known devices work on, and enrolls no new ones."""
    return _move(order, authority, AuthorityState.RETIRING)


@router.post("/authorities/{authority}/revoke")
def revoke_authority(order: Edited, authority: views.Number) -> views.AuthorityOut:
    """Refuses every device of the CA from now on, for good."""
    return _move(order, authority, AuthorityState.REVOKED)


def _move(order: Order, authority: int, to: AuthorityState) -> views.AuthorityOut:
    return order.answer(
        lambda desk: views.AuthorityOut.of(
            authorities.move(desk, order.principal, AuthorityId(authority), to)
        ),
        again=authorities.sync_capath,
    )


@router.post("/certificates/check")
def check_certificate(desk: AtDesk, principal: Who, body: views.CertificateToCheck) -> views.CheckOut:
    """What would happen to a device with this certificate; changes nothing."""
    rules = devices.check_certificate(desk, principal, body.chain.encode(), product=body.product)
    return views.CheckOut.of(rules)
