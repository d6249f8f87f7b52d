"""Commands on devices and the inbox, and figures."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.attempts import AttemptState, Ending, end
from provisioning.certificates import parse_chain
from provisioning.decision import Rule, first_failed
from provisioning.devices import ConnectionState, Device, DeviceState
from provisioning.enrollment import decide_enrollment, list_claims
from provisioning.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RejectReason,
    TransitionError,
    VerificationError,
)
from provisioning.ids import DeviceId, KeyId
from provisioning.sessions import end_connection
from provisioning.statistics import Event, EventKind, Per
from provisioning.verification import explain_chain, verify_chain
from provisioning.working import WorkingSet
from store import devices, facts, products, registry, reports, writer
from store.database import Transaction
from store.devices import DeviceView, InboxItem
from store.locks import device_lock
from store.times import from_ms, to_ms

MOST_GRANT: Final = timedelta(days=30)
FOREIGN_CA: Final = Rule(
    name="registered_ca",
    passed=False,
    detail="no CA of this organization signed the certificate",
    reason=RejectReason.UNKNOWN_CA,
)


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


def create(
    desk: Desk,
    principal: Principal,
    *,
    product: str,
    identifier: str,
    cohort: str | None = None,
    tags: Sequence[str] = (),
) -> DeviceView:
    """Makes a device that is known before it comes; the first verified key with its identifier binds to it.

    Raises:
        NotFoundError: there is no such product or cohort.
        ConflictError: the product has a device of that identifier.
        InvalidError: the identifier is not printable.
    """
    if not identifier.isprintable():
        raise InvalidError("the identifier must be 1–128 printable characters", field="identifier")
    now = desk.clock()
    number = DeviceId(desk.new_id())
    try:
        with desk.database.write() as tx:
            owner = products.load(tx, principal.organization_id, product)
            known, _ = registry.load_registry(tx)
            names = known.cohorts.get(owner.id, {})
            if cohort is not None and cohort not in names:
                raise NotFoundError(f"product {product!r} has no cohort {cohort!r}")
            device = Device(
                id=number,
                product_id=owner.id,
                cohort_id=None if cohort is None else names[cohort],
                identifier=identifier,
                broker=desk.broker,
                topic_name=None,
                state=DeviceState.PENDING,
                created_at=now,
                tags=tuple(tags),
            )
            working = WorkingSet(registry=known, broker=desk.broker, worker=desk.worker, epoch=0)
            working.save_device(device)
            working.events.append(
                Event(
                    at=now,
                    kind=EventKind.DEVICE_STATE,
                    product_id=owner.id,
                    cohort_id=device.cohort_id,
                    device_id=number,
                    word=DeviceState.PENDING,
                )
            )
            writer.apply(tx, working, now)
            after = {"product": product, "identifier": identifier}
            desk.note(tx, principal, "device.create", number, after=after)
    except ConflictError as error:
        raise ConflictError(f"product {product!r} has a device {identifier!r} already") from error
    return find(desk, principal, str(number))


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
    allowed_in = DeviceState.ACTIVE if keys else DeviceState.PENDING
    to = DeviceState.BLOCKED if blocked else allowed_in
    locks = _locks(view, keys)
    with desk.database.write(locks) as tx:
        working = _working_set(tx, desk, view, keys)
        device = working.devices[view.device.id]
        desk.expect(devices.find(tx, principal.organization_id, str(device.id)))
        if device.state is DeviceState.RETIRED:
            raise TransitionError(f"device {device.identifier!r} is retired; that is for good")
        if not blocked and device.state not in (DeviceState.BLOCKED, DeviceState.QUARANTINED):
            to = device.state
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
            attempt = working.attempts.get(device.id)
            if blocked and attempt is not None:
                ending = Ending(state=AttemptState.CANCELLED, reason="device_blocked")
                working.save_attempt(end(attempt, ending, now), now)
            writer.apply(tx, working, now)
            action = "device.block" if blocked else "device.unblock"
            desk.note(tx, principal, action, device.id, before={"state": device.state}, after={"state": to})
    return find(desk, principal, str(view.device.id))


def grant(desk: Desk, principal: Principal, name: str, *, life: timedelta | None) -> DeviceView:
    """Allows a device one new key within `life` from now, without its old key's word; None takes that back.

    The first new key that is proven in this time binds, and the grant is used up (`provisioning.enrollment`).

    Raises:
        NotFoundError: there is no such device.
        InvalidError: the time is not above zero, or longer than 30 days.
        TransitionError: the device is retired.
    """
    if life is not None and not timedelta() < life <= MOST_GRANT:
        raise InvalidError(f"a grant lasts 1–{MOST_GRANT // timedelta(hours=1)} hours", field="hours")
    now = desk.clock()
    view = find(desk, principal, name)
    with desk.database.read() as tx:
        keys = [KeyId(key) for key in devices.list_keys(tx, view.device.id)]
    with desk.database.write(_locks(view, keys)) as tx:
        working = _working_set(tx, desk, view, keys)
        device = working.devices[view.device.id]
        desk.expect(devices.find(tx, principal.organization_id, str(device.id)))
        if life is not None and device.state is DeviceState.RETIRED:
            raise TransitionError(f"device {device.identifier!r} is retired; that is for good")
        until = None if life is None else from_ms(to_ms(now + life))  # as it is kept
        if device.new_key_until != until:
            working.save_device(replace(device, new_key_until=until))
            writer.apply(tx, working, now)
            before, after = (
                {"new_key_until": None if at is None else at.isoformat()}
                for at in (device.new_key_until, until)
            )
            action = "device.withdraw_grant" if life is None else "device.grant"
            desk.note(tx, principal, action, device.id, before=before, after=after)
    return find(desk, principal, str(view.device.id))


def list_inbox(
    desk: Desk, principal: Principal, *, product: str | None, reason: str | None, limit: int
) -> list[InboxItem]:
    """The inbox."""
    with desk.database.read() as tx:
        return devices.list_inbox(tx, principal.organization_id, product=product, reason=reason, limit=limit)


def load_figures(desk: Desk, principal: Principal, product: str | None = None) -> dict[str, Any]:
    """The organization's figures, or one product's.

    Raises:
        NotFoundError: there is no such product.
    """
    with desk.database.read() as tx:
        if product is not None:
            products.load(tx, principal.organization_id, product)
        return reports.load_figures(tx, principal.organization_id, product)


def load_flows(
    desk: Desk, principal: Principal, *, product: str | None, per: Per, last: int
) -> reports.Flows:
    """Connects, disconnects, enrollments and refusals over the last buckets, the running one included.

    Raises:
        NotFoundError: there is no such product.
    """
    with desk.database.read() as tx:
        if product is not None:
            products.load(tx, principal.organization_id, product)
        return reports.load_flows(
            tx, principal.organization_id, product=product, per=per, last=last, now=desk.clock()
        )


def check_certificate(
    desk: Desk, principal: Principal, pem: bytes, *, product: str | None = None
) -> list[Rule]:
    """What would happen to a device with this certificate, rule by rule; changes nothing.

    Raises:
        InvalidError: it is not a PEM certificate.
    """
    try:
        ders = [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem)]
    except ValueError as error:
        raise InvalidError(f"this is not a PEM certificate: {error}", field="certificate") from error
    return explain_certificates(desk, principal, ders, product=product)


def explain_certificates(
    desk: Desk, principal: Principal, ders: Sequence[bytes], *, product: str | None = None
) -> list[Rule]:
    """What would happen to a device with these certificates (DER, its own first); changes nothing."""
    now = desk.clock()
    try:
        chain = parse_chain(ders)
    except VerificationError as error:
        return [Rule(name="certificate", passed=False, detail=error.detail, reason=error.reason)]
    with desk.database.read() as tx:
        known, anchors = registry.load_registry(tx)
        rules = explain_chain(chain, anchors, now)
        if first_failed(rules) is not None:
            return rules
        identity = verify_chain(chain, anchors, now)
        if known.products[identity.product_id].organization_id != principal.organization_id:
            return [FOREIGN_CA]
        found = known.products[identity.product_id].name
        if product is not None and product != found:
            detail = f"its CA is registered for product {found!r}, not for {product!r}"
            return [*rules, Rule(name="product", passed=False, detail=detail)]
        working = facts.load_working_set(
            tx,
            known,
            broker=desk.broker,
            worker=desk.worker,
            keys=[identity.key_id],
            identifiers=list_claims(identity),
            topic_names=[identity.topic_name],
        )
    result = decide_enrollment(
        identity, working, hello=None, audience=desk.audience, now=now, new_id=desk.new_id
    )
    return rules + result.rules


def _locks(view: DeviceView, keys: list[KeyId]) -> list[str]:
    """Everything under which others decide over this device: its keys, its name, its place on the broker."""
    device = view.device
    names = [*keys, f"{device.product_id}/{device.identifier}"]
    return names if device.topic_name is None else [*names, device_lock(device.broker, device.topic_name)]


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
