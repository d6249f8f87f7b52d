"""Workers: what each does, whether it lives, and when one that is gone for good may be retired.

A worker that leaves for good leaves its session at the broker behind, and with it its share of what devices say:
the broker goes on putting messages there. Retiring it means that another worker empties and ends that session.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from provisioning.errors import ConflictError, InvalidError

HEARD_EVERY_SECONDS: Final = 3.0
ALIVE: Final = timedelta(seconds=10)
"""A worker that was not heard for so long is dead or cut off: three heartbeats and a little."""


class WorkerRole(StrEnum):
    """What a worker does. Each role may be had by any number of workers."""

    INGEST = "ingest"
    API = "api"
    SCHEDULER = "scheduler"
    AUTHORITIES = "authorities"


class WorkerState(StrEnum):
    """Where a worker stands: it says the first two of itself, an operator asks for the others."""

    RUNNING = "running"
    STOPPED = "stopped"
    RETIRING = "retiring"
    RETIRED = "retired"


ALL_ROLES: Final = tuple(WorkerRole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker, as it is known to all.

    Attributes:
        queued: messages that it had received and not yet worked, when it was last heard.
        heard_at: by the database's clock.
        has_session: whether a session at the broker is, or may be, its own.
    """

    name: str
    broker: str
    roles: tuple[WorkerRole, ...]
    version: str
    state: WorkerState
    started_at: datetime
    heard_at: datetime
    queued: int
    has_session: bool

    def is_alive(self, now: datetime) -> bool:
        """Whether it runs, as far as anybody can tell at `now`, by the database's clock."""
        return self.state is WorkerState.RUNNING and now - self.heard_at < ALIVE


def parse_roles(words: Iterable[str]) -> tuple[WorkerRole, ...]:
    """Roles from words, each of which may be a list with commas; in the order of the design, each once.

    Raises:
        InvalidError: a word is no role, or there is none.
    """
    given = {word.strip() for words_ in words for word in words_.split(",")}
    unknown = given - set(ALL_ROLES)
    if unknown or not given:
        raise InvalidError(
            f"roles are {', '.join(ALL_ROLES)}, got {', '.join(sorted(unknown)) or 'none'}", field="roles"
        )
    return tuple(role for role in ALL_ROLES if role in given)


def decide_retirement(worker: Worker, others: Iterable[Worker], now: datetime) -> WorkerState:
    """What becomes of a worker that an operator retires.

    Args:
        others: workers that may take over.
        now: by the database's clock.

    Returns: `retired` where nothing is left to do, `retiring` where another has to empty its session first.

    Raises:
        ConflictError: it lives, or nobody is there to take over its messages.
    """
    if worker.state is WorkerState.RETIRED:
        return WorkerState.RETIRED
    if worker.is_alive(now):
        ago = max(0.0, (now - worker.heard_at).total_seconds())
        raise ConflictError(
            f"worker {worker.name!r} runs: it was heard {ago:.0f} s ago; stop it first (a killed one counts as gone "
            f"{ALIVE.total_seconds():.0f} s after it was last heard)"
        )
    if not worker.has_session:
        return WorkerState.RETIRED
    takers = [
        other
        for other in others
        if other.name != worker.name
        and other.broker == worker.broker
        and WorkerRole.INGEST in other.roles
        and other.is_alive(now)
    ]
    if not takers:
        raise ConflictError(
            f"nobody would take the messages of worker {worker.name!r}: no other worker with the role ingest runs on "
            f"broker {worker.broker!r}; start one, then retire this"
        )
    return WorkerState.RETIRING
