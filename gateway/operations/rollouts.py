"""Commands on rollouts and overrides, and the explanation of offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.attempts import Attempt, AttemptState, Ending
from provisioning.devices import ConnectionState
from provisioning.errors import ConflictError, InvalidError, NotFoundError, TransitionError
from provisioning.ids import DeviceId, OverrideId, RolloutId
from provisioning.offers import OfferDecision, OfferFacts, decide_offer
from provisioning.rollouts import Override, Plan, Rollout, RolloutState, check_move
from provisioning.statistics import Event, EventKind
from provisioning.updates import apply_cancel
from store import (
    attempts,
    bundles,
    counters,
    devices,
    facts,
    products,
    registry,
    reports,
    rollouts,
    timelines,
    writer,
)
from store.attempts import OpenAttempt
from store.database import Transaction
from store.locks import device_lock
from store.timelines import Happening

CHUNK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """A rollout with its names, and its attempts by state from counters."""

    rollout: Rollout
    product: str
    cohort: str
    attempts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a device is, or is not, offered firmware now."""

    device: str
    decision: OfferDecision
    attempt: Attempt | None


def create(
    desk: Desk,
    principal: Principal,
    *,
    product: str,
    version: str,
    cohorts: Sequence[str],
    plan: Plan,
    start_at: datetime | None,
) -> list[RolloutView]:
    """Plans a bundle for cohorts: one rollout for each, as a group.

    Args:
        start_at: aware UTC; None: at once.

    Raises:
        InvalidError: no cohort, or one twice.
        NotFoundError: a product, bundle or cohort that is not there.
        ConflictError: a cohort has this bundle's rollout already.
        TransitionError: the product is archived.
    """
    if not cohorts or len(set(cohorts)) != len(cohorts):
        raise InvalidError("name at least one cohort, each once", field="cohorts")
    now = desk.clock()
    try:
        with desk.database.write() as tx:
            owner = products.load(tx, principal.organization_id, product)
            if owner.archived_at is not None:
                raise TransitionError(f"product {product!r} is archived: it starts no rollouts")
            bundle = bundles.load(tx, owner, version)
            known = {cohort.name: cohort.id for cohort in products.list_cohorts(tx, owner.id)}
            missing = [name for name in cohorts if name not in known]
            if missing:
                raise NotFoundError(
                    f"product {product!r} has no cohort {missing[0]!r}; it has {', '.join(sorted(known)) or 'none'}"
                )
            group = desk.new_id()
            made = [
                Rollout(
                    id=RolloutId(desk.new_id()),
                    group=group,
                    product_id=owner.id,
                    cohort_id=known[name],
                    bundle=bundle,
                    state=RolloutState.SCHEDULED,
                    plan=plan,
                    start_at=start_at or now,
                    created_at=now,
                )
                for name in cohorts
            ]
            rollouts.create(tx, made)
            for rollout, cohort in zip(made, cohorts, strict=True):
                counters.record(tx, desk.worker, [_event(rollout, RolloutState.SCHEDULED, "", now)])
                after = {
                    "product": product,
                    "cohort": cohort,
                    "version": version,
                    "start_at": rollout.start_at.isoformat(),
                    "plan": plan.model_dump(mode="json"),
                }
                desk.note(tx, principal, "rollout.create", rollout.id, after=after)
    except ConflictError as error:
        raise ConflictError(f"one of these cohorts has a rollout of {version} already") from error
    desk.after_commit(lambda after: after.wake())
    return [load(desk, principal, rollout.id) for rollout in made]


def list_all(desk: Desk, principal: Principal, product: str | None = None) -> list[RolloutView]:
    """The organization's rollouts, the newest first."""
    with desk.database.read() as tx:
        if product is not None:
            products.load(tx, principal.organization_id, product)
        found = rollouts.list_all(tx, principal.organization_id, product=product)
        return _views(tx, found)


def load(desk: Desk, principal: Principal, number: RolloutId) -> RolloutView:
    """One rollout."""
    with desk.database.read() as tx:
        return _views(tx, [rollouts.load(tx, principal.organization_id, number)])[0]


def move(desk: Desk, principal: Principal, number: RolloutId, to: RolloutState) -> RolloutView:
    """Pauses, resumes or cancels. Repeating changes nothing; no offer is made once this has returned.

    A pause lets open attempts go on. A cancel calls off those that do not install yet.

    Raises:
        TransitionError: the rollout's life has no such step.
    """
    now = desk.clock()
    with desk.database.write() as tx:
        rollouts.load(tx, principal.organization_id, number)  # scope
        rollout = rollouts.lock(tx, [number])[number]
        if rollout.state is not to:
            check_move(number, rollout.state, to)
            if rollouts.move(tx, rollout, to, now):
                counters.record(tx, desk.worker, [_event(rollout, to, rollout.state, now)])
                desk.note(
                    tx,
                    principal,
                    f"rollout.{_VERBS[to]}",
                    number,
                    before={"state": rollout.state},
                    after={"state": to},
                )
    desk.after_commit(lambda after: settle(after, number, to))
    return load(desk, principal, number)


def settle(desk: Desk, number: RolloutId, to: RolloutState) -> None:
    """What follows a move once it is there: calls off a cancelled rollout's attempts, wakes who offers. Repeatable."""
    if to is RolloutState.CANCELLED:
        _call_off(desk, number, desk.clock())
    desk.wake()


_VERBS: Final = {
    RolloutState.RUNNING: "resume",
    RolloutState.PAUSED: "pause",
    RolloutState.CANCELLED: "cancel",
}


def _call_off(desk: Desk, number: RolloutId, now: datetime) -> None:
    """Ends the open attempts of a cancelled rollout that can still be called off, in short chunks."""
    while True:
        with desk.database.read() as tx:
            found = attempts.list_cancellable(tx, number, CHUNK)
        if not found:
            return
        for broker in sorted({one.broker for one in found}):
            _call_off_chunk(desk, [one for one in found if one.broker == broker], broker, now)


def _call_off_chunk(desk: Desk, found: list[OpenAttempt], broker: str, now: datetime) -> None:
    numbers = [one.device_id for one in found]
    with desk.database.write([device_lock(broker, one.topic_name) for one in found]) as tx:
        working = facts.load_devices(tx, numbers, broker=broker, worker=desk.worker)
        revisions = attempts.load_revisions(tx, numbers)
        ending = Ending(state=AttemptState.CANCELLED, reason="rollout_cancelled")
        for device_id in numbers:
            attempt = working.attempts.get(device_id)
            if attempt is not None:
                apply_cancel(working, attempt, ending, revisions[device_id] + 1, now)
        writer.apply(tx, working, now)


def create_override(
    desk: Desk,
    principal: Principal,
    *,
    product: str,
    version: str,
    names: Sequence[str],
    starts_at: datetime | None,
    ends_at: datetime | None,
) -> Override:
    """Gives named devices a bundle of their own, over a period.

    Raises:
        InvalidError: no devices, a device of another product, or a period that ends before it begins.
    """
    now = desk.clock()
    begins = starts_at or now
    if not names:
        raise InvalidError("name at least one device", field="devices")
    if ends_at is not None and ends_at <= begins:
        raise InvalidError("the override ends before it begins", field="ends_at")
    with desk.database.write() as tx:
        owner = products.load(tx, principal.organization_id, product)
        bundle = bundles.load(tx, owner, version)
        found = [devices.find(tx, principal.organization_id, name).device for name in names]
        for device in found:
            if device.product_id != owner.id:
                raise InvalidError(
                    f"device {device.identifier!r} is not of product {product!r}", field="devices"
                )
        made = Override(
            id=OverrideId(desk.new_id()),
            product_id=owner.id,
            bundle=bundle,
            starts_at=begins,
            ends_at=ends_at,
            plan=Plan(),
        )
        numbers = [device.id for device in found]
        rollouts.create_override(tx, made, numbers, now)
        rollouts.mark_override(tx, made, numbers, now)
        after = {"product": product, "version": version, "devices": [str(number) for number in numbers]}
        desk.note(tx, principal, "override.create", made.id, after=after)
    desk.after_commit(lambda after: after.wake())
    return made


def list_overrides(desk: Desk, principal: Principal) -> list[tuple[Override, tuple[DeviceId, ...]]]:
    """The organization's overrides, the newest first."""
    with desk.database.read() as tx:
        return rollouts.list_overrides(tx, principal.organization_id)


def remove_override(desk: Desk, principal: Principal, number: OverrideId) -> None:
    """Takes an override back; attempts that it opened go on.

    Raises:
        NotFoundError: there is none.
    """
    with desk.database.write() as tx:
        known = {override.id for override, _ in rollouts.list_overrides(tx, principal.organization_id)}
        if number not in known:
            raise NotFoundError(f"there is no override {number}; `fleetgate override list` shows them")
        rollouts.remove_override(tx, number, desk.clock())
        desk.note(tx, principal, "override.remove", number)


def explain(desk: Desk, principal: Principal, name: str) -> Explanation:
    """Why a device is, or is not, offered firmware now: the rules of the function that decides."""
    now = desk.clock()
    with desk.database.read() as tx:
        view = devices.find(tx, principal.organization_id, name)
        device = view.device
        known, _ = registry.load_registry(tx)
        attempt = attempts.load_open(tx, [device.id]).get(device.id)
        override = known.overrides.get(device.id)
        in_cohort = () if device.cohort_id is None else known.rollouts.get(device.cohort_id, ())
        sources = [rollout.id for rollout in in_cohort] + ([override.id] if override is not None else [])
        decision = decide_offer(
            OfferFacts(
                device=device,
                rollouts=in_cohort,
                override=override,
                versions=known.versions.get(device.product_id, {}),
                attempt=attempt,
                tries=attempts.load_tries(tx, [device.id]).get(device.id, {}),
                connected=view.connection is ConnectionState.ONLINE,
                flights={source: attempts.load_flight(tx, source, now) for source in sources},
            ),
            now,
        )
    return Explanation(device=device.identifier, decision=decision, attempt=attempt)


def load_timeline(desk: Desk, principal: Principal, name: str, limit: int) -> list[Happening]:
    """What happened to a device, the newest first."""
    with desk.database.read() as tx:
        device = devices.find(tx, principal.organization_id, name).device
        return timelines.load(tx, device.id, limit)


def _views(tx: Transaction, found: Sequence[Rollout]) -> list[RolloutView]:
    known, _ = registry.load_registry(tx)
    counted = reports.count_rollouts(tx, found)
    return [
        RolloutView(
            rollout=rollout,
            product=known.products[rollout.product_id].name,
            cohort=known.cohort_name(rollout.product_id, rollout.cohort_id) or "",
            attempts=counted.get(rollout.id, {}),
        )
        for rollout in found
    ]


def _event(rollout: Rollout, to: RolloutState, before: str, now: datetime) -> Event:
    return Event(
        at=now,
        kind=EventKind.ROLLOUT,
        product_id=rollout.product_id,
        cohort_id=rollout.cohort_id,
        device_id=None,
        word=to,
        before=before,
        source_id=rollout.id,
    )
