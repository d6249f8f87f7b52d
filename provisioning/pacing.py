"""How many attempts a rollout may open now: the pace that always holds, late joiners included."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from provisioning.decision import Rule
from provisioning.rollouts import Plan

MINUTE: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """What a rollout has on its way, counted under its lock.

    Attributes:
        in_flight: open attempts that hold a slot.
        last_minute: offers within the last 60 seconds.
        oldest_at: when the earliest of those was made.
    """

    in_flight: int = 0
    last_minute: int = 0
    oldest_at: datetime | None = None


def count_room(plan: Plan, flight: Flight) -> int:
    """Attempts that may be opened now, 0 or more."""
    return max(0, min(plan.most_in_flight - flight.in_flight, plan.most_per_minute - flight.last_minute))


def explain_pace(plan: Plan, flight: Flight) -> Rule:
    """The pace as a rule; passed where there is room for one more."""
    detail = (
        f"{flight.in_flight} of {plan.most_in_flight} in flight, {flight.last_minute} of "
        f"{plan.most_per_minute} offered within the last minute"
    )
    room = count_room(plan, flight) > 0
    waits = not room and flight.in_flight < plan.most_in_flight and flight.oldest_at is not None
    changes_at = flight.oldest_at + MINUTE if waits and flight.oldest_at is not None else None
    return Rule(name="pace", passed=room, detail=detail, changes_at=changes_at)
