"""A bundle on its way to a cohort: its plan, its states, and who may change them.

Phases, windows, approval and halt criteria will stand in `Plan` beside what is here; their states are named
already. Which device is offered what is `offers`' to decide, how fast is `pacing`'s.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from provisioning.attempts import Timeouts
from provisioning.bundles import Bundle
from provisioning.errors import InvalidError, TransitionError
from provisioning.ids import CohortId, OverrideId, ProductId, RolloutId

_YEAR_SECONDS: Final = 366 * 86_400
Seconds = Annotated[int, Field(ge=1, le=_YEAR_SECONDS)]


class RolloutState(StrEnum):
    """`completed` still serves devices that come to the cohort later."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    HALTED = "halted"
    CANCELLED = "cancelled"


OFFERING: Final = frozenset({RolloutState.RUNNING, RolloutState.COMPLETED})
"""States in which devices are offered the bundle."""

_MOVES: Final[dict[RolloutState, frozenset[RolloutState]]] = {
    RolloutState.DRAFT: frozenset({RolloutState.SCHEDULED, RolloutState.CANCELLED}),
    RolloutState.SCHEDULED: frozenset({RolloutState.RUNNING, RolloutState.CANCELLED}),
    RolloutState.RUNNING: frozenset(
        {RolloutState.PAUSED, RolloutState.COMPLETED, RolloutState.HALTED, RolloutState.CANCELLED}
    ),
    RolloutState.PAUSED: frozenset({RolloutState.RUNNING, RolloutState.CANCELLED}),
    RolloutState.COMPLETED: frozenset({RolloutState.PAUSED, RolloutState.CANCELLED}),
    RolloutState.HALTED: frozenset({RolloutState.RUNNING, RolloutState.CANCELLED}),
    RolloutState.CANCELLED: frozenset(),
}


class Plan(BaseModel):
    """How a rollout goes about it. Everything works at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most_in_flight: int = Field(100, ge=1, le=1_000_000, description="attempts that may be open at once")
    most_per_minute: int = Field(600, ge=1, le=1_000_000, description="offers within any 60 seconds")
    accept_seconds: Seconds = Field(86_400, description="from the offer until the device begins")
    step_seconds: Seconds = Field(3_600, description="within one step without a word from the device")
    total_seconds: Seconds = Field(7 * 86_400, description="from the offer to the end")
    tries: int = Field(3, ge=1, le=100, description="attempts a device has, if the earlier ones timed out")
    required: bool = Field(False, description="whether later rollouts of the cohort wait for this one")

    @property
    def timeouts(self) -> Timeouts:
        """The attempt's limits."""
        return Timeouts(
            accept_seconds=self.accept_seconds,
            step_seconds=self.step_seconds,
            total_seconds=self.total_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One bundle for one cohort. Those that were planned together share `group`.

    Attributes:
        start_at: when it begins by itself.
        filled: whether all devices that the cohort had at the start, or at the last resume, were considered.
    """

    id: RolloutId
    group: int
    product_id: ProductId
    cohort_id: CohortId
    bundle: Bundle
    state: RolloutState
    plan: Plan
    start_at: datetime
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    filled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A bundle for named devices, over a period; it goes before every rollout."""

    id: OverrideId
    product_id: ProductId
    bundle: Bundle
    starts_at: datetime
    ends_at: datetime | None
    plan: Plan


def parse_plan(settings: object) -> Plan:
    """A plan from a JSON object.

    Raises:
        InvalidError: naming the first field that is wrong.
    """
    try:
        return Plan.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "plan"
        raise InvalidError(f"plan, {place}: {first['msg']}", field=place) from error


def check_move(rollout: RolloutId, state: RolloutState, to: RolloutState) -> None:
    """Refuses a change of state that a rollout's life does not have.

    Raises:
        TransitionError: naming what can be done instead.
    """
    if to not in _MOVES[state]:
        possible = ", ".join(sorted(_MOVES[state])) or "nothing more"
        raise TransitionError(f"rollout {rollout} is {state} and cannot become {to}; possible: {possible}")
