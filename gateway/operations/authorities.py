"""Commands on CAs: register, prove, activate, retire, revoke; and the broker's capath kept in step."""

import secrets
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.authorities import (
    AuthorityState,
    check_unrelated,
    decide_transition,
    inspect_authority,
    new_code,
    verify_possession,
)
from provisioning.errors import ConflictError, InvalidError, TransitionError
from provisioning.ids import AuthorityId
from provisioning.products import parse_name
from store import authorities, products
from store.authorities import Authority
from store.database import BrokenConstraintError

CODE_LIFE: Final = timedelta(hours=24)
LOCK: Final = "ca"
"""One change of any CA at a time: they are rare, and must see one another."""


def register(desk: Desk, principal: Principal, *, product: str, name: str, pem: bytes) -> Authority:
    """Registers a CA for a product, pending, and makes the code to prove it with; again while unproven: a new code.

    Raises:
        InvalidError: the certificate is no CA that we could accept; says why.
        ConflictError: the name is taken, or the CA is related to another product's.
    """
    now = desk.clock()
    facts = inspect_authority(pem, now=now)
    parse_name(name, "CA")
    number = AuthorityId(desk.new_id())
    with desk.database.read() as tx:
        owner = products.load(tx, principal.organization_id, product)
        others = authorities.list_of_others(tx, owner.id)
    _check_unrelated(facts.certificate, others)
    code = new_code(secrets.token_bytes(20))
    try:
        with desk.database.write([LOCK]) as tx:
            again = authorities.renew_code(
                tx, owner.id, facts.fingerprint, code=code, code_expires_at=now + CODE_LIFE
            )
            if again is not None:  # never proven: the same certificate gets a new code
                desk.note(tx, principal, "ca.renew_code", again)
                return authorities.load(tx, principal.organization_id, again)
            authorities.create(
                tx,
                id=number,
                product_id=owner.id,
                name=name,
                facts=facts,
                code=code,
                code_expires_at=now + CODE_LIFE,
                at=now,
            )
            desk.note(
                tx,
                principal,
                "ca.register",
                number,
                after={"product": product, "name": name, "fingerprint": facts.fingerprint},
            )
    except ConflictError as error:
        raise ConflictError(
            f"product {product!r} has a CA {name!r}, or this very certificate, already"
        ) from error
    return load(desk, principal, number)


def load(desk: Desk, principal: Principal, number: AuthorityId) -> Authority:
    """One CA."""
    with desk.database.read() as tx:
        return authorities.load(tx, principal.organization_id, number)


def list_all(desk: Desk, principal: Principal, product: str | None) -> list[Authority]:
    """The organization's CAs, or one product's."""
    with desk.database.read() as tx:
        return authorities.list_all(tx, principal.organization_id, product)


def prove(desk: Desk, principal: Principal, number: AuthorityId, proof_pem: bytes) -> Authority:
    """Takes the proof of possession: a certificate with CN = the code, signed by the CA's key.

    Raises:
        InvalidError: it proves nothing; says why.
        ConflictError: the CA's key or subject is another product's.
    """
    now = desk.clock()
    authority = load(desk, principal, number)
    if authority.proven_at is not None:
        return authority
    if authority.code_expires_at <= now:
        raise InvalidError(
            f"the code expired at {authority.code_expires_at.isoformat()}; register the CA anew",
            field="proof",
        )
    verify_possession(proof_pem, authority.certificate, authority.code, now)
    try:
        with desk.database.write([LOCK]) as tx:
            # Again, under the lock: another product may have proven a related CA since this one was registered.
            others = authorities.list_of_others(tx, authority.product_id)
            _check_unrelated(x509.load_der_x509_certificate(authority.certificate), others)
            desk.expect(authorities.load(tx, principal.organization_id, authority.id))
            authorities.prove(tx, authority.id, now)
            desk.note(tx, principal, "ca.prove", authority.id, after={"proven_at": now.isoformat()})
    except BrokenConstraintError as error:
        raise ConflictError(
            "a CA with this key or this subject is registered already; a CA belongs to exactly one product"
        ) from error
    return load(desk, principal, number)


def move(desk: Desk, principal: Principal, number: AuthorityId, to: AuthorityState) -> Authority:
    """Activates, retires or revokes a CA; the broker trusts it, or the gateway refuses it, from then on.

    Raises:
        TransitionError: its life has no such step.
    """
    with desk.database.write([LOCK]) as tx:
        authority = authorities.load(tx, principal.organization_id, number)
        desk.expect(authority)
        proven = authority.proven_at is not None
        decide_transition(authority.state, to, proven=proven or to is AuthorityState.REVOKED)
        if not proven:
            raise TransitionError(
                f"CA {authority.name!r} was never proven, so nothing trusts it: there is nothing to revoke"
            )
        authorities.set_state(tx, authority.id, to)
        desk.note(
            tx, principal, f"ca.{to}", authority.id, before={"state": authority.state}, after={"state": to}
        )
    desk.after_commit(sync_capath)
    return load(desk, principal, number)


def sync_capath(desk: Desk) -> None:
    """Makes the broker's capath hold exactly the active and retiring CAs. Repeatable."""
    if desk.capath is None:
        return

    def read() -> list[bytes]:
        with desk.database.read() as tx:
            trusted = authorities.list_trusted(tx)
        return [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in trusted]

    desk.capath.sync(read)  # read once no other worker changes it: who reads last, writes last


def _check_unrelated(certificate: x509.Certificate, others: list[tuple[str, bytes]]) -> None:
    check_unrelated(certificate, [(product, x509.load_der_x509_certificate(der)) for product, der in others])
