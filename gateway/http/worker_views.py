"""Workers as the API shows them."""

from datetime import datetime

from pydantic import BaseModel

from provisioning.workers import Worker, WorkerRole, WorkerState


class WorkerOut(BaseModel):
    """One `fleetgate serve`, as it says of itself; `queued` messages wait in its memory, not at the broker."""

    name: str
    broker: str
    roles: list[WorkerRole]
    state: WorkerState
    alive: bool
    queued: int
    version: str
    started_at: datetime
    heard_at: datetime

    @classmethod
    def of(cls, worker: Worker, now: datetime) -> "WorkerOut":
        """From the type of the core.

        Args:
            now: by the database's clock.
        """
        return cls(
            name=worker.name,
            broker=worker.broker,
            roles=list(worker.roles),
            state=worker.state,
            alive=worker.is_alive(now),
            queued=worker.queued,
            version=worker.version,
            started_at=worker.started_at,
            heard_at=worker.heard_at,
        )
