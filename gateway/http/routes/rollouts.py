"""Rollouts, overrides, and why a device is offered what it is."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from gateway.http.auth import AtDesk, Operator, Who
from gateway.http.firmware_views import (
    ExplanationOut,
    HappeningOut,
    NewOverride,
    NewRollout,
    OverrideOut,
    RolloutOut,
)
from gateway.http.idempotency import Order, Posted
from gateway.http.views import Number
from gateway.operations import rollouts
from gateway.operations.desk import Desk
from provisioning.ids import OverrideId, RolloutId
from provisioning.rollouts import RolloutState

router = APIRouter(prefix="/api/v1", tags=["firmware"])


@router.post("/rollouts", status_code=201)
def create_rollouts(order: Posted, body: NewRollout) -> list[RolloutOut]:
    """Plans a bundle for cohorts: one rollout for each."""

    def create(desk: Desk) -> list[RolloutOut]:
        made = rollouts.create(
            desk,
            order.principal,
            product=body.product,
            version=body.version,
            cohorts=body.cohorts,
            plan=body.plan,
            start_at=body.start_at,
        )
        return [RolloutOut.of(view) for view in made]

    return order.answer(create, again=lambda desk: desk.wake())


@router.get("/rollouts")
def list_rollouts(desk: AtDesk, principal: Who, product: str | None = None) -> list[RolloutOut]:
    """Rollouts, the newest first."""
    return [RolloutOut.of(view) for view in rollouts.list_all(desk, principal, product)]


@router.get("/rollouts/{rollout}")
def show_rollout(desk: AtDesk, principal: Who, rollout: Number) -> RolloutOut:
    """One rollout, with its attempts by state."""
    return RolloutOut.of(rollouts.load(desk, principal, RolloutId(rollout)))


@router.post("/rollouts/{rollout}/pause")
def pause_rollout(order: Posted, rollout: Number) -> RolloutOut:
    """Makes no new offers; open attempts go on."""
    return _move(order, rollout, RolloutState.PAUSED)


@router.post("/rollouts/{rollout}/resume")
def resume_rollout(order: Posted, rollout: Number) -> RolloutOut:
    """Goes on making offers."""
    return _move(order, rollout, RolloutState.RUNNING)


@router.post("/rollouts/{rollout}/cancel")
def cancel_rollout(order: Posted, rollout: Number) -> RolloutOut:
    """Ends it for good, and calls off attempts that do not install yet."""
    return _move(order, rollout, RolloutState.CANCELLED)


def _move(order: Order, rollout: int, to: RolloutState) -> RolloutOut:
    number = RolloutId(rollout)
    return order.answer(
        lambda desk: RolloutOut.of(rollouts.move(desk, order.principal, number, to)),
        again=lambda desk: rollouts.settle(desk, number, to),
    )


@router.post("/overrides", status_code=201)
def create_override(order: Posted, body: NewOverride) -> OverrideOut:
    """Gives named devices a bundle of their own; it goes before every rollout."""

    def create(desk: Desk) -> OverrideOut:
        made = rollouts.create_override(
            desk,
            order.principal,
            product=body.product,
            version=body.version,
            names=body.devices,
            starts_at=body.starts_at,
            ends_at=body.ends_at,
        )
        found = {override.id: named for override, named in rollouts.list_overrides(desk, order.principal)}
        return OverrideOut.of(made, found[made.id])

    return order.answer(create, again=lambda desk: desk.wake())


@router.get("/overrides")
def list_overrides(desk: AtDesk, principal: Who) -> list[OverrideOut]:
    """Overrides, the newest first."""
    return [OverrideOut.of(override, named) for override, named in rollouts.list_overrides(desk, principal)]


@router.delete("/overrides/{override}", status_code=204)
def remove_override(desk: AtDesk, principal: Operator, override: Number) -> Response:
    """Takes an override back."""
    rollouts.remove_override(desk, principal, OverrideId(override))
    return Response(status_code=204)


@router.get("/devices/{device}/explain")
def explain_device(desk: AtDesk, principal: Who, device: str) -> ExplanationOut:
    """Why the device is, or is not, offered firmware now, rule by rule."""
    return ExplanationOut.of(rollouts.explain(desk, principal, device))


@router.get("/devices/{device}/timeline")
def show_timeline(
    desk: AtDesk, principal: Who, device: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[HappeningOut]:
    """What happened to the device, the newest first."""
    return [HappeningOut.of(one) for one in rollouts.load_timeline(desk, principal, device, limit)]
