"""Commands on devices and the inbox, and figures."""

from typing import Any

from cryptography import x509

from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.decision import Rule
from provisioning.devices import ConnectionState, DeviceState
from provisioning.enrollment import decide_enrollment
from provisioning.errors import InvalidError, TransitionError
from provisioning.ids import DeviceId, KeyId
from provisioning.sessions import end_connection
from provisioning.statistics import Event, EventKind
from provisioning.verification import Anchor, TrustAnchors, explain_chain
from provisioning.working import WorkingSet
from store import devices, facts, registry, reports, writer
from store.database import Transaction
from store.devices import DeviceView, InboxItem


def list_all(
    desk: Desk,
    principal: Principal,
    *,
    product: str | None = None,
    cohort: str | None = None,
    state: str | None = None,
    after: DeviceId | None = None,
    limit: int = 100,
) -> list[DeviceView]:
    """One page of devices."""
    with desk.database.read() as tx:
        return devices.list_all(
            tx,
            principal.organization_id,
            product=product,
            cohort=cohort,
            state=state,
            after=after,
            limit=limit,
        )


def find(desk: Desk, principal: Principal, name: str) -> DeviceView:
    """One device, by id, topic name or identifier."""
    with desk.database.read() as tx:
        return devices.find(tx, principal.organization_id, name)


def set_blocked(desk: Desk, principal: Principal, name: str, *, blocked: bool) -> DeviceView:
    """Blocks a device, or lets a blocked or quarantined one in again. Repeating changes nothing.

    Raises:
        NotFoundError: there is none.
        TransitionError: the device is retired.
    """
    now = desk.clock()
    view = find(desk, principal, name)
    with desk.database.read() as tx:
        keys = [KeyId(key) for key in devices.list_keys(tx, view.device.id)]
    to = DeviceState.BLOCKED if blocked else DeviceState.ACTIVE
    locks = [*keys, f"{view.device.product_id}/{view.device.identifier}"]
    with desk.database.write(locks) as tx:
        working = _working_set(tx, desk, view, keys)
        device = working.devices[view.device.id]
        if device.state is DeviceState.RETIRED:
            raise TransitionError(f"device {device.identifier!r} is retired; that is for good")
        if device.state is not to:
            working.set_state(
                device,
                to,
                Event(
                    at=now,
                    kind=EventKind.DEVICE_STATE,
                    product_id=device.product_id,
                    cohort_id=device.cohort_id,
                    device_id=device.id,
                    word=to,
                    before=device.state,
                ),
            )
            if blocked and device.id in working.connections:
                end_connection(working, device, "blocked", ConnectionState.OFFLINE, now)
            writer.apply(tx, working, now)
            action = "device.block" if blocked else "device.unblock"
            desk.note(tx, principal, action, device.id, before={"state": device.state}, after={"state": to})
    return find(desk, principal, str(view.device.id))


def list_inbox(desk: Desk, principal: Principal, reason: str | None, limit: int) -> list[InboxItem]:
    """The inbox."""
    with desk.database.read() as tx:
        return devices.list_inbox(tx, principal.organization_id, reason=reason, limit=limit)


def load_figures(desk: Desk, principal: Principal) -> dict[str, Any]:
    """The organization's figures."""
    with desk.database.read() as tx:
        return reports.load_figures(tx, principal.organization_id)


def check_certificate(desk: Desk, principal: Principal, pem: bytes) -> list[Rule]:
    """What would happen to a device with this certificate, rule by rule; changes nothing.

    Raises:
        InvalidError: it is not a PEM certificate.
    """
    now = desk.clock()
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise InvalidError(f"this is not a PEM certificate: {error}", field="certificate") from error
    if not 1 <= len(chain) <= 3:
        raise InvalidError(f"a chain has 1–3 certificates, leaf first; got {len(chain)}", field="certificate")
    with desk.database.read() as tx:
        known, stored = registry.load_registry(tx)
        mine = {
            product.id
            for product in known.products.values()
            if product.organization_id == principal.organization_id
        }
        anchors = TrustAnchors(
            Anchor(
                authority_id=authority.id,
                product_id=authority.product_id,
                certificate=x509.load_der_x509_certificate(authority.certificate),
                key_id=authority.key_id,
                state=authority.state,
                legacy=authority.legacy,
            )
            for authority in stored
            if authority.product_id in mine
        )
        rules, identity = explain_chain(chain, anchors, now)
        if identity is None:
            return rules
        certificate = identity.certificate
        names = {certificate.common_name, *certificate.san_uris, *certificate.san_dns}
        if certificate.subject_serial_number:
            names.add(certificate.subject_serial_number)
        working = facts.load_working_set(
            tx,
            known,
            broker=desk.broker,
            worker=desk.worker,
            keys=[identity.key_id],
            identifiers=[(identity.product_id, name) for name in names],
            topic_names=[identity.topic_name],
        )
    result = decide_enrollment(
        identity, working, hello=None, audience=desk.audience, now=now, new_id=desk.new_id
    )
    return rules + result.rules


def _working_set(tx: Transaction, desk: Desk, view: DeviceView, keys: list[KeyId]) -> WorkingSet:
    known, _ = registry.load_registry(tx)
    return facts.load_working_set(
        tx,
        known,
        broker=desk.broker,
        worker=desk.worker,
        keys=keys,
        identifiers=[(view.device.product_id, view.device.identifier)],
        topic_names=(),
    )
